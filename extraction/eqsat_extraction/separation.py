"""External-support cuts: what a fractional choice violates of "derivations are acyclic".

For a set S of e-classes and any one of them, t, the first e-class of S to be derived uses an e-node all of whose
children are outside S, so the e-nodes of t are chosen at most as often as those of the cut

    cut(S) = { e-nodes whose e-class is in S and whose children are all outside S }.

Such loop-formula inequalities subsume both cycle constraints and landmark cuts. Finding the most violated one
is a cut problem in a hypergraph, which is hard; when every e-node is held to a single child it is a minimum
cut in a graph. So: guess the child by how well it is supported, cut, move the guess where it made
the cut too weak, and cut again. What is found is made minimal: an e-node that may be chosen without t being derivable
is no part of the cut. That makes rows short and strong whatever the guess was.
"""

from __future__ import annotations

import numpy as np

from ._graph import critical_paths, invert, leaves, members, spread
from ._jit import jit
from .egraph import Floats, Ints, Mask, Offsets

TOLERANCE = 1e-6
"""Violation below which a cut is not worth a row (HiGHS' own feasibility tolerance is 1e-7)."""


@jit
def minimum_cut(
    head: Ints, x: Floats, via: Ints, target: int, limit: float, n_classes: int
) -> tuple[float, Ints]:
    """Maximum flow from the leaves to an e-class when e-node `i` carries `x[i]` from `via[i]` (-1: a leaf).

    Stops once the flow reaches `limit`. Also returns the side of each e-class: 2 where the flow is cut off from
    the leaves' side and still leads to the target, 1 where it is cut off, 0 elsewhere.
    """
    source = n_classes
    count = 0
    for i in range(len(head)):
        if x[i] > 1e-9 and via[i] != head[i]:
            count += 1
    tail = np.empty(2 * count, dtype=np.int32)
    tip = np.empty(2 * count, dtype=np.int32)
    room = np.empty(2 * count, dtype=np.float64)
    ptr = np.zeros(n_classes + 2, dtype=np.int64)
    at = 0
    for i in range(len(head)):
        if x[i] > 1e-9 and via[i] != head[i]:
            tail[at] = source if via[i] < 0 else via[i]
            tip[at] = head[i]
            room[at] = x[i]
            tail[at + 1] = head[i]
            tip[at + 1] = tail[at]
            room[at + 1] = 0.0
            ptr[tail[at] + 1] += 1
            ptr[tail[at + 1] + 1] += 1
            at += 2
    for c in range(n_classes + 1):
        ptr[c + 1] += ptr[c]
    fill = ptr[:-1].copy()
    arc = np.empty(2 * count, dtype=np.int32)
    for a in range(2 * count):
        arc[fill[tail[a]]] = a
        fill[tail[a]] += 1
    level = np.empty(n_classes + 1, dtype=np.int32)
    queue = np.empty(n_classes + 1, dtype=np.int32)
    path = np.empty(n_classes + 1, dtype=np.int32)
    flow = 0.0
    side = np.zeros(n_classes, dtype=np.int32)
    while flow < limit:
        level[:] = -1
        level[target] = 0
        queue[0] = target
        first, size = 0, 1
        while first < size and level[source] < 0:
            c = queue[first]
            first += 1
            for k in range(ptr[c], ptr[c + 1]):
                a = arc[k] ^ 1
                d = tail[a]
                if room[a] > 1e-9 and level[d] < 0:
                    level[d] = level[c] + 1
                    queue[size] = d
                    size += 1
        if level[source] < 0:
            for c in range(n_classes):
                if level[c] >= 0:
                    side[c] = 2
            break
        fill[:] = ptr[:-1]
        depth = 0
        c = source
        while True:
            if c == target:
                push = np.inf
                for k in range(depth):
                    push = min(push, room[path[k]])
                back = 0
                for k in range(depth):
                    room[path[k]] -= push
                    room[path[k] ^ 1] += push
                    if room[path[k]] <= 1e-9 and back == 0:
                        back = k + 1
                flow += push
                depth = back - 1
                c = tail[path[depth]]
                continue
            moved = False
            while fill[c] < ptr[c + 1]:
                a = arc[fill[c]]
                if room[a] > 1e-9 and level[tip[a]] == level[c] - 1:
                    path[depth] = a
                    depth += 1
                    c = tip[a]
                    moved = True
                    break
                fill[c] += 1
            if not moved:
                if depth == 0:
                    break
                depth -= 1
                c = tail[path[depth]]
                fill[c] += 1
    if flow < limit:
        level[:] = -1
        level[source] = 0
        queue[0] = source
        first, size = 0, 1
        while first < size:
            c = queue[first]
            first += 1
            for k in range(ptr[c], ptr[c + 1]):
                a = arc[k]
                d = tip[a]
                if room[a] > 1e-9 and level[d] < 0:
                    level[d] = 0
                    queue[size] = d
                    size += 1
        for c in range(n_classes):
            if side[c] == 0 and level[c] < 0:
                side[c] = 1
    return flow, side


@jit
def separate(
    head: Ints,
    ptr: Offsets,
    child: Ints,
    n_classes: int,
    x: Floats,
    max_cuts: int,
    noise: Floats,
    depth: int,
) -> tuple[Ints, Offsets, Ints]:
    """Violated, minimal cuts of a fractional choice `x` (n,): target e-classes, and offsets and e-nodes of the cuts.

    Up to `depth` of every e-class, each of other chosen e-nodes than those before; those first that are chosen by most
    more than they are supported, so that `max_cuts` are not all around one of many cycles. The support of e-classes is
    scaled by `noise` (n_classes,), there and where the child that an e-node is held to is guessed.
    """
    n = len(head)
    class_ptr, class_node = members(head, n_classes)
    y = np.zeros(n_classes)
    for i in range(n):
        y[head[i]] += x[i]
    rank = np.arange(n_classes).astype(np.int32)
    _, _, order, _, _ = critical_paths(head, 1.001 - np.minimum(x, 1.0), ptr, child, n_classes, rank)
    supply = np.zeros(n_classes)
    for _ in range(8):
        changed = False
        for c in order:
            total = 0.0
            for j in range(class_ptr[c], class_ptr[c + 1]):
                i = class_node[j]
                least = x[i]
                for k in range(ptr[i], ptr[i + 1]):
                    least = min(least, supply[child[k]])
                total += least
            if total > supply[c] + 1e-9:
                supply[c] = total
                changed = True
        if not changed:
            break
    place = np.zeros(n_classes, dtype=np.int64)
    for k in range(len(order)):
        place[order[k]] = k
    supply *= noise
    guess = np.full(n, -1, dtype=np.int32)
    for i in range(n):
        for k in range(ptr[i], ptr[i + 1]):
            d = child[k]
            g = guess[i]
            if (
                g < 0
                or supply[d] < supply[g] - 1e-9
                or (supply[d] < supply[g] + 1e-9 and place[d] > place[g])
            ):
                guess[i] = d
    targets = np.empty(max_cuts, dtype=np.int32)
    out_ptr = np.zeros(max_cuts + 1, dtype=np.int64)
    out = np.empty(1024, dtype=np.int32)
    used, n_cuts = 0, 0
    reader_ptr, reader = invert(ptr, child, n_classes)
    alive = np.empty(n, dtype=np.bool_)
    latest = order[::-1]
    for k in np.argsort(supply[latest] - y[latest], kind="mergesort"):
        t = latest[k]
        if n_cuts == max_cuts:
            break
        if y[t] <= 1e-4:
            continue
        room = x.copy()
        for _ in range(depth):
            if n_cuts == max_cuts:
                break
            side = weak_side(head, ptr, child, n_classes, room, guess, t, y[t])
            if len(side) == 0:
                break
            size = 0
            cut = np.empty(n, dtype=np.int32)
            for i in range(n):
                alive[i] = True
                if side[head[i]]:
                    crosses = True
                    for k in range(ptr[i], ptr[i + 1]):
                        if side[child[k]]:
                            crosses = False
                            break
                    if crosses:
                        alive[i] = False
                        cut[size] = i
                        size += 1
            kept = minimal(head, ptr, child, n_classes, reader_ptr, reader, alive, cut[:size], x, t)
            targets[n_cuts] = t
            if used + len(kept) > len(out):
                out = np.concatenate((out, np.empty(len(out) + len(kept), dtype=np.int32)))
            for i in kept:
                out[used] = i
                used += 1
                if x[i] > 0.0:
                    room[i] = 1.0
            n_cuts += 1
            out_ptr[n_cuts] = used
    return targets[:n_cuts].copy(), out_ptr[: n_cuts + 1].copy(), out[:used].copy()


@jit
def weak_side(
    head: Ints, ptr: Offsets, child: Ints, n_classes: int, x: Floats, guess: Ints, t: int, wanted: float
) -> Ints:
    """Marks (n_classes,) of e-classes around `t` whose cut is chosen less than `wanted`; empty if none is found."""
    best_violation = TOLERANCE
    best_side = np.zeros(0, dtype=np.int32)
    via = guess.copy()
    for _ in range(4):
        flow, side = minimum_cut(head, x, via, t, wanted - TOLERANCE, n_classes)
        if flow >= wanted - TOLERANCE:
            break
        moved = False
        for wide in range(2):
            inside = 2 - wide
            total = 0.0
            for i in range(len(head)):
                if x[i] > 0.0 and side[head[i]] >= inside:
                    crosses = True
                    for k in range(ptr[i], ptr[i + 1]):
                        if side[child[k]] >= inside:
                            crosses = False
                            if wide == 0 and side[via[i]] < inside:
                                via[i] = child[k]
                                moved = True
                            break
                    if crosses:
                        total += x[i]
            if wanted - total > best_violation + 1e-9:
                best_violation = wanted - total
                best_side = (side >= inside).astype(np.int32)
        if not moved:
            break
    return best_side


@jit
def minimal(
    head: Ints,
    ptr: Offsets,
    child: Ints,
    n_classes: int,
    reader_ptr: Offsets,
    reader: Ints,
    alive: Mask,
    cut: Ints,
    x: Floats,
    target: int,
) -> Ints:
    """The cut without e-nodes that it does not need to keep `target` from being derived; most chosen ones go first.

    `alive` (n,) are the e-nodes outside the cut, and in the end those outside the result.
    """
    missing, found, queue, size = leaves(head, ptr, alive, n_classes)
    at = 0
    kept = np.empty(len(cut), dtype=np.int32)
    n_kept = 0
    order = np.argsort(-x[cut], kind="mergesort")
    for q in range(-1, len(cut)):
        first = size
        if q >= 0:
            i = cut[order[q]]
            alive[i] = True
            if missing[i] == 0 and not found[head[i]]:
                found[head[i]] = True
                queue[size] = head[i]
                size += 1
        at = size = spread(queue, at, size, head, reader_ptr, reader, missing, alive, found)
        if q >= 0 and found[target]:
            alive[i] = False
            kept[n_kept] = i
            n_kept += 1
            for a in range(first, size):
                found[queue[a]] = False
                for k in range(reader_ptr[queue[a]], reader_ptr[queue[a] + 1]):
                    missing[reader[k]] += 1
            size = at = first
    return kept[:n_kept].copy()
