"""Compiled walks over problems. Arrays: head, child int32; ptr int64; cost float64; masks bool.

Rows of children are distinct and ascending (`unique_children`), which every other function relies on.
"""

from __future__ import annotations

import numpy as np

from ._jit import jit
from .egraph import Floats, Ints, Mask, Offsets

LARGEST = float(np.finfo(np.float64).max)


@jit
def unique_children(ptr: Offsets, child: Ints) -> tuple[Offsets, Ints]:
    """Rows with their entries sorted and without repetitions."""
    n = len(ptr) - 1
    out_ptr = np.zeros(n + 1, dtype=np.int64)
    out = np.empty(len(child), dtype=np.int32)
    size = 0
    for i in range(n):
        row = np.sort(child[ptr[i] : ptr[i + 1]])
        for k in range(len(row)):
            if k == 0 or row[k] != row[k - 1]:
                out[size] = row[k]
                size += 1
        out_ptr[i + 1] = size
    return out_ptr, out[:size].copy()


@jit
def invert(ptr: Offsets, child: Ints, n_classes: int) -> tuple[Offsets, Ints]:
    """The rows that hold every entry: offsets (n_classes + 1,) and rows, ascending."""
    out_ptr = np.zeros(n_classes + 1, dtype=np.int64)
    for c in child:
        out_ptr[c + 1] += 1
    for c in range(n_classes):
        out_ptr[c + 1] += out_ptr[c]
    fill = out_ptr[:-1].copy()
    out = np.empty(len(child), dtype=np.int32)
    for i in range(len(ptr) - 1):
        for k in range(ptr[i], ptr[i + 1]):
            out[fill[child[k]]] = i
            fill[child[k]] += 1
    return out_ptr, out


@jit
def members(head: Ints, n_classes: int) -> tuple[Offsets, Ints]:
    """The e-nodes of every e-class: offsets (n_classes + 1,) and e-nodes, ascending."""
    out_ptr = np.zeros(n_classes + 1, dtype=np.int64)
    for c in head:
        out_ptr[c + 1] += 1
    for c in range(n_classes):
        out_ptr[c + 1] += out_ptr[c]
    fill = out_ptr[:-1].copy()
    out = np.empty(len(head), dtype=np.int32)
    for i in range(len(head)):
        out[fill[head[i]]] = i
        fill[head[i]] += 1
    return out_ptr, out


@jit
def leaves(head: Ints, ptr: Offsets, alive: Mask, n_classes: int) -> tuple[Offsets, Mask, Ints, int]:
    """What `spread` starts from: how many children each e-node lacks, which e-classes are found, those with an alive
    e-node without children, in a queue, and how many these are."""
    n = len(head)
    missing = np.empty(n, dtype=np.int64)
    found = np.zeros(n_classes, dtype=np.bool_)
    queue = np.empty(n_classes, dtype=np.int32)
    size = 0
    for i in range(n):
        missing[i] = ptr[i + 1] - ptr[i]
        if alive[i] and missing[i] == 0 and not found[head[i]]:
            found[head[i]] = True
            queue[size] = head[i]
            size += 1
    return missing, found, queue, size


@jit
def spread(
    queue: Ints, at: int, size: int,
    head: Ints, reader_ptr: Offsets, reader: Ints, missing: Offsets, alive: Mask, found: Mask,
) -> int:  # fmt: skip
    """Derive e-classes from those in `queue[at:size]`, which are `found`, and put them behind these: how many there are
    then. `missing` has, of every e-node, how many children are not found."""
    while at < size:
        c = queue[at]
        at += 1
        for k in range(reader_ptr[c], reader_ptr[c + 1]):
            i = reader[k]
            missing[i] -= 1
            if alive[i] and missing[i] == 0 and not found[head[i]]:
                found[head[i]] = True
                queue[size] = head[i]
                size += 1
    return size


@jit
def derivable(head: Ints, ptr: Offsets, child: Ints, alive: Mask, n_classes: int) -> Mask:
    """Which e-classes have an acyclic derivation from alive e-nodes."""
    reader_ptr, reader = invert(ptr, child, n_classes)
    missing, found, queue, size = leaves(head, ptr, alive, n_classes)
    spread(queue, 0, size, head, reader_ptr, reader, missing, alive, found)
    return found


@jit
def usable(head: Ints, ptr: Offsets, child: Ints, alive: Mask, n_classes: int, root: int) -> Mask:
    """Which alive e-nodes are reachable from the root, derivable, and not their own child."""
    n = len(head)
    found = derivable(head, ptr, child, alive, n_classes)
    good = np.zeros(n, dtype=np.bool_)
    for i in range(n):
        ok = alive[i]
        for k in range(ptr[i], ptr[i + 1]):
            if not found[child[k]] or child[k] == head[i]:
                ok = False
                break
        good[i] = ok
    class_ptr, class_node = members(head, n_classes)
    seen = np.zeros(n_classes, dtype=np.bool_)
    used = np.zeros(n, dtype=np.bool_)
    stack = np.empty(n_classes, dtype=np.int32)
    stack[0] = root
    seen[root] = True
    size = 1
    while size:
        size -= 1
        c = stack[size]
        for j in range(class_ptr[c], class_ptr[c + 1]):
            i = class_node[j]
            if good[i]:
                used[i] = True
                for k in range(ptr[i], ptr[i + 1]):
                    d = child[k]
                    if not seen[d]:
                        seen[d] = True
                        stack[size] = d
                        size += 1
    return used


@jit
def keep_rows(ptr: Offsets, child: Ints, keep: Mask) -> tuple[Offsets, Ints]:
    """The rows of a mask."""
    n = len(ptr) - 1
    rows, total = 0, 0
    for i in range(n):
        if keep[i]:
            rows += 1
            total += ptr[i + 1] - ptr[i]
    out_ptr = np.zeros(rows + 1, dtype=np.int64)
    out = np.empty(total, dtype=np.int32)
    row, size = 0, 0
    for i in range(n):
        if keep[i]:
            for k in range(ptr[i], ptr[i + 1]):
                out[size] = child[k]
                size += 1
            row += 1
            out_ptr[row] = size
    return out_ptr, out


@jit
def components(head: Ints, ptr: Offsets, child: Ints, n_classes: int) -> Ints:
    """The strongly connected component of every e-class (edges: e-class to child e-class), children first."""
    class_ptr, class_node = members(head, n_classes)
    edge_ptr = np.zeros(n_classes + 1, dtype=np.int64)
    for c in range(n_classes):
        edge_ptr[c + 1] = edge_ptr[c]
        for j in range(class_ptr[c], class_ptr[c + 1]):
            i = class_node[j]
            edge_ptr[c + 1] += ptr[i + 1] - ptr[i]
    edge = np.empty(edge_ptr[n_classes], dtype=np.int32)
    for c in range(n_classes):
        at = edge_ptr[c]
        for j in range(class_ptr[c], class_ptr[c + 1]):
            i = class_node[j]
            for k in range(ptr[i], ptr[i + 1]):
                edge[at] = child[k]
                at += 1
    component = np.full(n_classes, -1, dtype=np.int32)
    index = np.full(n_classes, -1, dtype=np.int64)
    low = np.zeros(n_classes, dtype=np.int64)
    at_edge = edge_ptr[:-1].copy()
    call = np.empty(n_classes, dtype=np.int32)
    open_ = np.empty(n_classes, dtype=np.int32)
    counter, n_open, n_components = 0, 0, 0
    for start in range(n_classes):
        if index[start] >= 0:
            continue
        call[0] = start
        depth = 1
        index[start] = low[start] = counter
        counter += 1
        open_[n_open] = start
        n_open += 1
        while depth:
            c = call[depth - 1]
            if at_edge[c] < edge_ptr[c + 1]:
                d = edge[at_edge[c]]
                at_edge[c] += 1
                if index[d] < 0:
                    index[d] = low[d] = counter
                    counter += 1
                    open_[n_open] = d
                    n_open += 1
                    call[depth] = d
                    depth += 1
                elif component[d] < 0:
                    low[c] = min(low[c], index[d])
            else:
                depth -= 1
                if depth:
                    low[call[depth - 1]] = min(low[call[depth - 1]], low[c])
                if low[c] == index[c]:
                    while True:
                        n_open -= 1
                        d = open_[n_open]
                        component[d] = n_components
                        if d == c:
                            break
                    n_components += 1
    return component


@jit
def heap_push(keys: Floats, items: Ints, where: Ints, size: int, item: int, key: float) -> int:
    """Insert an item, or lower its key, in a binary heap ordered by (key, item); returns the new size."""
    at = where[item]
    if at < 0:
        at = size
        size += 1
    while at > 0:
        up = (at - 1) >> 1
        if keys[up] < key or (keys[up] == key and items[up] < item):
            break
        keys[at], items[at] = keys[up], items[up]
        where[items[at]] = at
        at = up
    keys[at], items[at] = key, item
    where[item] = at
    return size


@jit
def heap_pop(keys: Floats, items: Ints, where: Ints, size: int) -> int:
    """Remove the smallest item; it stays readable as `items[size]` with the returned, smaller size."""
    top = items[0]
    size -= 1
    key, item = keys[size], items[size]
    at = 0
    while True:
        down = 2 * at + 1
        if down >= size:
            break
        other = down + 1
        if other < size and (
            keys[other] < keys[down] or (keys[other] == keys[down] and items[other] < items[down])
        ):
            down = other
        if key < keys[down] or (key == keys[down] and item < items[down]):
            break
        keys[at], items[at] = keys[down], items[down]
        where[items[at]] = at
        at = down
    if size:
        keys[at], items[at] = key, item
        where[item] = at
    items[size] = top
    where[top] = -1
    return size


@jit
def cheapest_trees(
    head: Ints, cost: Floats, ptr: Offsets, child: Ints, n_classes: int
) -> tuple[Floats, Ints, Ints]:
    """Tree cost of every e-class, the e-node that attains it, and the e-classes in the order they settled.

    Knuth's generalization of Dijkstra's algorithm; choices are acyclic because an e-node is considered only
    once all its children have settled. A child that is listed twice is paid twice. Infinite where there is no
    derivation; trees too dear for a float64 all cost the largest one.
    """
    n = len(head)
    reader_ptr, reader = invert(ptr, child, n_classes)
    missing = np.empty(n, dtype=np.int64)
    value = cost.copy()
    best = np.full(n_classes, np.inf)
    choice = np.full(n_classes, -1, dtype=np.int32)
    settled = np.zeros(n_classes, dtype=np.bool_)
    order = np.empty(n_classes, dtype=np.int32)
    keys = np.empty(n_classes, dtype=np.float64)
    items = np.empty(n_classes, dtype=np.int32)
    where = np.full(n_classes, -1, dtype=np.int32)
    size, done = 0, 0
    for i in range(n):
        missing[i] = ptr[i + 1] - ptr[i]
        if missing[i] == 0 and value[i] < best[head[i]]:
            best[head[i]] = value[i]
            choice[head[i]] = i
            size = heap_push(keys, items, where, size, head[i], value[i])
    while size:
        size = heap_pop(keys, items, where, size)
        c = items[size]
        settled[c] = True
        order[done] = c
        done += 1
        for k in range(reader_ptr[c], reader_ptr[c + 1]):
            i = reader[k]
            missing[i] -= 1
            value[i] = min(value[i] + best[c], LARGEST) if cost[i] < np.inf else np.inf
            d = head[i]
            if missing[i] == 0 and not settled[d] and value[i] < best[d]:
                best[d] = value[i]
                choice[d] = i
                size = heap_push(keys, items, where, size, d, value[i])
    return best, choice, order[:done].copy()


@jit
def needed(ptr: Offsets, child: Ints, choice: Ints, roots: Ints) -> tuple[Ints, bool]:
    """The e-classes that a choice needs, children first, and whether it is complete and acyclic."""
    state = np.zeros(len(choice), dtype=np.int8)  # 0 unseen, 1 open, 2 finished
    order = np.empty(len(choice), dtype=np.int32)
    stack = np.empty(len(choice), dtype=np.int32)
    at_child = np.empty(len(choice), dtype=np.int64)
    size = 0
    for root in roots:
        if state[root] == 2:
            continue
        if choice[root] < 0:
            return order[:size].copy(), False
        stack[0] = root
        state[root] = 1
        at_child[root] = ptr[choice[root]]
        depth = 1
        while depth:
            c = stack[depth - 1]
            i = choice[c]
            if at_child[c] < ptr[i + 1]:
                d = child[at_child[c]]
                at_child[c] += 1
                if state[d] == 1 or choice[d] < 0:
                    return order[:size].copy(), False
                if state[d] == 0:
                    state[d] = 1
                    at_child[d] = ptr[choice[d]]
                    stack[depth] = d
                    depth += 1
            else:
                depth -= 1
                state[c] = 2
                order[size] = c
                size += 1
    return order[:size].copy(), True


@jit
def prune(ptr: Offsets, child: Ints, cost: Floats, choice: Ints, root: int) -> tuple[Ints, float]:
    """A choice without the e-classes it does not need, and its cost; infinite when incomplete or cyclic."""
    order, good = needed(ptr, child, choice, np.full(1, root, dtype=np.int32))
    out = np.full(len(choice), -1, dtype=np.int32)
    if not good:
        return out, np.inf
    total = 0.0
    for c in order:
        out[c] = choice[c]
        total += cost[choice[c]]
    return out, total


@jit
def critical_paths(
    head: Ints, price: Floats, ptr: Offsets, child: Ints, n_classes: int, rank: Ints
) -> tuple[Floats, Ints, Ints, Offsets, Ints]:
    """The dearest chain of e-nodes that the cheapest way to every e-class cannot avoid (h_max of planning).

    An e-class is worth its cheapest member, an e-node its price and its dearest child. Returns the values of
    e-classes (infinite where there is no derivation), the child every e-node waits for (-1: none; the one of
    highest `rank` among equals), the e-classes in the order they settled, and the readers of every e-class.
    """
    n = len(head)
    reader_ptr, reader = invert(ptr, child, n_classes)
    missing = np.empty(n, dtype=np.int64)
    value = np.full(n_classes, np.inf)
    settled = np.zeros(n_classes, dtype=np.bool_)
    waits_for = np.full(n, -1, dtype=np.int32)
    order = np.empty(n_classes, dtype=np.int32)
    keys = np.empty(n_classes, dtype=np.float64)
    items = np.empty(n_classes, dtype=np.int32)
    where = np.full(n_classes, -1, dtype=np.int32)
    size, done = 0, 0
    for i in range(n):
        missing[i] = ptr[i + 1] - ptr[i]
        if missing[i] == 0 and price[i] < value[head[i]]:
            value[head[i]] = price[i]
            size = heap_push(keys, items, where, size, head[i], price[i])
    while size:
        size = heap_pop(keys, items, where, size)
        c = items[size]
        settled[c] = True
        order[done] = c
        done += 1
        for k in range(reader_ptr[c], reader_ptr[c + 1]):
            i = reader[k]
            missing[i] -= 1
            w = waits_for[i]
            if w < 0 or value[c] > value[w] or (value[c] == value[w] and rank[c] > rank[w]):
                waits_for[i] = c
            total = price[i] + value[waits_for[i]]
            if missing[i] == 0 and not settled[head[i]] and total < value[head[i]]:
                value[head[i]] = total
                size = heap_push(keys, items, where, size, head[i], total)
    return value, waits_for, order[:done].copy(), reader_ptr, reader


@jit
def detours(head: Ints, price: Floats, ptr: Offsets, child: Ints, n_classes: int) -> Floats:
    """What a solution with an e-node pays at least, for every e-node, when e-nodes have these prices.

    Its own price, the critical path to its dearest child below it, and the cheapest chain of readers from the
    root above it; in an acyclic solution the three have no e-node in common.
    """
    n = len(head)
    root = n_classes - 1
    rank = np.arange(n_classes).astype(np.int32)
    below, _, _, _, _ = critical_paths(head, price, ptr, child, n_classes, rank)
    out = price.copy()
    for i in range(n):
        dearest = 0.0
        for k in range(ptr[i], ptr[i + 1]):
            dearest = max(dearest, below[child[k]])
        out[i] += dearest
    settled = np.zeros(n_classes, dtype=np.bool_)
    keys = np.empty(n_classes, dtype=np.float64)
    items = np.empty(n_classes, dtype=np.int32)
    where = np.full(n_classes, -1, dtype=np.int32)
    class_ptr, class_node = members(head, n_classes)
    above = np.full(n_classes, np.inf)
    above[root] = 0.0
    size = heap_push(keys, items, where, 0, root, 0.0)
    while size:
        size = heap_pop(keys, items, where, size)
        c = items[size]
        settled[c] = True
        for j in range(class_ptr[c], class_ptr[c + 1]):
            i = class_node[j]
            if out[i] == np.inf:
                continue
            for k in range(ptr[i], ptr[i + 1]):
                d = child[k]
                if not settled[d] and above[c] + price[i] < above[d]:
                    above[d] = above[c] + price[i]
                    size = heap_push(keys, items, where, size, d, above[d])
    for i in range(n):
        out[i] += above[head[i]]
    return out


@jit
def joined(head: Ints, ptr: Offsets, child: Ints, n_classes: int) -> Ints:
    """A label for every e-class, equal for e-classes that e-nodes other than the root's hold together."""
    label = np.arange(n_classes).astype(np.int32)
    for i in range(len(head) - 1):
        a = head[i]
        while label[a] != a:
            label[a] = label[label[a]]
            a = label[a]
        for k in range(ptr[i], ptr[i + 1]):
            b = child[k]
            while label[b] != b:
                label[b] = label[label[b]]
                b = label[b]
            if a < b:
                label[b] = a
            else:
                label[a] = b
                a = b
    for c in range(n_classes):
        a = c
        while label[a] != a:
            a = label[a]
        label[c] = a
    return label
