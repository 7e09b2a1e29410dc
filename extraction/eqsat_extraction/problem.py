"""The form extractors work on: one artificial root, sets of children, and the way back to the e-graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ._graph import derivable, joined, keep_rows, unique_children, usable
from .egraph import EGraph, Floats, Ints, Mask, Offsets
from .errors import InfeasibleError

_NONE = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class Problem:
    """An extraction problem with a single root e-class, the last one, that holds a single e-node, the last one.

    `head` (n,) is the e-class of every e-node, `cost` (n,) its finite cost and `child[ptr[i]:ptr[i + 1]]` its
    distinct child e-classes, ascending. An e-node stands for the original e-nodes
    `part[part_ptr[i]:part_ptr[i + 1]]`, of original e-classes `part_class[part[...]]`; `decided` are original
    e-nodes that provide e-classes no longer in the problem, should they be needed. `offset` is a cost that
    every solution pays.
    """

    head: Ints
    cost: Floats
    ptr: Offsets
    child: Ints
    n_classes: int
    part_ptr: Offsets
    part: Ints
    part_class: Ints
    decided: Ints
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

    def picked(self, choice: Ints) -> Ints:
        """The original e-nodes of a choice (n_classes,) of this problem, spares included."""
        return np.concatenate((self.decided, self.parts_of(choice[choice >= 0])))


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
        decided=_NONE,
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


def require(problem: Problem, classes: Ints) -> Problem:
    """The problem whose root also reads these e-classes."""
    first = problem.ptr[-2]
    row = np.union1d(problem.child[first:], classes).astype(np.int32)
    ptr = problem.ptr.copy()
    ptr[-1] = first + len(row)
    return replace(problem, ptr=ptr, child=np.concatenate((problem.child[:first], row)))


def split(problem: Problem) -> list[Problem]:
    """Independent problems, one per part that only the root's e-node holds together; offsets 0, none decided.

    Their solutions together solve the problem, at the sum of their costs and its offset. After presolving this is
    the decomposition at the articulation points that every solution needs: presolving has paid for such an
    e-class and lets the root alone read it, but for its own strongly connected component, so what lies above
    and below shares nothing more, neither a cost nor a cycle.
    """
    if problem.n_nodes == 1:
        return [problem]
    part = joined(problem.head, problem.ptr, problem.child, problem.n_classes)
    root_children = problem.child[problem.ptr[-2] :]
    labels = np.unique(part[root_children])
    if len(labels) == 1:
        return [problem]
    order = np.argsort(part[problem.head[:-1]], kind="stable")
    bounds = np.searchsorted(part[problem.head[:-1]][order], labels, side="left")
    ends = np.searchsorted(part[problem.head[:-1]][order], labels, side="right")
    return [
        _part(problem, np.sort(order[first:last]), root_children[part[root_children] == label])
        for label, first, last in zip(labels, bounds, ends, strict=True)
    ]


def _part(problem: Problem, nodes: Ints, roots: Ints) -> Problem:
    """The problem of some e-nodes, closed under children, with these root e-classes."""
    classes = np.unique(problem.head[nodes])
    sizes = np.diff(problem.ptr)[nodes]
    child = problem.child[spans(problem.ptr, nodes)]
    return Problem(
        head=np.append(np.searchsorted(classes, problem.head[nodes]), len(classes)).astype(np.int32),
        cost=np.append(problem.cost[nodes], 0.0),
        ptr=np.concatenate(([0], np.cumsum(np.append(sizes, len(roots))))).astype(np.int64),
        child=np.searchsorted(classes, np.concatenate((child, roots))).astype(np.int32),
        n_classes=len(classes) + 1,
        part_ptr=np.concatenate(([0], np.cumsum(np.append(np.diff(problem.part_ptr)[nodes], 0)))).astype(
            np.int64
        ),
        part=problem.part[spans(problem.part_ptr, nodes)],
        part_class=problem.part_class,
        decided=_NONE,
    )


def spans(ptr: Offsets, rows: Ints) -> Offsets:
    """The positions of these rows' entries, row after row."""
    sizes = np.diff(ptr)[rows]
    ends = np.cumsum(sizes)
    starts: Offsets = np.repeat(ptr[:-1][rows] - (ends - sizes), sizes)
    return starts + np.arange(len(starts))
