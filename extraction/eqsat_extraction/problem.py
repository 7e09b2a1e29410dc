"""The form extractors work on: one artificial root, sets of children, and the way back to the e-graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ._graph import derivable, keep_rows, unique_children, usable
from .egraph import EGraph, Floats, Ints, Mask, Offsets
from .errors import InfeasibleError


_NONE = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class Problem:
    """An extraction problem with a single root e-class, the last one, that holds a single e-node.

    `head` (n,) is the e-class of every e-node, `cost` (n,) its finite cost and `child[ptr[i]:ptr[i + 1]]` its
    distinct child e-classes, ascending. An e-node stands for the original e-nodes
    `part[part_ptr[i]:part_ptr[i + 1]]`, whose e-classes are in `part_class`; `default` (original e-classes,) provides e-classes that were decided
    on the way, for when they turn out to be needed. `offset` is a cost that every solution pays.
    """

    head: Ints
    cost: Floats
    ptr: Offsets
    child: Ints
    n_classes: int
    part_ptr: Offsets
    part: Ints
    part_class: Ints
    default: Ints
    offset: float = 0.0

    @property
    def n_nodes(self) -> int:
        """Number of e-nodes, the root's included."""
        return len(self.head)

    @property
    def root(self) -> int:
        """The artificial root e-class."""
        return self.n_classes - 1

    def parts_of(self, nodes: Ints) -> Ints:
        """The original e-nodes that these e-nodes stand for."""
        return np.concatenate([self.part[self.part_ptr[i] : self.part_ptr[i + 1]] for i in nodes] or [_NONE])

    def with_defaults(self, nodes: Ints) -> Ints:
        """`default`, with the parts of these e-nodes as well."""
        parts = self.parts_of(nodes)
        default = self.default.copy()
        default[self.part_class[parts]] = parts
        return default

    def original_choice(self, choice: Ints) -> Ints:
        """A choice (n_classes,) of this problem as a choice of the e-graph it came from, spares included."""
        return self.with_defaults(choice[choice >= 0])


def from_egraph(egraph: EGraph, costs: Floats) -> Problem:
    """The problem of extracting `egraph`'s roots, without e-nodes that no finite solution can use.

    Raises `InfeasibleError`, naming a root, when there is no solution.
    """
    n, root = egraph.n_nodes, egraph.n_classes
    head = np.append(egraph.node_class, root).astype(np.int32)
    cost = np.append(costs, 0.0)
    ptr = np.append(egraph.child_ptr, egraph.child_ptr[-1] + len(egraph.roots)).astype(np.int64)
    child = np.concatenate((egraph.children, egraph.roots)).astype(np.int32)
    ptr, child = unique_children(ptr, child)
    finite = np.isfinite(cost)
    provided = derivable(head, ptr, child, finite, root + 1)
    lost = [r for r in egraph.roots.tolist() if not provided[r]]
    if lost:
        raise InfeasibleError(
            f"root {egraph.class_name(lost[0])} has no finite, acyclic derivation "
            f"({len(lost)} of {len(egraph.roots)} roots): "
            "every way to build it is forbidden, missing or cyclic"
        )
    whole = Problem(
        head=head,
        cost=cost,
        ptr=ptr,
        child=child,
        n_classes=root + 1,
        part_ptr=np.minimum(np.arange(n + 2, dtype=np.int64), n),
        part=np.arange(n, dtype=np.int32),
        part_class=egraph.node_class,
        default=np.full(egraph.n_classes, -1, dtype=np.int32),
    )
    return restrict(whole, usable(head, ptr, child, finite, root + 1, root))


def restrict(problem: Problem, keep: Mask) -> Problem:
    """The problem with only the e-nodes of a mask, and its e-classes numbered anew without the empty ones.

    The root e-node must be kept, and every kept e-node's children must keep an e-node.
    """
    head = problem.head[keep]
    occupied = np.zeros(problem.n_classes, dtype=bool)
    occupied[head] = True
    number = (np.cumsum(occupied) - 1).astype(np.int32)
    ptr, child = keep_rows(problem.ptr, problem.child, keep)
    part_ptr, part = keep_rows(problem.part_ptr, problem.part, keep)
    return replace(
        problem,
        head=number[head],
        cost=problem.cost[keep],
        ptr=ptr,
        child=number[child],
        n_classes=int(occupied.sum()),
        part_ptr=part_ptr,
        part=part,
    )
