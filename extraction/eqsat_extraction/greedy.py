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
    child's value, so e-classes settle in order of value and every e-node is evaluated once.

    A settled derivation is its largest child's and what it adds, so derivations are a tree: `place` is an
    e-class's node in it (0 has none), and the e-classes that cost anything of a derivation are those of its
    node and of all above. What two have in common above where their paths meet is never walked, and a deep
    network whose branches join soon is settled in time linear in its depth. The root stays unchosen when the
    additions outgrow the limit.
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
    place = np.zeros(n_classes, dtype=np.int32)
    above = np.zeros(n_classes + 1, dtype=np.int32)
    depth = np.zeros(n_classes + 1, dtype=np.int32)
    length = np.zeros(n_classes + 1, dtype=np.int64)
    start = np.zeros(n_classes + 2, dtype=np.int64)
    stamp = np.full(n_classes, -1, dtype=np.int64)
    seen = np.full(n_classes + 1, -1, dtype=np.int64)
    pool = np.empty(1024, dtype=np.int32)
    places, mark, size = 1, 0, 0
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
        largest = _largest(child, ptr[i], ptr[i + 1], place, length)
        mark += 1
        _, pool, used = _added(
            child, ptr[i], ptr[i + 1], largest, np.inf,
            price, place, above, depth, start, pool, start[places], stamp, seen, mark,
        )  # fmt: skip
        if used > pool_limit:
            choice[n_classes - 1] = -1
            return best, choice
        if price[c] > 0.0:
            pool = _with_room(pool, used + 1)
            pool[used] = c
            used += 1
        place[c] = 0 if largest < 0 else place[largest]
        if used > start[places]:
            above[places] = place[c]
            depth[places] = depth[place[c]] + 1
            length[places] = length[place[c]] + used - start[places]
            place[c] = places
            places += 1
            start[places] = used
        for r in range(reader_ptr[c], reader_ptr[c + 1]):
            i = reader[r]
            missing[i] -= 1
            h = head[i]
            if missing[i] or settled[h]:
                continue
            largest = _largest(child, ptr[i], ptr[i + 1], place, length)
            value = cost[i] + best[largest]
            if value >= best[h]:
                continue
            mark += 1
            more, _, _ = _added(
                child, ptr[i], ptr[i + 1], largest, best[h] - value,
                price, place, above, depth, start, pool, -1, stamp, seen, mark,
            )  # fmt: skip
            value += more
            if value < best[h]:
                best[h] = value
                choice[h] = i
                size = heap_push(keys, items, where, size, h, value)
    return best, choice


@jit
def _largest(child: Ints, first: int, last: int, place: Ints, length: Offsets) -> int:
    """The child with most in its derivation; -1 where there is none."""
    largest = -1
    for k in range(first, last):
        if largest < 0 or length[place[child[k]]] > length[place[largest]]:
            largest = child[k]
    return largest


@jit
def _added(
    child: Ints, first: int, last: int, largest: int, limit: float,
    price: Floats, place: Ints, above: Ints, depth: Ints, start: Offsets, pool: Ints, used: int,
    stamp: Offsets, seen: Offsets, mark: int,
) -> tuple[float, Ints, int]:  # fmt: skip
    """The cost of what derivations of the children add to the `largest` one's, up to where it reaches `limit`; and
    the pool, with what they add after its first `used` entries, unless that is negative, and how many it has then."""
    value = 0.0
    if largest < 0:
        return value, pool, used
    meet = place[largest]
    for k in range(first, last):
        p = place[child[k]]
        if p == 0:
            continue  # it costs nothing, and the way up to it is long
        while p != meet:
            if depth[p] >= depth[meet]:
                p = above[p]
            else:
                meet = above[meet]
    p = place[largest]
    while p != meet:
        for j in range(start[p], start[p + 1]):
            stamp[pool[j]] = mark
        seen[p] = mark
        p = above[p]
    seen[meet] = mark
    for k in range(first, last):
        p = place[child[k]]
        while p != 0 and seen[p] != mark:
            for j in range(start[p], start[p + 1]):
                e = pool[j]
                if stamp[e] != mark:
                    stamp[e] = mark
                    value += price[e]
                    if used >= 0:
                        pool = _with_room(pool, used + 1)
                        pool[used] = e
                        used += 1
            if value >= limit:
                return value, pool, used
            seen[p] = mark
            p = above[p]
    return value, pool, used


@jit
def _with_room(pool: Ints, entries: int) -> Ints:
    if entries <= len(pool):
        return pool
    bigger = np.empty(max(2 * len(pool), entries), dtype=np.int32)
    bigger[: len(pool)] = pool
    return bigger
