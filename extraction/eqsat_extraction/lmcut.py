"""Lower bounds by landmark cuts: extraction with DAG cost is delete-free planning.

E-classes are facts and e-nodes are actions that need all their children. LM-cut (Helmert and Domshlak, ICAPS
2009) repeatedly finds a set of e-nodes of which every solution uses one, charges the least of their costs to
the bound, and lowers them by it. It sees that derivations are acyclic, which the plain linear relaxation does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._budget import Budget
from ._graph import critical_paths, heap_pop, heap_push
from ._jit import jit
from .egraph import Floats, Ints, Mask, Offsets
from .problem import Problem

CHUNK = 200_000
"""Edge visits between two looks at the budget."""


@dataclass(frozen=True, eq=False)
class LandmarkBound:
    """A bound, what is left of every e-node's cost (n,), and the cuts: one e-node of each row is always used.

    `reduced` prices e-nodes against the bound: a solution costs at least `bound` plus the sum of `reduced`
    over its e-nodes.
    """

    bound: float
    reduced: Floats
    cut_ptr: Offsets
    cut: Ints


def critical_path(problem: Problem) -> float:
    """What the dearest chain of e-nodes costs that no solution can avoid: a bound in one walk, `offset` not included.
    Of a deep network without branches that cost anything it is the optimum."""
    rank = np.arange(problem.n_classes, dtype=np.int32)
    value, *_ = critical_paths(
        problem.head, problem.cost, problem.ptr, problem.child, problem.n_classes, rank
    )
    return float(value[problem.root])


def landmark_bound(problem: Problem, budget: Budget, *, tie_seed: int = 0) -> LandmarkBound:
    """LM-cut on a problem, `offset` not included; stops early, still valid, when the budget is spent.

    `tie_seed` permutes which of several equally dear children an e-node is held to wait for; 0 is by number.
    """
    rank = np.arange(problem.n_classes, dtype=np.int32)
    if tie_seed:
        rank = np.random.default_rng(tie_seed).permutation(rank)
    value, waits_for, _, reader_ptr, reader = critical_paths(
        problem.head, problem.cost, problem.ptr, problem.child, problem.n_classes, rank
    )
    state = (value, waits_for, reader_ptr, reader)
    bound = 0.0
    reduced = problem.cost.copy()
    pieces: list[Ints] = []
    sizes = [np.zeros(1, dtype=np.int64)]
    while not budget.spent:
        raised, done, work, cut_sizes, cut = raise_bound(
            problem.head,
            reduced,
            problem.ptr,
            problem.child,
            problem.n_classes,
            rank,
            *state,
            CHUNK,
            np.inf,
        )
        bound += raised
        budget.charge(work / 1000)
        pieces.append(cut)
        sizes.append(cut_sizes)
        if done:
            break
    return LandmarkBound(
        bound,
        reduced,
        np.cumsum(np.concatenate(sizes)),
        np.concatenate([np.empty(0, dtype=np.int32), *pieces]),
    )


@jit
def raise_bound(
    head: Ints,
    reduced: Floats,
    ptr: Offsets,
    child: Ints,
    n_classes: int,
    rank: Ints,
    value: Floats,
    waits_for: Ints,
    reader_ptr: Offsets,
    reader: Ints,
    work_limit: int,
    enough: float,
) -> tuple[float, bool, int, Offsets, Ints]:
    """Cuts until the root's value is zero, the bound has risen `enough`, or the work is done.

    Updates `reduced`, `value` and `waits_for`.

    Values only fall as costs fall, so they are updated from the cut's e-nodes onwards (Pommerening and
    Helmert, ICAPS 2013). Returns what the bound rose by, whether the root is at zero, the work, and the cuts.
    """
    root = n_classes - 1
    class_ptr = np.zeros(n_classes + 1, dtype=np.int64)
    for c in head:
        class_ptr[c + 1] += 1
    for c in range(n_classes):
        class_ptr[c + 1] += class_ptr[c]
    fill = class_ptr[:-1].copy()
    class_node = np.empty(len(head), dtype=np.int32)
    leaves = np.empty(len(head), dtype=np.int32)
    n_leaves = 0
    for i in range(len(head)):
        class_node[fill[head[i]]] = i
        fill[head[i]] += 1
        if ptr[i] == ptr[i + 1]:
            leaves[n_leaves] = i
            n_leaves += 1
    scale = 0.0
    for i in range(len(reduced)):
        if reduced[i] < np.inf:
            scale = max(scale, reduced[i])
    tiny = 1e-13 * max(scale, value[root])
    keys = np.empty(n_classes, dtype=np.float64)
    items = np.empty(n_classes, dtype=np.int32)
    where = np.full(n_classes, -1, dtype=np.int32)
    zone = np.zeros(n_classes, dtype=np.int8)  # 1 the root's zero-cost side, 2 the leaves' side
    stack = np.empty(n_classes, dtype=np.int32)
    seen = np.empty(2 * n_classes, dtype=np.int32)
    sizes = np.empty(256, dtype=np.int64)
    cuts = np.empty(1024, dtype=np.int32)
    n_cuts, used, work = 0, 0, 0
    raised = 0.0
    while value[root] > tiny and work < work_limit and raised < enough:
        n_seen = 0
        zone[root] = 1
        seen[n_seen] = root
        n_seen += 1
        stack[0] = root
        depth = 1
        while depth:
            depth -= 1
            c = stack[depth]
            for j in range(class_ptr[c], class_ptr[c + 1]):
                i = class_node[j]
                work += 1
                d = waits_for[i]
                if reduced[i] <= tiny and d >= 0 and zone[d] == 0:
                    zone[d] = 1
                    seen[n_seen] = d
                    n_seen += 1
                    stack[depth] = d
                    depth += 1
        first = used
        for j in range(n_leaves + 1):
            if j < n_leaves:
                i = leaves[j]
                c = head[i]
                if zone[c] == 1:
                    if used == len(cuts):
                        cuts = np.concatenate((cuts, np.empty_like(cuts)))
                    cuts[used] = i
                    used += 1
                elif zone[c] == 0:
                    zone[c] = 2
                    seen[n_seen] = c
                    n_seen += 1
                    stack[depth] = c
                    depth += 1
            while depth:
                depth -= 1
                c = stack[depth]
                for k in range(reader_ptr[c], reader_ptr[c + 1]):
                    work += 1
                    i = reader[k]
                    if waits_for[i] != c:
                        continue
                    d = head[i]
                    if zone[d] == 1:
                        if used == len(cuts):
                            cuts = np.concatenate((cuts, np.empty_like(cuts)))
                        cuts[used] = i
                        used += 1
                    elif zone[d] == 0:
                        zone[d] = 2
                        seen[n_seen] = d
                        n_seen += 1
                        stack[depth] = d
                        depth += 1
        work += n_leaves + 1
        # An e-node with a child on neither side cannot be the first to cross: it leaves the cut.
        last = used
        used = first
        least = np.inf
        for k in range(first, last):
            i = cuts[k]
            crosses = True
            for q in range(ptr[i], ptr[i + 1]):
                if zone[child[q]] != 2:
                    crosses = False
                    break
            if crosses:
                cuts[used] = i
                used += 1
                least = min(least, reduced[i])
        raised += least
        if n_cuts == len(sizes):
            sizes = np.concatenate((sizes, np.empty_like(sizes)))
        sizes[n_cuts] = used - first
        n_cuts += 1
        for k in range(n_seen):
            zone[seen[k]] = 0
        size = 0
        for k in range(first, used):
            i = cuts[k]
            reduced[i] = max(0.0, reduced[i] - least)
            below = value[waits_for[i]] if waits_for[i] >= 0 else 0.0
            if reduced[i] + below < value[head[i]]:
                value[head[i]] = reduced[i] + below
                size = heap_push(keys, items, where, size, head[i], value[head[i]])
        while size:
            size = heap_pop(keys, items, where, size)
            c = items[size]
            for k in range(reader_ptr[c], reader_ptr[c + 1]):
                work += 1
                i = reader[k]
                if waits_for[i] != c:
                    continue
                w = c
                for q in range(ptr[i], ptr[i + 1]):
                    d = child[q]
                    if value[d] > value[w] or (value[d] == value[w] and rank[d] > rank[w]):
                        w = d
                waits_for[i] = w
                if reduced[i] + value[w] < value[head[i]]:
                    value[head[i]] = reduced[i] + value[w]
                    size = heap_push(keys, items, where, size, head[i], value[head[i]])
    return raised, value[root] <= tiny, work, sizes[:n_cuts].copy(), cuts[:used].copy()


def probe(problem: Problem, price: Floats, threshold: float, budget: Budget) -> tuple[Mask, Mask]:
    """E-nodes (n,) that may be in, and e-classes (n_classes,) that may be out of, a solution priced at most so.

    `price` (n,) prices solutions against some bound, `threshold` is the most that a better solution can pay.
    Every e-node in turn is made compulsory, and every e-class in turn is forbidden, and LM-cut on the prices
    says what is then paid at least. Stops early, with the rest unprobed, when the budget is spent.
    """
    allowed = np.ones(problem.n_nodes, dtype=bool)
    optional = np.ones(problem.n_classes, dtype=bool)
    optional[problem.root] = False
    step = max(1, CHUNK // max(1, len(problem.child)))
    for first in range(0, problem.n_nodes - 1 + problem.n_classes - 1, step):
        if budget.spent:
            break
        work = _probe(
            problem.head,
            price,
            problem.ptr,
            problem.child,
            problem.n_classes,
            threshold,
            first,
            first + step,
            allowed,
            optional,
        )
        budget.charge(work / 1000)
    return allowed, optional


@jit
def _probe(
    head: Ints,
    price: Floats,
    ptr: Offsets,
    child: Ints,
    n_classes: int,
    threshold: float,
    first: int,
    last: int,
    allowed: Mask,
    optional: Mask,
) -> int:
    """Probe numbers [first, last): e-nodes, then e-classes. Updates the masks; returns the work."""
    n = len(head)
    rank = np.arange(n_classes).astype(np.int32)
    longer_ptr = ptr.copy()
    longer_ptr[n] += 1
    longer = np.append(child, np.int32(0))
    prices = price.copy()
    work = 0
    for number in range(first, min(last, n - 1 + n_classes - 1)):
        if number < n - 1:
            c = head[number]
            if not allowed[number]:
                continue
            longer[-1] = c
            for i in range(n):
                prices[i] = np.inf if not allowed[i] or (head[i] == c and i != number) else price[i]
            value, waits_for, _, reader_ptr, reader = critical_paths(
                head, prices, longer_ptr, longer, n_classes, rank
            )
            raised = value[n_classes - 1]
            if raised <= threshold:
                raised, _, spent, _, _ = raise_bound(
                    head, prices, longer_ptr, longer, n_classes, rank, value, waits_for, reader_ptr, reader,
                    1_000_000, threshold * (1 + 1e-9),
                )  # fmt: skip
                work += spent
            if raised > threshold:
                allowed[number] = False
        else:
            c = np.int32(number - (n - 1))
            for i in range(n):
                prices[i] = np.inf if not allowed[i] or head[i] == c else price[i]
            value, waits_for, _, reader_ptr, reader = critical_paths(
                head, prices, ptr, child, n_classes, rank
            )
            raised = value[n_classes - 1]
            if raised <= threshold:
                raised, _, spent, _, _ = raise_bound(
                    head, prices, ptr, child, n_classes, rank, value, waits_for, reader_ptr, reader,
                    1_000_000, threshold * (1 + 1e-9),
                )  # fmt: skip
                work += spent
            if raised > threshold:
                optional[c] = False
        work += 2 * len(child) + n
    return work
