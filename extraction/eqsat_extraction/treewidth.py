"""Exact extraction by dynamic programming where the e-graph is tree-like.

Every e-class has two variables: whether it is needed, and which e-node provides it. An e-node that reads an
e-class forbids that one to be left out. In a small strongly connected component "needed" is a level, and e-nodes
read lower levels of their component, so cycles are excluded. Costs and constraints are small tables; eliminating the
variables one by one, smallest table first, solves the problem in time exponential only in the width met (bucket
elimination; Dechter 1999). Acyclicity is not seen in larger components: the value is then a lower bound, and the
optimum where the choice is acyclic.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import prod

import numpy as np
from numpy.typing import NDArray

from ._graph import components, members, prune
from .egraph import Floats, Ints
from .problem import Problem

TABLE = 1 << 18
"""Entries of the largest table that is worth building."""
LEVELS = 6
"""E-classes of the largest strongly connected component in which cycles are excluded."""

Table = tuple[tuple[int, ...], Floats]


def eliminate(problem: Problem, table_limit: int = TABLE) -> tuple[Ints | None, float] | None:
    """The optimum: a choice (n_classes,) and its cost; None for the choice, and a lower bound, where it is cyclic.

    None when some table would have more than `table_limit` entries.
    """
    ptr, nodes = members(problem.head, problem.n_classes)
    levels = _levels(problem)
    sizes = [size for c in range(problem.root) for size in (levels[c] + 1, int(ptr[c + 1] - ptr[c]) + 1)]
    tables = _tables(problem, levels)
    order = _order([names for names, _ in tables], sizes, table_limit)
    if order is None:
        return None
    buckets: list[list[Table]] = [[] for _ in sizes]
    place = {v: k for k, v in enumerate(order)}
    for table in tables:
        buckets[min(table[0], key=place.__getitem__)].append(table)
    value = 0.0
    decisions: list[tuple[int, tuple[int, ...], NDArray[np.intp]]] = []
    for v in order:
        scope = tuple(sorted({u for names, _ in buckets[v] for u in names}, key=place.__getitem__))
        total = np.zeros([sizes[u] for u in scope])
        for names, entries in buckets[v]:
            by_place = sorted(names, key=place.__getitem__)
            shape = [sizes[u] if u in names else 1 for u in scope]
            total += entries.transpose([names.index(u) for u in by_place]).reshape(shape)
        decisions.append((v, scope[1:], total.argmin(axis=0)))
        rest = total.min(axis=0)
        if scope[1:]:
            buckets[scope[1]].append((scope[1:], rest))
        else:
            value += float(rest)
    pick: dict[int, int] = {}
    for v, scope, best in reversed(decisions):
        pick[v] = int(best[tuple(pick[u] for u in scope)])
    choice = np.full(problem.n_classes, -1, dtype=np.int32)
    choice[problem.root] = problem.n_nodes - 1
    for c in range(problem.root):
        k = pick[2 * c + 1]
        if k < sizes[2 * c + 1] - 1:
            choice[c] = nodes[ptr[c] + k]
    pruned, cost = prune(problem.ptr, problem.child, problem.cost, choice, problem.root)
    return (pruned if np.isfinite(cost) else None), value


def _levels(problem: Problem) -> list[int]:
    """How many levels every e-class has: the size of its component, 1 where cycles are not looked at."""
    component = components(problem.head, problem.ptr, problem.child, problem.n_classes)
    size = np.bincount(component)[component]
    return [int(k) for k in np.where(size <= LEVELS, size, 1)]


def _tables(problem: Problem, levels: list[int]) -> list[Table]:
    """Costs and constraints over variables `2 * c`, the level of an e-class (0: not needed), and `2 * c + 1`.

    The latter is the number of the e-node among the e-class's (the last value: none).
    """
    component = components(problem.head, problem.ptr, problem.child, problem.n_classes)
    ptr, nodes = members(problem.head, problem.n_classes)
    tables: list[Table] = []
    for c in range(problem.root):
        mine = nodes[ptr[c] : ptr[c + 1]]
        provided = np.zeros((levels[c] + 1, len(mine) + 1))
        provided[:, :-1] = problem.cost[mine]
        provided[1:, -1] = np.inf
        tables.append(((2 * c, 2 * c + 1), provided))
        readers: dict[int, list[int]] = {}
        for k, node in enumerate(mine.tolist()):
            for d in problem.child[problem.ptr[node] : problem.ptr[node + 1]].tolist():
                readers.setdefault(d, []).append(k)
        for d, reading in readers.items():
            if levels[c] > 1 and component[c] == component[d]:
                ordered = np.zeros((len(mine) + 1, levels[c] + 1, levels[d] + 1))
                above = np.arange(levels[c] + 1)[:, None] > np.arange(levels[d] + 1)
                above[:, 0] = False
                ordered[reading] = np.where(above, 0.0, np.inf)
                tables.append(((2 * c + 1, 2 * c, 2 * d), ordered))
            else:
                needed = np.zeros((len(mine) + 1, levels[d] + 1))
                needed[reading, 0] = np.inf
                tables.append(((2 * c + 1, 2 * d), needed))
    for d in problem.child[problem.ptr[-2] :].tolist():
        needed = np.zeros(levels[d] + 1)
        needed[0] = np.inf
        tables.append(((2 * d,), needed))
    return tables


def _order(scopes: list[tuple[int, ...]], sizes: list[int], table_limit: int) -> list[int] | None:
    """An elimination order by least table size, or None when some table would be too large."""
    neighbours: list[set[int]] = [set() for _ in sizes]
    for scope in scopes:
        for v in scope:
            neighbours[v].update(scope)
            neighbours[v].discard(v)

    def width(v: int) -> int:
        return prod((sizes[u] for u in neighbours[v]), start=sizes[v])

    queue = [(width(v), v) for v in range(len(sizes))]
    heapify(queue)
    done = bytearray(len(sizes))
    order: list[int] = []
    while queue:
        size, v = heappop(queue)
        if done[v]:
            continue
        now = width(v)
        if now > size:
            heappush(queue, (now, v))
            continue
        if now > table_limit:
            return None
        done[v] = 1
        order.append(v)
        around = neighbours[v]
        for u in around:
            neighbours[u] |= around
            neighbours[u] -= {u, v}
            heappush(queue, (width(u), u))
    return order
