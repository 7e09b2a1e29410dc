"""Vectors of costs: a weighted sum, a budget on one component, and the front between two components."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._budget import Budget
from .egraph import EGraph, Floats, as_floats
from .errors import CostError, InfeasibleError
from .mip import branch_and_cut
from .problem import from_egraph
from .relaxation import Relaxation
from .solution import Solution


def scalarize(costs: ArrayLike, weights: ArrayLike) -> Floats:
    """`costs` (n, d) weighted with `weights` (d,), which are finite and not negative, as one cost (n,).

    An e-node with any infinite component stays forbidden, whatever its weight. Raises `CostError`.
    """
    vectors, factors = as_floats("costs", costs), as_floats("weights", weights)
    if vectors.ndim != 2 or factors.shape != vectors.shape[1:]:
        raise CostError(f"costs {vectors.shape} and weights {factors.shape} must have shapes (n, d) and (d,)")
    if not np.all(np.isfinite(factors) & (factors >= 0)):
        raise CostError("weights must be finite and not negative")
    forbidden = np.isinf(vectors).any(axis=1)
    return np.where(forbidden, np.inf, np.where(np.isinf(vectors), 0.0, vectors) @ factors)


def totals(costs: ArrayLike, solution: Solution) -> Floats:
    """The sum (d,) of every component of `costs` (n, d) over a solution's e-nodes."""
    vectors = as_floats("costs", costs)
    if vectors.ndim != 2 or len(vectors) <= max(solution.nodes(), default=-1):
        raise CostError(f"costs have shape {vectors.shape}; expected (n, d), a vector per e-node")
    return np.asarray(vectors[solution.nodes()].sum(axis=0), dtype=np.float64)


def extract_within(
    egraph: EGraph,
    costs: ArrayLike,
    limit: float,
    *,
    time_limit: float | None = 10.0,
    work_limit: int | None = None,
    seed: int = 0,
) -> Solution:
    """The cheapest solution by the first component of `costs` (n, 2) whose second sums to at most `limit`.

    First the best multiplier of the second component (a Lagrangian bound, and solutions on the front's convex
    hull), then branch and cut with the limit as a row. `bound` is certified for the constrained problem.
    Raises `InfeasibleError` when no solution keeps the limit, and like `extract`.
    """
    from . import extract

    vectors = as_floats("costs", costs)
    if vectors.ndim != 2 or vectors.shape[1] != 2:
        raise CostError(f"costs have shape {vectors.shape}; a budgeted extraction needs (n, 2)")
    budget = Budget(time_limit, work_limit)

    def solve(first: float, second: float) -> Solution:
        return extract(
            egraph,
            scalarize(vectors, (first, second)),
            time_limit=None if time_limit is None else max(0.05, budget.left / 8),
            work_limit=work_limit,
            seed=seed,
        )

    tolerance = 1e-9 * max(1.0, abs(limit))
    best: Solution | None = None
    lower = 0.0
    low, high = 0.0, np.inf
    cheap, safe = solve(1.0, 0.0), solve(0.0, 1.0)
    if safe.bound > limit + tolerance:
        raise InfeasibleError(
            f"no solution keeps the second cost at or below {limit:g}; the least is {safe.cost:g}"
        )
    candidates = [cheap, safe]
    lower = cheap.bound
    ends = [totals(vectors, cheap), totals(vectors, safe)]
    for _ in range(24):
        for candidate in candidates:
            cost, used = totals(vectors, candidate)
            if used <= limit + tolerance and (best is None or cost < best.cost):
                best = _priced(candidate, float(cost), lower)
        (cost_a, used_a), (cost_b, used_b) = ends
        if used_a <= limit + tolerance or used_a - used_b <= tolerance or budget.spent:
            break
        factor = (cost_b - cost_a) / (used_a - used_b)
        if not low < factor < high:
            break
        middle = solve(1.0, factor)
        lower = max(lower, middle.bound - factor * limit)
        candidates = [middle]
        point = totals(vectors, middle)
        on_line = cost_a + factor * used_a
        if point[0] + factor * point[1] >= on_line - 1e-9 * max(1.0, abs(on_line)):
            break
        if point[1] > limit + tolerance:
            ends[0], low = point, factor
        else:
            ends[1], high = point, factor
    for candidate in candidates:
        cost, used = totals(vectors, candidate)
        if used <= limit + tolerance and (best is None or cost < best.cost):
            best = _priced(candidate, float(cost), lower)
    ceiling = np.inf if best is None else best.cost
    if lower < ceiling * (1 - 1e-9):
        problem = from_egraph(egraph, scalarize(vectors, (1.0, 0.0)))
        relaxation = Relaxation(problem, 1.0 if not np.isfinite(ceiling) else 1000.0 / ceiling)
        relaxation.limit_sum(np.append(vectors[problem.part, 1], 0.0), limit + tolerance)
        while not budget.spent and relaxation.solve(budget) and relaxation.tighten(budget):
            if relaxation.value >= ceiling:
                break
        outcome = branch_and_cut(relaxation, ceiling * (1 - 1e-9), budget)
        lower = max(lower, min(outcome.bound, ceiling))
        if outcome.choice is not None:
            best = Solution.from_nodes(
                egraph, scalarize(vectors, (1.0, 0.0)), problem.picked(outcome.choice), bound=lower
            )
        elif outcome.finished and best is None:
            raise InfeasibleError(f"no solution keeps the second cost at or below {limit:g}")
        if outcome.finished:
            assert best is not None
            lower = best.cost
    if best is None:
        raise InfeasibleError(
            f"no solution with the second cost at or below {limit:g} was found in the time given"
        )
    return best.named("within", bound=max(lower, best.bound), seconds=budget.seconds)


def pareto(
    egraph: EGraph,
    costs: ArrayLike,
    *,
    points: int = 16,
    time_limit: float | None = 10.0,
    seed: int = 0,
) -> list[Solution]:
    """Solutions on the lower convex hull of two costs (n, 2), from least first cost to least second cost.

    Each is optimal (within its own `gap`) for some weighting; its `cost` and `bound` are of that weighted sum.
    Raises like `extract`.
    """
    from . import extract

    vectors = as_floats("costs", costs)
    if vectors.ndim != 2 or vectors.shape[1] != 2:
        raise CostError(f"costs have shape {vectors.shape}; a front between two costs needs (n, 2)")
    budget = Budget(time_limit, None)

    def solve(first: float, second: float) -> Solution:
        return extract(
            egraph,
            scalarize(vectors, (first, second)),
            time_limit=None if time_limit is None else max(0.05, budget.left / 4),
            seed=seed,
        )

    # A little of the other cost keeps the ends of the front undominated.
    found = [solve(1.0, 1e-6), solve(1e-6, 1.0)]
    spans = [0]
    while spans and len(found) < points and not budget.spent:
        k = spans.pop(0)
        (a1, a2), (b1, b2) = totals(vectors, found[k]), totals(vectors, found[k + 1])
        if a2 - b2 <= 1e-9 or b1 - a1 <= 1e-9:
            continue
        weights = (a2 - b2, b1 - a1)
        middle = solve(*weights)
        m1, m2 = totals(vectors, middle)
        if weights[0] * m1 + weights[1] * m2 >= (weights[0] * a1 + weights[1] * a2) * (1 - 1e-9):
            continue
        found.insert(k + 1, middle)
        spans = [s if s < k else s + 1 for s in spans] + [k, k + 1]
    return found


def _priced(solution: Solution, cost: float, bound: float) -> Solution:
    return Solution(solution.choice, cost, min(bound, cost), solution.seconds, solution.extractor)
