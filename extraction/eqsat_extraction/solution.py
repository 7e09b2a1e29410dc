"""What an extractor returns: a choice, its cost and a lower bound on every other choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import fsum, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ._graph import needed
from .egraph import EGraph, Floats, Ints
from .errors import SolutionError

if TYPE_CHECKING:
    import networkx

TOLERANCE = 1e-9
"""Relative difference of two costs below which they count as equal (sums of floats in another order)."""


@dataclass(frozen=True, eq=False)
class Solution:
    """One e-node for every needed e-class.

    `choice` (n_classes,) int32 is the chosen e-node, -1 where the e-class is not needed. `cost` is the sum of
    the chosen e-nodes' costs, each once; `bound` is at most the cost of every solution; `seconds` is the time
    until this solution or bound was known; `extractor` is who found it.
    """

    choice: Ints
    cost: float
    bound: float = 0.0
    seconds: float = 0.0
    extractor: str = ""

    @classmethod
    def from_choice(
        cls,
        egraph: EGraph,
        costs: Floats,
        choice: Ints,
        *,
        bound: float = 0.0,
        seconds: float = 0.0,
        extractor: str = "",
    ) -> Solution:
        """A solution from a choice that may name more e-classes than the roots need; checked.

        Raises `SolutionError` when the choice is incomplete or cyclic.
        """
        pruned = np.full(egraph.n_classes, -1, dtype=np.int32)
        nodes = _ordered(egraph, choice)
        pruned[egraph.node_class[nodes]] = nodes
        cost = fsum(costs[np.sort(nodes)].tolist())
        solution = cls(pruned, cost, min(bound, cost), seconds, extractor)
        if not isfinite(cost):
            raise SolutionError(f"{extractor or 'the choice'} uses an e-node of infinite cost")
        return solution

    @classmethod
    def from_nodes(
        cls,
        egraph: EGraph,
        costs: Floats,
        nodes: Ints,
        *,
        bound: float = 0.0,
        seconds: float = 0.0,
        extractor: str = "",
    ) -> Solution:
        """A solution from e-nodes, of which the last of an e-class counts; see `from_choice`."""
        choice = np.full(egraph.n_classes, -1, dtype=np.int32)
        choice[egraph.node_class[nodes]] = nodes
        return cls.from_choice(egraph, costs, choice, bound=bound, seconds=seconds, extractor=extractor)

    @property
    def gap(self) -> float:
        """Certified relative distance from the optimum, `(cost - bound) / cost`."""
        return max(0.0, self.cost - self.bound) / max(self.cost, np.finfo(np.float64).tiny)

    @property
    def proved(self) -> bool:
        """Whether the bound proves this solution optimal, to a relative `TOLERANCE`."""
        return bool(self.cost - self.bound <= TOLERANCE * self.cost)

    def nodes(self) -> Ints:
        """The chosen e-nodes, ascending."""
        return np.sort(self.choice[self.choice >= 0])

    def order(self, egraph: EGraph) -> Ints:
        """The chosen e-nodes, children before parents; the same order on every run.

        Raises `SolutionError` when the choice is incomplete or cyclic.
        """
        return _ordered(egraph, self.choice)

    def check(self, egraph: EGraph, costs: ArrayLike) -> None:
        """Raise `SolutionError` unless the choice is complete, acyclic, free of spares and priced right."""
        prices = egraph.check_costs(costs)
        if self.choice.shape != (egraph.n_classes,):
            raise SolutionError(f"choice has shape {self.choice.shape}; expected ({egraph.n_classes},)")
        nodes = _ordered(egraph, self.choice)
        spare = np.setdiff1d(self.nodes(), nodes)
        if len(spare):
            raise SolutionError(f"{egraph.node_name(int(spare[0]))} is chosen, but nothing needs it")
        total = fsum(prices[nodes].tolist())
        if not isfinite(total):
            raise SolutionError("the solution uses an e-node of infinite cost")
        if abs(total - self.cost) > TOLERANCE * max(total, self.cost):
            raise SolutionError(f"the solution says it costs {self.cost!r}, but it costs {total!r}")
        if self.bound > self.cost * (1 + TOLERANCE):
            raise SolutionError(f"the bound {self.bound!r} is above the cost {self.cost!r}")

    def difference(self, other: Solution) -> dict[int, tuple[int, int]]:
        """Where two solutions of one e-graph differ: e-class -> (e-node here, e-node there), -1 for none."""
        classes = np.flatnonzero(self.choice != other.choice)
        return {int(c): (int(self.choice[c]), int(other.choice[c])) for c in classes}

    def to_networkx(self, egraph: EGraph, costs: ArrayLike | None = None) -> networkx.MultiDiGraph:
        """The chosen e-nodes as a graph; edges go from reader to read and carry `operand`."""
        import networkx

        prices = None if costs is None else np.asarray(costs, dtype=np.float64)
        graph: Any = networkx.MultiDiGraph(roots=[int(self.choice[r]) for r in egraph.roots])
        nodes = self.order(egraph)
        for n in nodes.tolist():
            graph.add_node(
                n,
                eclass=int(egraph.node_class[n]),
                op=egraph.ops[n] if egraph.ops else "",
                **({} if prices is None else {"cost": float(prices[n])}),
            )
        for n in nodes.tolist():
            for operand, child in enumerate(egraph.children_of(n).tolist()):
                graph.add_edge(n, int(self.choice[child]), operand=operand)
        return graph

    def named(self, extractor: str, *, bound: float | None = None, seconds: float | None = None) -> Solution:
        """This solution under another extractor's name, possibly with another bound and time."""
        return replace(
            self,
            extractor=extractor,
            bound=self.bound if bound is None else min(bound, self.cost),
            seconds=self.seconds if seconds is None else seconds,
        )


def _ordered(egraph: EGraph, choice: Ints) -> Ints:
    """The e-nodes of `choice` that the roots need, children first (depth first, without recursion)."""
    classes = np.flatnonzero(choice >= 0)
    if np.all(choice < egraph.n_nodes) and np.array_equal(egraph.node_class[choice[classes]], classes):
        order, complete = needed(egraph.child_ptr, egraph.children, choice, egraph.roots)
        if complete:
            return choice[order]
    raise _fault(egraph, choice)


def _fault(egraph: EGraph, choice: Ints) -> SolutionError:
    """What is wrong with a choice: the first fault on a walk from the roots."""
    picked = choice.tolist()
    ptr, children = egraph.child_ptr.tolist(), egraph.children.tolist()
    heads = egraph.node_class.tolist()
    n_nodes = egraph.n_nodes
    done = bytearray(egraph.n_classes)  # 0 unseen, 1 open, 2 finished
    stack = egraph.roots.tolist()[::-1]
    while stack:
        eclass = stack[-1]
        if done[eclass]:
            stack.pop()
            done[eclass] = 2
            continue
        node = picked[eclass]
        if not 0 <= node < n_nodes:
            return SolutionError(f"{egraph.class_name(eclass)} is needed, but no e-node is chosen for it")
        if heads[node] != eclass:
            return SolutionError(f"{egraph.node_name(node)} is not in {egraph.class_name(eclass)}")
        done[eclass] = 1
        for child in children[ptr[node] : ptr[node + 1]][::-1]:
            if done[child] == 1:
                return SolutionError(f"the choice is cyclic through {egraph.class_name(child)}")
            if not done[child]:
                stack.append(child)
    return SolutionError("the choice names e-nodes that are not in their e-class, where nothing needs them")
