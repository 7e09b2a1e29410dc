"""The k cheapest distinct solutions, and k diverse ones."""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numpy.typing import ArrayLike

from ._budget import Budget
from ._graph import detours, usable
from .arguments import finite, whole
from .egraph import EGraph, Floats, Ints, Mask
from .errors import InputError
from .lmcut import landmark_bound
from .problem import from_egraph, restrict
from .search import Search, granule
from .solution import Solution

PENALTIES = 12
"""Rounds of penalties after which no solution that is different enough is expected."""


def k_best(
    egraph: EGraph,
    costs: ArrayLike,
    k: int,
    *,
    diversity: float = 0.0,
    time_limit: float | None = 10.0,
    work_limit: int | None = None,
    seed: int = 0,
) -> list[Solution]:
    """Up to `k` distinct solutions, cheapest first; equal costs in the order of their e-nodes.

    Without `diversity` these are the k cheapest: the space of solutions is split along the e-nodes of every
    solution found (Lawler 1972), and the part with the least bound is searched next; `bound` of the i-th is a
    lower bound on the i-th cheapest cost. With `diversity` in (0, 1] any two differ in at least that share of the
    e-nodes that either uses (Jaccard distance); they come from repricing the e-nodes used before, so they are
    good, not provably the best such. Fewer than `k` come back when there are no more, or a limit is reached.
    Raises like `extract`, and `InputError` for a `k` below 1 or a `diversity` outside [0, 1].
    """
    whole("k", k)
    if finite("diversity", diversity) > 1.0:
        raise InputError(f"diversity={diversity}: it is a share between 0 and 1")
    prices = egraph.check_costs(costs)
    budget = Budget(time_limit, work_limit)
    run = _Run(egraph, prices, budget, seed)
    return run.diverse(k, diversity) if diversity else run.cheapest(k)


class _Run:
    def __init__(self, egraph: EGraph, costs: Floats, budget: Budget, seed: int) -> None:
        self.egraph, self.costs, self.budget, self.seed = egraph, costs, budget, seed
        self.problem = from_egraph(egraph, costs)
        self.node_of = np.full(egraph.n_nodes, -1, dtype=np.int32)
        self.node_of[self.problem.part] = np.arange(len(self.problem.part), dtype=np.int32)

    def cheapest(self, k: int) -> list[Solution]:
        """The k cheapest solutions, by splitting the space of solutions."""
        whole = np.ones(self.problem.n_nodes, dtype=bool)
        first = self._solve(whole, self.budget)
        assert first is not None
        # A part is a mask of e-nodes; it is unsolved (its least solution unknown) or solved.
        queue: list[tuple[float, bool, tuple[int, ...], int]] = []
        parts: list[tuple[Mask, Solution | None]] = [(whole, first)]
        heappush(queue, (first.cost, False, tuple(first.nodes().tolist()), 0))
        found: list[Solution] = []
        while queue and len(found) < k:
            lower, unsolved, _, number = heappop(queue)
            mask, solution = parts[number]
            if unsolved:
                if self.budget.spent:
                    continue
                solution = self._solve(mask, self.budget.share(0.5))
                if solution is not None:
                    parts[number] = (mask, solution)
                    heappush(queue, (solution.cost, False, tuple(solution.nodes().tolist()), number))
                continue
            assert solution is not None
            bound = (
                solution.bound if not found else min(lower, *(entry[0] for entry in queue[:1]), solution.cost)
            )
            found.append(solution.named("k_best", bound=bound, seconds=self.budget.seconds))
            parts[number] = (mask, None)
            if len(found) < k and not self.budget.spent:
                for part, least in self._split(mask, solution):
                    parts.append((part, None))
                    heappush(queue, (max(least, solution.bound), True, (), len(parts) - 1))
        return sorted(found, key=lambda s: (s.cost, s.nodes().tolist()))

    def _split(self, mask: Mask, solution: Solution) -> list[tuple[Mask, float]]:
        """The other solutions of a part: those that first differ, from the root down, at its i-th e-node.

        Each with a lower bound: the landmark bound of the part, and what the alternatives pay beyond it.
        """
        problem = self.problem
        usable_mask = usable(problem.head, problem.ptr, problem.child, mask, problem.n_classes, problem.root)
        inside = restrict(problem, usable_mask)
        marks = landmark_bound(inside, self.budget)
        extra = np.full(problem.n_nodes, np.inf)
        extra[usable_mask] = detours(inside.head, marks.reduced, inside.ptr, inside.child, inside.n_classes)
        by_class = np.argsort(problem.head, kind="stable")
        starts = np.searchsorted(problem.head[by_class], np.arange(problem.n_classes + 1))
        out = []
        held = usable_mask.copy()
        for node in self.node_of[solution.order(self.egraph)[::-1]].tolist():
            c = problem.head[node]
            members = by_class[starts[c] : starts[c + 1]]
            others = members[held[members] & (members != node)]
            if len(others):
                part = held.copy()
                part[node] = False
                out.append((part, marks.bound + float(extra[others].min())))
                held = held.copy()
                held[others] = False
        return out

    def diverse(self, k: int, diversity: float) -> list[Solution]:
        """Solutions at a distance from each other: what was used becomes dearer until enough of it is left out."""
        whole = np.ones(self.problem.n_nodes, dtype=bool)
        first = self._solve(whole, self.budget.share(0.5))
        assert first is not None
        found = [first.named("k_best")]
        unit = max(float(self.problem.cost.mean()), 1e-9)
        while len(found) < k and not self.budget.spent:
            weight = 0.05
            for _ in range(PENALTIES):
                used = np.zeros(self.problem.n_nodes)
                for solution in found:
                    used[self.node_of[solution.nodes()]] += 1.0
                priced = self.problem.cost + weight * used * (self.problem.cost + 0.1 * unit)
                candidate = self._solve(whole, self.budget.share(0.2), priced)
                if candidate is None or self.budget.spent:
                    return sorted(found, key=lambda s: (s.cost, s.nodes().tolist()))
                if all(distance(candidate, solution) >= diversity for solution in found):
                    found.append(candidate.named("k_best", bound=first.bound, seconds=self.budget.seconds))
                    break
                weight *= 2.0
            else:
                break
        return sorted(found, key=lambda s: (s.cost, s.nodes().tolist()))

    def _solve(self, mask: Mask, budget: Budget, priced: Floats | None = None) -> Solution | None:
        """The best solution of a part that the budget finds, possibly under other prices; None when it is empty."""
        from dataclasses import replace

        problem = self.problem if priced is None else replace(self.problem, cost=priced)
        keep = usable(problem.head, problem.ptr, problem.child, mask, problem.n_classes, problem.root)
        if not keep[-1]:
            return None
        picked: Ints | None = None
        bound = 0.0
        search = Search(budget, granule(problem.cost), self.seed)
        for progress in search.solve(restrict(problem, keep), thorough=False):
            picked = progress.picked if progress.picked is not None else picked
            bound = progress.bound
        assert picked is not None
        bound = bound if priced is None else 0.0
        return Solution.from_nodes(self.egraph, self.costs, picked, bound=bound, extractor="k_best")


def distance(one: Solution, other: Solution) -> float:
    """The share of the e-nodes used by either solution that only one of them uses (Jaccard distance)."""
    a, b = one.nodes(), other.nodes()
    return 1.0 - len(np.intersect1d(a, b)) / max(1, len(np.union1d(a, b)))
