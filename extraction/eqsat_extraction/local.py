"""Large-neighbourhood search: free some e-classes, hold the rest, solve what remains, keep what is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import isfinite

import numpy as np

from ._budget import Budget
from ._graph import cheapest_trees, invert, members, prune, usable
from ._jit import jit
from .egraph import Floats, Ints, Mask, Offsets
from .problem import Problem, restrict

Solver = Callable[[Problem, float, float], Ints | None]
"""Original e-nodes of a solution of a problem cheaper than a cost, or None; within an amount of work."""

FIRST, LAST = 16, 512
"""E-classes of the smallest and the largest neighbourhood."""
PATIENCE = 24
"""Neighbourhoods without success before they grow."""
WORK = 20_000
"""Units of work for one neighbourhood."""


def improve(
    problem: Problem, choice: Ints, solve: Solver, budget: Budget, seed: int
) -> Iterator[tuple[Ints, float]]:
    """Ever cheaper choices (n_classes,) with their costs; stops at the largest neighbourhood or the budget."""
    rng = np.random.default_rng(seed)
    head, n_classes = problem.head, problem.n_classes
    reader_ptr, reader = invert(problem.ptr, problem.child, n_classes)
    class_ptr, class_node = members(head, n_classes)
    _, default, _ = cheapest_trees(head, problem.cost, problem.ptr, problem.child, n_classes)
    itself = replace(
        problem,
        part_ptr=np.arange(problem.n_nodes + 1, dtype=np.int64),
        part=np.arange(problem.n_nodes, dtype=np.int32),
        part_class=head,
        decided=np.empty(0, dtype=np.int32),
        offset=0.0,
    )
    choice, cost = prune(problem.ptr, problem.child, problem.cost, choice, problem.root)
    size, failures = FIRST, 0
    while size <= LAST and not budget.spent:
        chosen = np.flatnonzero(choice >= 0)
        centre = int(chosen[rng.integers(len(chosen))])
        free = neighbourhood(
            problem.ptr, problem.child, head, reader_ptr, reader, class_ptr, class_node, centre, size,
            rng.random((20 * size, 3)),
        )  # fmt: skip
        held = np.where(choice >= 0, choice, default)
        keep = free[head] | (held[head] == np.arange(problem.n_nodes))
        keep = usable(head, problem.ptr, problem.child, keep, n_classes, problem.root)
        budget.charge(len(problem.child) / 1000)
        picked = solve(restrict(itself, keep), cost, WORK)
        failures += 1
        if picked is not None:
            better = held.copy()
            better[head[picked]] = picked
            better, total = prune(problem.ptr, problem.child, problem.cost, better, problem.root)
            if isfinite(total) and total < cost:
                choice, cost, failures = better, total, 0
                yield choice, cost
        if failures >= PATIENCE:
            size, failures = size * 2, 0


@jit
def neighbourhood(
    ptr: Offsets,
    child: Ints,
    head: Ints,
    reader_ptr: Offsets,
    reader: Ints,
    class_ptr: Offsets,
    class_node: Ints,
    centre: int,
    size: int,
    draws: Floats,
) -> Mask:
    """Up to `size` e-classes around one, by random steps along operands, up and down.

    A step takes one row of `draws` (steps, 3), uniform in [0, 1): from which e-class, which way, along which edge.
    """
    inside = np.zeros(len(class_ptr) - 1, dtype=np.bool_)
    chosen = np.empty(size, dtype=np.int32)
    chosen[0] = centre
    inside[centre] = True
    count = 1
    for step in range(len(draws)):
        if count == size:
            break
        c = chosen[int(draws[step, 0] * count)]
        way = 2.0 * draws[step, 1]
        if way < 1.0 and reader_ptr[c] < reader_ptr[c + 1]:
            d = head[reader[reader_ptr[c] + int(draws[step, 2] * (reader_ptr[c + 1] - reader_ptr[c]))]]
        else:
            i = class_node[class_ptr[c] + int((way % 1.0) * (class_ptr[c + 1] - class_ptr[c]))]
            if ptr[i] == ptr[i + 1]:
                continue
            d = child[ptr[i] + int(draws[step, 2] * (ptr[i + 1] - ptr[i]))]
        if not inside[d]:
            inside[d] = True
            chosen[count] = d
            count += 1
    return inside
