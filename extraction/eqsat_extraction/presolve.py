"""Smaller problems with the same optimum: every step keeps at least one optimal solution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ._budget import Budget
from ._graph import (
    components,
    heap_pop,
    heap_push,
    invert,
    members,
    unique_children,
    usable,
)
from ._jit import jit
from .egraph import Floats, Ints, Mask, Offsets
from .greedy import cheapest_dags
from .problem import Problem, restrict

CLOSURE_CLASSES = 45_000
"""E-classes above which landmark closures (a bit matrix, 250 MB at this size) are not computed."""

WORDS = 2e9
WORDS_PER_SECOND = 5e8
"""Operations on words of that matrix that may be spent at all, and that a slow core does in a second."""
SETS = 20_000_000
"""Entries of e-class sets above which dear e-nodes are not looked for."""

Bits = np.ndarray[tuple[int, int], np.dtype[np.uint64]]


_NO_BITS: Bits = np.empty((0, 0), dtype=np.uint64)


def presolve(problem: Problem, budget: Budget) -> Problem:
    """The problem after all reductions, applied until none of them removes anything or the budget is spent.

    In order: e-nodes that are unreachable, underivable or their own child; e-classes with a free leaf, and
    free e-classes with one e-node (replaced by its children); dominated e-nodes; e-classes that one e-node alone
    reads (merged into it); e-nodes dearer than a whole derivation of their e-class; landmarks: e-classes that
    every solution needs are paid at once, and an e-node is dominated, or useless, in the light of everything
    its children need.
    """
    for _ in range(20):
        before = (problem.n_nodes, len(problem.child), problem.offset)
        problem = _cheap_passes(problem, budget)
        if budget.spent:
            break
        problem = _drop_costly(problem)
        if budget.spent:
            break
        if problem.n_nodes > 1 and problem.n_classes <= CLOSURE_CLASSES:
            problem = _landmarks(problem, budget)
        if (problem.n_nodes, len(problem.child), problem.offset) == before:
            break
    return problem


def _cheap_passes(problem: Problem, budget: Budget) -> Problem:
    for _ in range(40):
        budget.charge(len(problem.child) / 200)
        if budget.spent:
            break
        before = (problem.n_nodes, len(problem.child))
        for step in (_useful, _forward, _undominated, _inline):
            problem = step(problem)
            if budget.spent:
                return problem
        if (problem.n_nodes, len(problem.child)) == before:
            break
    return problem


def _useful(problem: Problem) -> Problem:
    """Without e-nodes that are unreachable, underivable or their own child."""
    return _clean(problem, np.ones(problem.n_nodes, dtype=bool))


def _undominated(problem: Problem) -> Problem:
    """Without e-nodes that another one replaces at no greater cost."""
    keep = undominated(problem.head, problem.cost, problem.ptr, problem.child, problem.n_classes, _NO_BITS)
    return _clean(problem, keep)


def _clean(problem: Problem, keep: Mask) -> Problem:
    """Without e-nodes outside the mask, and all that thereby becomes useless."""
    keep = usable(problem.head, problem.ptr, problem.child, keep, problem.n_classes, problem.root)
    return problem if keep.all() else restrict(problem, keep)


def _forward(problem: Problem) -> Problem:
    """Readers of an e-class that is free, or free but for its children, read the children instead."""
    action = forwarding(problem.head, problem.cost, problem.ptr, problem.child, problem.n_classes)
    if np.all(action < 0):
        return problem
    ptr, child, alive = forward(problem.head, problem.ptr, problem.child, action, problem.n_classes)
    decided = np.concatenate((problem.decided, problem.parts_of(action[action >= 0])))
    smaller = replace(problem, ptr=ptr, child=child, decided=decided)
    return _clean(smaller, alive)


def _inline(problem: Problem) -> Problem:
    """E-classes that a single e-node reads are merged into it: one copy of the reader per member."""
    reader = lone_readers(problem.head, problem.ptr, problem.child, problem.n_classes)
    if np.all(reader < 0):
        return problem
    head, cost, ptr, child, part_ptr, part = inline(
        problem.head,
        problem.cost,
        problem.ptr,
        problem.child,
        problem.part_ptr,
        problem.part,
        problem.n_classes,
        reader,
    )
    ptr, child = unique_children(ptr, child)
    merged = replace(problem, head=head, cost=cost, ptr=ptr, child=child, part_ptr=part_ptr, part=part)
    return _useful(merged)


def _drop_costly(problem: Problem) -> Problem:
    """Without e-nodes that alone cost as much as a whole derivation of their e-class."""
    best, choice = cheapest_dags(
        problem.head, problem.cost, problem.ptr, problem.child, problem.n_classes, SETS
    )
    if choice[problem.root] < 0:
        return problem
    keep = problem.cost < best[problem.head]
    keep[choice[choice >= 0]] = True
    return _clean(problem, keep)


def _landmarks(problem: Problem, budget: Budget) -> Problem:
    """Reductions that follow from what every derivation of an e-class contains."""
    head, ptr, child = problem.head, problem.ptr, problem.child
    component = components(head, ptr, child, problem.n_classes)
    limit = min(WORDS, WORDS_PER_SECOND * budget.left / 4)
    order = np.argsort(component, kind="stable").astype(np.int32)
    closure = landmarks(head, ptr, child, problem.n_classes, order, limit)
    if not closure.shape[1]:
        return problem
    budget.charge(closure.size / 100)
    keep = undominated(head, problem.cost, ptr, child, problem.n_classes, closure)
    forced = np.unpackbits(closure[problem.root].view(np.uint8), bitorder="little")[: problem.n_classes]
    cheapest = np.full(problem.n_classes, np.inf)
    np.minimum.at(cheapest, head[keep], problem.cost[keep])
    paid = np.where(forced == 1, cheapest, 0.0)
    ptr, child = read_forced_once(head, ptr, child, forced.astype(np.bool_), component)
    rest = replace(
        problem,
        cost=np.maximum(problem.cost - paid[head], 0.0),
        ptr=ptr,
        child=child,
        offset=problem.offset + float(paid.sum()),
    )
    return _clean(rest, keep)


@jit
def forwarding(head: Ints, cost: Floats, ptr: Offsets, child: Ints, n_classes: int) -> Ints:
    """For every e-class the free e-node that may stand in for it (a leaf, or its only member), else -1.

    Members with children stand in only where that hardly lengthens the readers' rows.
    """
    class_ptr, class_node = members(head, n_classes)
    readers = np.zeros(n_classes, dtype=np.int64)
    for c in child:
        readers[c] += 1
    out = np.full(n_classes, -1, dtype=np.int32)
    for c in range(n_classes - 1):
        lone = class_ptr[c + 1] - class_ptr[c] == 1
        for j in range(class_ptr[c], class_ptr[c + 1]):
            i = class_node[j]
            width = ptr[i + 1] - ptr[i]
            if cost[i] == 0.0 and (width == 0 or (lone and (width - 1) * (readers[c] - 1) <= 16)):
                out[c] = i
                break
    return out


@jit
def forward(
    head: Ints, ptr: Offsets, child: Ints, action: Ints, n_classes: int
) -> tuple[Offsets, Ints, Mask]:
    """Rows in which e-classes with a stand-in are replaced by its children, to any depth.

    The mask leaves out e-nodes that would read their own e-class.
    """
    n = len(head)
    out_ptr = np.zeros(n + 1, dtype=np.int64)
    out = np.empty(2 * len(child) + 16, dtype=np.int32)
    alive = np.ones(n, dtype=np.bool_)
    stamp = np.full(n_classes, -1, dtype=np.int64)
    stack = np.empty(n_classes + 1, dtype=np.int32)
    size = 0
    for i in range(n):
        first = size
        depth = 0
        for k in range(ptr[i], ptr[i + 1]):
            if stamp[child[k]] != i:
                stamp[child[k]] = i
                stack[depth] = child[k]
                depth += 1
        while depth:
            depth -= 1
            c = stack[depth]
            if c == head[i]:
                alive[i] = False
            j = action[c]
            if j >= 0:
                for k in range(ptr[j], ptr[j + 1]):
                    if stamp[child[k]] != i:
                        stamp[child[k]] = i
                        stack[depth] = child[k]
                        depth += 1
            else:
                if size == len(out):
                    bigger = np.empty(2 * len(out), dtype=np.int32)
                    bigger[:size] = out
                    out = bigger
                out[size] = c
                size += 1
        out[first:size].sort()
        out_ptr[i + 1] = size
    return out_ptr, out[:size].copy(), alive


@jit
def undominated(head: Ints, cost: Floats, ptr: Offsets, child: Ints, n_classes: int, closure: Bits) -> Mask:
    """Which e-nodes no other of their e-class replaces at no greater cost, reading nothing new.

    "Nothing new" is a subset of the children or, with a `closure` (n_classes, words), of everything that the
    children need. An e-node whose children need its own e-class is useless.
    """
    n = len(head)
    keep = np.ones(n, dtype=np.bool_)
    class_ptr, class_node = members(head, n_classes)
    stamp = np.full(n_classes, -1, dtype=np.int64)
    words = closure.shape[1]
    union = np.zeros(words, dtype=np.uint64)
    one = np.uint64(1)
    for c in range(n_classes):
        for j in range(class_ptr[c], class_ptr[c + 1]):
            i = class_node[j]
            if words:
                union[:] = 0
                for k in range(ptr[i], ptr[i + 1]):
                    union |= closure[child[k]]
                if (union[c >> 6] >> np.uint64(c & 63)) & one:
                    keep[i] = False
                    continue
            else:
                for k in range(ptr[i], ptr[i + 1]):
                    stamp[child[k]] = i
            for q in range(class_ptr[c], class_ptr[c + 1]):
                other = class_node[q]
                if other == i or not keep[other] or cost[other] > cost[i]:
                    continue
                inside = True
                for k in range(ptr[other], ptr[other + 1]):
                    d = child[k]
                    inside = (union[d >> 6] >> np.uint64(d & 63)) & one == one if words else stamp[d] == i
                    if not inside:
                        break
                if inside:
                    keep[i] = False
                    break
    return keep


@jit
def lone_readers(head: Ints, ptr: Offsets, child: Ints, n_classes: int) -> Ints:
    """For every e-class the one e-node that reads it and may absorb it, else -1.

    No e-node absorbs two e-classes, or is absorbed while it absorbs; the root's e-node absorbs none; copies may
    not multiply the reader's other operands.
    """
    reader_ptr, reader = invert(ptr, child, n_classes)
    class_ptr, class_node = members(head, n_classes)
    busy = np.zeros(len(head), dtype=np.bool_)
    out = np.full(n_classes, -1, dtype=np.int32)
    for c in range(n_classes - 1):
        if reader_ptr[c + 1] - reader_ptr[c] != 1:
            continue
        i = reader[reader_ptr[c]]
        size = class_ptr[c + 1] - class_ptr[c]
        if head[i] == n_classes - 1 or head[i] == c or busy[i]:
            continue
        if (size - 1) * (ptr[i + 1] - ptr[i] - 1) > 2 * size + 4:
            continue
        free = True
        for j in range(class_ptr[c], class_ptr[c + 1]):
            free = free and not busy[class_node[j]]
        if free:
            out[c] = i
            busy[i] = True
            for j in range(class_ptr[c], class_ptr[c + 1]):
                busy[class_node[j]] = True
    return out


@jit
def inline(
    head: Ints,
    cost: Floats,
    ptr: Offsets,
    child: Ints,
    part_ptr: Offsets,
    part: Ints,
    n_classes: int,
    reader: Ints,
) -> tuple[Ints, Floats, Offsets, Ints, Offsets, Ints]:
    """The problem's arrays with e-classes absorbed by their reader; rows of children may repeat entries."""
    n = len(head)
    class_ptr, class_node = members(head, n_classes)
    absorbs = np.full(n, -1, dtype=np.int32)
    rows, width, parts = n, len(child), len(part)
    for c in range(n_classes):
        i = reader[c]
        if i >= 0:
            absorbs[i] = c
            size = class_ptr[c + 1] - class_ptr[c]
            rows += size
            width += size * (ptr[i + 1] - ptr[i])
            parts += size * (part_ptr[i + 1] - part_ptr[i])
    out_head = np.empty(rows, dtype=np.int32)
    out_cost = np.empty(rows, dtype=np.float64)
    out_ptr = np.zeros(rows + 1, dtype=np.int64)
    out_child = np.empty(width, dtype=np.int32)
    out_part_ptr = np.zeros(rows + 1, dtype=np.int64)
    out_part = np.empty(parts, dtype=np.int32)
    row, at, part_at = 0, 0, 0
    for i in range(n):
        if reader[head[i]] >= 0:
            continue
        c = absorbs[i]
        copies = 1 if c < 0 else class_ptr[c + 1] - class_ptr[c]
        for j in range(copies):
            out_head[row] = head[i]
            out_cost[row] = cost[i]
            for k in range(ptr[i], ptr[i + 1]):
                if child[k] != c:
                    out_child[at] = child[k]
                    at += 1
            for k in range(part_ptr[i], part_ptr[i + 1]):
                out_part[part_at] = part[k]
                part_at += 1
            if c >= 0:
                m = class_node[class_ptr[c] + j]
                out_cost[row] += cost[m]
                for k in range(ptr[m], ptr[m + 1]):
                    out_child[at] = child[k]
                    at += 1
                for k in range(part_ptr[m], part_ptr[m + 1]):
                    out_part[part_at] = part[k]
                    part_at += 1
            row += 1
            out_ptr[row] = at
            out_part_ptr[row] = part_at
    return (
        out_head[:row].copy(),
        out_cost[:row].copy(),
        out_ptr[: row + 1].copy(),
        out_child[:at].copy(),
        out_part_ptr[: row + 1].copy(),
        out_part[:part_at].copy(),
    )


@jit
def landmarks(head: Ints, ptr: Offsets, child: Ints, n_classes: int, order: Ints, limit: float) -> Bits:
    """The e-classes in every derivation of every e-class, itself included: bits (n_classes, words).

    The greatest fixpoint of: itself, and whatever is needed by all members, where a member needs what any of
    its children needs. E-classes are visited in `order` (children first where possible), again when a child
    changed. Empty when that takes more than `limit` operations on words, for a stopped descent proves nothing.
    """
    words = (n_classes + 63) >> 6
    class_ptr, class_node = members(head, n_classes)
    reader_ptr, reader = invert(ptr, child, n_classes)
    bits = np.full((n_classes, words), ~np.uint64(0), dtype=np.uint64)
    keys = np.empty(n_classes, dtype=np.float64)
    items = np.empty(n_classes, dtype=np.int32)
    where = np.full(n_classes, -1, dtype=np.int32)
    place = np.empty(n_classes, dtype=np.float64)
    size = 0
    for k in range(n_classes):
        place[order[k]] = k
        size = heap_push(keys, items, where, size, order[k], float(k))
    both = np.empty(words, dtype=np.uint64)
    union = np.empty(words, dtype=np.uint64)
    done = 0.0
    while size:
        if done > limit:
            return bits[:, :0].copy()
        size = heap_pop(keys, items, where, size)
        c = items[size]
        both[:] = bits[c]
        for j in range(class_ptr[c], class_ptr[c + 1]):
            i = class_node[j]
            done += words * (2 + ptr[i + 1] - ptr[i])
            union[:] = 0
            for k in range(ptr[i], ptr[i + 1]):
                union |= bits[child[k]]
            both &= union
        both[c >> 6] |= np.uint64(1) << np.uint64(c & 63)
        if np.any(both != bits[c]):
            bits[c] = both
            for k in range(reader_ptr[c], reader_ptr[c + 1]):
                d = head[reader[k]]
                if where[d] < 0:
                    size = heap_push(keys, items, where, size, d, place[d])
    return bits


@jit
def read_forced_once(
    head: Ints, ptr: Offsets, child: Ints, forced: Mask, component: Ints
) -> tuple[Offsets, Ints]:
    """Rows in which the root reads every forced e-class, and others only those they could form a cycle with.

    What every solution pays for is no reason to choose one e-node or another; only its place in the order is.
    """
    n = len(head)
    root = len(component) - 1
    out_ptr = np.zeros(n + 1, dtype=np.int64)
    out = np.empty(len(child) + len(component), dtype=np.int32)
    size = 0
    for i in range(n):
        if head[i] == root:
            for c in range(root):
                if forced[c]:
                    out[size] = c
                    size += 1
        else:
            for k in range(ptr[i], ptr[i + 1]):
                c = child[k]
                if not forced[c] or component[c] == component[head[i]]:
                    out[size] = c
                    size += 1
        out_ptr[i + 1] = size
    return out_ptr, out[:size].copy()
