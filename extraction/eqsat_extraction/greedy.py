"""Upper bounds at once: cheapest trees and DAG-greedy, both on compiled arrays."""

from __future__ import annotations

import numpy as np

from ._graph import cheapest_trees, heap_pop, heap_push, invert, prune
from ._jit import jit
from .egraph import Floats, Ints, Offsets
from .problem import Problem

POOL = 50_000_000
"""Entries of e-class sets (4 bytes each) above which DAG-greedy gives up and trees are used."""


def tree_choice(problem: Problem, guide: Floats | None = None) -> tuple[Ints, float]:
    """The choice whose tree cost is least, and its DAG cost. `guide` (n,) replaces the costs that choose."""
    costs = problem.cost if guide is None else guide
    _, choice, _ = cheapest_trees(problem.head, costs, problem.ptr, problem.child, problem.n_classes)
    return prune(problem.ptr, problem.child, problem.cost, choice, problem.root)


def greedy_choice(problem: Problem, guide: Floats | None = None, pool: int = POOL) -> tuple[Ints, float]:
    """DAG-greedy: every e-class takes the e-node whose own derivation, shared parts once, is cheapest.

    `guide` (n,) replaces the costs that choose; the returned cost is the true one. Falls back to
    `tree_choice` when the sets of e-classes would outgrow `pool` entries.
    """
    costs = problem.cost if guide is None else guide
    _, choice = cheapest_dags(problem.head, costs, problem.ptr, problem.child, problem.n_classes, pool)
    if choice[problem.root] < 0:
        return tree_choice(problem, guide)
    return prune(problem.ptr, problem.child, problem.cost, choice, problem.root)


@jit
def cheapest_dags(
    head: Ints, cost: Floats, ptr: Offsets, child: Ints, n_classes: int, pool_limit: int
) -> tuple[Floats, Ints]:
    """DAG-greedy cost and e-node of every e-class, in one label-setting sweep.

    An e-node's value, the cost of the union of its children's derivations plus its own, is never below a
    child's value, so e-classes settle in order of value and every e-node is evaluated once. A settled
    derivation is kept as the list of its e-classes. The root stays unchosen when the lists outgrow the limit.
    """
    n = len(head)
    reader_ptr, reader = invert(ptr, child, n_classes)
    missing = np.empty(n, dtype=np.int64)
    best = np.full(n_classes, np.inf)
    choice = np.full(n_classes, -1, dtype=np.int32)
    price = np.zeros(n_classes)
    settled = np.zeros(n_classes, dtype=np.bool_)
    keys = np.empty(n_classes, dtype=np.float64)
    items = np.empty(n_classes, dtype=np.int32)
    where = np.full(n_classes, -1, dtype=np.int32)
    stamp = np.full(n_classes, -1, dtype=np.int64)
    start = np.zeros(n_classes, dtype=np.int64)
    stop = np.zeros(n_classes, dtype=np.int64)
    pool = np.empty(1024, dtype=np.int32)
    used = 0
    size = 0
    for i in range(n):
        missing[i] = ptr[i + 1] - ptr[i]
        if missing[i] == 0 and cost[i] < best[head[i]]:
            best[head[i]] = cost[i]
            choice[head[i]] = i
            size = heap_push(keys, items, where, size, head[i], cost[i])
    while size:
        size = heap_pop(keys, items, where, size)
        c = items[size]
        settled[c] = True
        i = choice[c]
        price[c] = cost[i]
        mark = np.int64(n + c)
        start[c] = used
        room = 1
        for k in range(ptr[i], ptr[i + 1]):
            room += stop[child[k]] - start[child[k]]
        if used + room > len(pool):
            if used + room > pool_limit:
                choice[n_classes - 1] = -1
                return best, choice
            bigger = np.empty(max(2 * len(pool), used + room), dtype=np.int32)
            bigger[:used] = pool[:used]
            pool = bigger
        for k in range(ptr[i], ptr[i + 1]):
            d = child[k]
            for j in range(start[d], stop[d]):
                e = pool[j]
                if stamp[e] != mark:
                    stamp[e] = mark
                    pool[used] = e
                    used += 1
        pool[used] = c
        used += 1
        stop[c] = used
        for r in range(reader_ptr[c], reader_ptr[c + 1]):
            i = reader[r]
            missing[i] -= 1
            h = head[i]
            if missing[i] or settled[h]:
                continue
            value = cost[i]
            for k in range(ptr[i], ptr[i + 1]):
                d = child[k]
                for j in range(start[d], stop[d]):
                    e = pool[j]
                    if stamp[e] != i:
                        stamp[e] = i
                        value += price[e]
                if value >= best[h]:
                    break
            if value < best[h]:
                best[h] = value
                choice[h] = i
                size = heap_push(keys, items, where, size, h, value)
    return best, choice
