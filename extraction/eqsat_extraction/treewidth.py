"""Exact extraction by dynamic programming where the e-graph is tree-like.

Every e-class is a variable whose value is one of its e-nodes or "not needed"; an e-node that reads another
e-class forbids that one to be "not needed". Costs are unary and constraints binary, so eliminating the variables one
by one, cheapest table first, solves the problem in time exponential only in the width met (bucket
elimination; Dechter 1999). Acyclicity is not seen: the value is a lower bound, and the optimum where the
choice is acyclic.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from ._graph import members, prune
from .egraph import Floats, Ints, Offsets
from .problem import Problem

TABLE = 1 << 18
"""Entries of the largest table that is worth building."""

Table = tuple[tuple[int, ...], Floats]


def eliminate(problem: Problem, table_limit: int = TABLE) -> tuple[Ints | None, float] | None:
    """The optimum without regard to cycles: a choice, or None where it is cyclic, and its cost, a lower bound.

    None when some table would have more than `table_limit` entries.
    """
    ptr, nodes = members(problem.head, problem.n_classes)
    sizes = [int(size) + 1 for size in np.diff(ptr)]
    sizes[problem.root] = 1
    order = _order(problem, sizes, table_limit)
    if order is None:
        return None
    buckets: list[list[Table]] = [[] for _ in range(problem.n_classes)]
    place = {c: k for k, c in enumerate(order)}
    for table in _tables(problem, ptr, nodes, sizes):
        buckets[min(table[0], key=place.__getitem__)].append(table)
    value = 0.0
    decisions: list[tuple[int, tuple[int, ...], NDArray[np.intp]]] = []
    for c in order:
        scope = tuple(sorted({v for names, _ in buckets[c] for v in names}, key=place.__getitem__))
        total = np.zeros([sizes[v] for v in scope])
        for names, entries in buckets[c]:
            by_place = sorted(names, key=place.__getitem__)
            shape = [sizes[v] if v in names else 1 for v in scope]
            total = total + entries.transpose([names.index(v) for v in by_place]).reshape(shape)
        decisions.append((c, scope[1:], total.argmin(axis=0)))
        rest = total.min(axis=0)
        if scope[1:]:
            buckets[scope[1]].append((scope[1:], rest))
        else:
            value += float(rest)
    pick: dict[int, int] = {}
    for c, scope, best in reversed(decisions):
        pick[c] = int(best[tuple(pick[v] for v in scope)])
    choice = np.full(problem.n_classes, -1, dtype=np.int32)
    choice[problem.root] = problem.n_nodes - 1
    for c, k in pick.items():
        if c != problem.root and k < sizes[c] - 1:
            choice[c] = nodes[ptr[c] + k]
    pruned, cost = prune(problem.ptr, problem.child, problem.cost, choice, problem.root)
    return (pruned if np.isfinite(cost) else None), value


def _tables(problem: Problem, ptr: Offsets, nodes: Ints, sizes: list[int]) -> list[Table]:
    """Unary costs, and one table per pair (e-class, child): infinite where an e-node lacks its child."""
    tables: list[Table] = []
    pairs: dict[tuple[int, int], list[int]] = {}
    for c in range(problem.n_classes):
        members_of = nodes[ptr[c] : ptr[c + 1]]
        unary = np.zeros(sizes[c])
        unary[: len(members_of)] = problem.cost[members_of]
        tables.append(((c,), unary))
        for k, node in enumerate(members_of.tolist()):
            for d in problem.child[problem.ptr[node] : problem.ptr[node + 1]].tolist():
                pairs.setdefault((c, d), []).append(k)
    for (c, d), readers in pairs.items():
        table = np.zeros((sizes[c], sizes[d]))
        table[readers, -1] = np.inf
        tables.append(((c, d), table))
    return tables


def _order(problem: Problem, sizes: list[int], table_limit: int) -> list[int] | None:
    """An elimination order by least table size, or None when some table would be too large."""
    neighbours: list[set[int]] = [set() for _ in range(problem.n_classes)]
    for node, c in enumerate(problem.head.tolist()):
        for d in problem.child[problem.ptr[node] : problem.ptr[node + 1]].tolist():
            neighbours[c].add(d)
            neighbours[d].add(c)
    from heapq import heapify, heappop, heappush

    def width(c: int) -> int:
        return prod((sizes[v] for v in neighbours[c]), start=sizes[c])

    queue = [(width(c), c) for c in range(problem.n_classes)]
    heapify(queue)
    done = bytearray(problem.n_classes)
    order: list[int] = []
    while queue:
        size, c = heappop(queue)
        if done[c]:
            continue
        now = width(c)
        if now > size:
            heappush(queue, (now, c))
            continue
        if now > table_limit:
            return None
        done[c] = 1
        order.append(c)
        around = neighbours[c]
        for v in around:
            neighbours[v] |= around
            neighbours[v] -= {v, c}
            heappush(queue, (width(v), v))
    return order
