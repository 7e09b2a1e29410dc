"""The portfolio: reduce, bound from both sides, remove what the bounds exclude, and begin again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, inf

import numpy as np

from ._budget import Budget
from ._graph import detours, usable
from .egraph import Floats, Ints, Mask
from .greedy import greedy_choice, tree_choice
from .lmcut import LandmarkBound, landmark_bound
from .mip import branch_and_cut, repair
from .presolve import presolve
from .problem import Problem, restrict, split
from .relaxation import Relaxation
from .treewidth import eliminate

RESTART = 0.8
"""Begin again when at most this share of the e-nodes is left."""


@dataclass(frozen=True, eq=False)
class Progress:
    """Something better is known: original e-nodes (spares included) of the best solution, or None where it is
    unchanged, its cost, and a lower bound. Both include the problem's offset."""

    picked: Ints | None
    cost: float
    bound: float


def granule(costs: Floats) -> float:
    """The largest step of which all finite costs are multiples, among 10^-k times an integer; 0 if there is none.

    The cost of every solution is then a multiple too, which lifts bounds to the next one.
    """
    finite = np.unique(costs[np.isfinite(costs)])
    for digits in range(7):
        scaled = finite * 10.0**digits
        whole = np.rint(scaled)
        if scaled.size and scaled[-1] < 2**40 and np.all(np.abs(scaled - whole) <= 1e-9 * np.maximum(1.0, whole)):
            return float(np.gcd.reduce(whole.astype(np.int64))) / 10.0**digits
    return 0.0


class Search:
    """One run of the portfolio under one budget; `granule` is the step of its costs, or 0."""

    def __init__(self, budget: Budget, step: float, seed: int) -> None:
        self.budget = budget
        self.step = step
        self.seed = seed

    def solve(self, problem: Problem, upper: float = inf, depth: int = 0) -> Iterator[Progress]:
        """Progress on solutions cheaper than `upper`; finished when the last bound reaches the last cost.

        Without such a solution the last cost is `upper`.
        """
        problem = presolve(problem)
        parts = split(problem)
        if len(parts) > 1:
            yield from self._solve_parts(problem, parts, upper, depth)
        else:
            yield from self._solve_one(problem, upper, depth)

    def _solve_parts(
        self, whole: Problem, parts: list[Problem], upper: float, depth: int
    ) -> Iterator[Progress]:
        """Independent parts, each to its first solution, then each to its end, small ones first."""
        runs = [self.solve(part, inf, depth) for part in parts]
        states = [next(run) for run in runs]
        picked = [state.picked for state in states]
        order = sorted(range(len(parts)), key=lambda k: (parts[k].n_nodes, k))
        for k in [-1, *order]:
            for state in [None] if k < 0 else runs[k]:
                if state is not None:
                    states[k] = state
                    picked[k] = picked[k] if state.picked is None else state.picked
                cost = whole.offset + sum(state.cost for state in states)
                bound = whole.offset + sum(state.bound for state in states)
                if cost < upper:
                    upper = cost
                    yield Progress(
                        np.concatenate([whole.decided, *(p for p in picked if p is not None)]), cost, bound
                    )
                else:
                    yield Progress(None, upper, min(bound, upper))

    def _solve_one(self, problem: Problem, upper: float, depth: int) -> Iterator[Progress]:
        if problem.n_nodes == 1:
            cost = problem.offset
            yield Progress(problem.decided if cost < upper else None, min(cost, upper), min(cost, upper))
            return
        lower = problem.offset
        marks: LandmarkBound | None = None
        for choice, cost in (greedy_choice(problem), tree_choice(problem)):
            if cost + problem.offset < upper:
                upper = cost + problem.offset
                yield Progress(problem.picked(choice), upper, lower)
        price = np.zeros(0)
        for tie_seed in range(3):
            found = landmark_bound(problem, self.budget, tie_seed=tie_seed)
            if marks is None or found.bound > marks.bound:
                marks, price = found, found.reduced
            lower = max(lower, self._lift(marks.bound + problem.offset))
            if self._closed(lower, upper):
                yield Progress(None, upper, upper)
                return
        assert marks is not None
        yield Progress(None, upper, lower)
        keep = self._excluded(problem, marks.bound, price, upper)
        if keep.sum() <= RESTART * problem.n_nodes or not keep[-1]:
            yield from self._restart(problem, keep, lower, upper, depth)
            return
        exact = eliminate(problem)
        if exact is not None:
            choice_or_none, cost = exact
            lower = max(lower, self._lift(cost + problem.offset))
            if choice_or_none is not None and cost + problem.offset < upper:
                upper = cost + problem.offset
                yield Progress(problem.picked(choice_or_none), upper, min(lower, upper))
            if self._closed(lower, upper):
                yield Progress(None, upper, upper)
                return
        yield from self._relax(problem, marks, lower, upper, depth)

    def _relax(
        self, problem: Problem, marks: LandmarkBound, lower: float, upper: float, depth: int
    ) -> Iterator[Progress]:
        """Relaxation with cuts; restarts when it excludes much, else cores, else branch and cut."""
        relaxation = Relaxation(problem, 1.0 / self.step if self.step else 1000.0 / upper)
        cuts = len(marks.cut_ptr) - 1
        relaxation.add_cuts(np.full(cuts, problem.root, dtype=np.int32), marks.cut_ptr, marks.cut)
        recent = [-inf] * 5
        tried = 0
        while not self.budget.spent and relaxation.solve(self.budget):
            choice, cost = repair(relaxation, relaxation.x)
            if cost + problem.offset < upper:
                upper = cost + problem.offset
                yield Progress(problem.picked(choice), upper, lower)
            lower = max(lower, self._lift(relaxation.value + problem.offset))
            if self._closed(lower, upper):
                yield Progress(None, upper, upper)
                return
            yield Progress(None, upper, lower)
            keep = self._excluded(problem, relaxation.value, relaxation.duals, upper)
            if keep.sum() <= RESTART * problem.n_nodes:
                yield from self._restart(problem, keep, lower, upper, depth)
                return
            fresh = relaxation.tighten(self.budget)
            gap = upper - problem.offset - relaxation.value
            recent = [*recent[1:], relaxation.value]
            if not fresh or recent[-1] - recent[0] < 0.02 * gap:
                break
        if depth < 2:
            for share in (0.0, 0.05, 0.2):
                core = self._core(problem, relaxation, share)
                if self.budget.spent or core is None:
                    continue
                before = upper
                for progress in self.solve(core, upper, depth + 1):
                    if progress.picked is not None and progress.cost < upper:
                        upper = progress.cost
                        yield Progress(progress.picked, upper, lower)
                tried += 1
                if upper < before:
                    keep = self._excluded(problem, relaxation.value, relaxation.duals, upper)
                    if keep.sum() <= RESTART * problem.n_nodes:
                        yield from self._restart(problem, keep, lower, upper, depth)
                        return
        outcome = branch_and_cut(relaxation, self._below(upper) - problem.offset, self.budget)
        lower = max(lower, self._lift(outcome.bound + problem.offset))
        if outcome.choice is not None:
            upper = outcome.cost + problem.offset
            yield Progress(problem.picked(outcome.choice), upper, min(lower, upper))
        if outcome.finished:
            lower = upper
        yield Progress(None, upper, min(lower, upper))

    def _restart(
        self, problem: Problem, keep: Mask, lower: float, upper: float, depth: int
    ) -> Iterator[Progress]:
        """The same search without the e-nodes that no cheaper solution uses."""
        keep = usable(problem.head, problem.ptr, problem.child, keep, problem.n_classes, problem.root)
        if not keep[-1]:
            yield Progress(None, upper, upper)
            return
        for progress in self.solve(restrict(problem, keep), upper, depth):
            yield Progress(progress.picked, progress.cost, min(progress.cost, max(lower, progress.bound)))

    def _core(self, problem: Problem, relaxation: Relaxation, share: float) -> Problem | None:
        """The problem with the e-nodes that cost the bound nothing, and a share of the others, cheapest first."""
        duals = relaxation.duals
        dear = np.sort(duals[duals > 1e-12])
        limit = dear[int(share * (len(dear) - 1))] if share and len(dear) else 1e-12
        keep = usable(
            problem.head, problem.ptr, problem.child, duals <= limit, problem.n_classes, problem.root
        )
        return restrict(problem, keep) if keep[-1] else None

    def _excluded(self, problem: Problem, bound: float, price: Floats, upper: float) -> Mask:
        """Which e-nodes may be in a solution cheaper than `upper`: reduced-cost fixing."""
        extra = detours(problem.head, price, problem.ptr, problem.child, problem.n_classes)
        keep = bound + problem.offset + extra <= self._below(upper) + 1e-9 * abs(upper)
        return keep

    def _below(self, upper: float) -> float:
        """What the next cheaper solution costs at most."""
        return upper - self.step * (1 - 1e-6) if self.step else upper * (1 - 1e-9)

    def _lift(self, bound: float) -> float:
        """The least cost a solution can have above a bound."""
        return ceil(bound / self.step - 1e-6) * self.step if self.step else bound

    def _closed(self, lower: float, upper: float) -> bool:
        return lower >= self._below(upper)
