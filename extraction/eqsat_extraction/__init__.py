"""E-graphs as arrays, extractors with certified gaps, and kernel cost models.

egraph, costs = load_json("egraph.json")
solution = extract(egraph, costs, time_limit=10)
solution.cost, solution.bound, solution.gap, solution.order(egraph)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from numpy.typing import ArrayLike

from .egraph import EGraph
from .errors import CostError, EGraphError, ExtractionError, GymFormatWarning, InfeasibleError, SolutionError
from .extractor import Extractor, Optimal
from .gym import dump_json, load_json
from .solution import Solution

__all__ = [
    "CostError",
    "EGraph",
    "EGraphError",
    "ExtractionError",
    "Extractor",
    "GymFormatWarning",
    "InfeasibleError",
    "Optimal",
    "Solution",
    "SolutionError",
    "anytime",
    "dump_json",
    "extract",
    "extractors",
    "load_json",
]


def extractors() -> Mapping[str, Extractor]:
    """The built-in extractors by name."""
    from .builtin import EXTRACTORS

    return EXTRACTORS


def anytime(
    egraph: EGraph,
    costs: ArrayLike,
    *,
    extractor: str | Extractor = "auto",
    time_limit: float | None = 10.0,
    work_limit: int | None = None,
    seed: int = 0,
) -> Iterator[Solution]:
    """Checked solutions, each with a lower cost or a higher bound than the one before.

    `costs` (n,) are non-negative, infinite where an e-node may not be chosen. Runs until the cost is proved
    optimal, `time_limit` seconds have passed (kept within a second) or `work_limit` units of work are spent;
    under a work limit without a time limit, one seed gives one sequence. Stop iterating to interrupt it.
    Raises `CostError`, `InfeasibleError`, or `ExtractionError` for an unknown extractor.
    """
    prices = egraph.check_costs(costs)
    if isinstance(extractor, str):
        known = extractors()
        if extractor not in known:
            raise ExtractionError(f"unknown extractor {extractor!r}; known: {', '.join(known)}")
        extractor = known[extractor]
    for solution in extractor.solutions(
        egraph, prices, time_limit=time_limit, work_limit=work_limit, seed=seed
    ):
        solution.check(egraph, prices)
        yield solution


def extract(
    egraph: EGraph,
    costs: ArrayLike,
    *,
    extractor: str | Extractor = "auto",
    time_limit: float | None = 10.0,
    work_limit: int | None = None,
    seed: int = 0,
) -> Solution:
    """The last solution of `anytime`: the best one, with the highest bound."""
    *_, last = anytime(
        egraph, costs, extractor=extractor, time_limit=time_limit, work_limit=work_limit, seed=seed
    )
    return last
