"""E-graphs as arrays, extractors with certified gaps, and kernel cost models.

egraph, costs = load_json("egraph.json")
solution = extract(egraph, costs, time_limit=10)
solution.cost, solution.bound, solution.gap, solution.order(egraph)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint

from numpy.typing import ArrayLike

from .arguments import checked, limits, whole
from .egraph import EGraph, Floats
from .errors import (
    CostError,
    EGraphError,
    EqsatError,
    ExtractionError,
    GymFormatWarning,
    InfeasibleError,
    InputError,
    RegistrationError,
    SolutionError,
    UnknownNameError,
)
from .extractor import Extractor, Optimal
from .gym import dump_json, load_json
from .solution import Solution

__all__ = [
    "CostError",
    "EGraph",
    "EGraphError",
    "EqsatError",
    "ExtractionError",
    "Extractor",
    "GymFormatWarning",
    "InfeasibleError",
    "InputError",
    "Optimal",
    "RegistrationError",
    "Solution",
    "SolutionError",
    "UnknownNameError",
    "anytime",
    "dump_json",
    "extract",
    "extract_within",
    "extractors",
    "find_extractor",
    "k_best",
    "load_json",
    "pareto",
    "scalarize",
    "totals",
]


@checked
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
    """Up to `k` distinct, checked solutions, cheapest first; see `eqsat_extraction.kbest.k_best`."""
    from . import kbest

    limits(time_limit, work_limit, seed)
    found = kbest.k_best(
        egraph, costs, k, diversity=diversity, time_limit=time_limit, work_limit=work_limit, seed=seed
    )
    for solution in found:
        solution.check(egraph, costs)
    return found


def scalarize(costs: ArrayLike, weights: ArrayLike) -> Floats:
    """Vectors of costs (n, d) weighted (d,) into one cost (n,); see `eqsat_extraction.vector.scalarize`."""
    from . import vector

    return vector.scalarize(costs, weights)


def totals(costs: ArrayLike, solution: Solution) -> Floats:
    """The sum (d,) of every component of `costs` (n, d) over a solution's e-nodes."""
    from . import vector

    return vector.totals(costs, solution)


@checked
def extract_within(
    egraph: EGraph,
    costs: ArrayLike,
    limit: float,
    *,
    time_limit: float | None = 10.0,
    work_limit: int | None = None,
    seed: int = 0,
) -> Solution:
    """The least first cost whose second cost keeps a limit; see `eqsat_extraction.vector.extract_within`."""
    from . import vector

    limits(time_limit, work_limit, seed)
    return vector.extract_within(
        egraph, costs, limit, time_limit=time_limit, work_limit=work_limit, seed=seed
    )


@checked
def pareto(
    egraph: EGraph,
    costs: ArrayLike,
    *,
    points: int = 16,
    time_limit: float | None = 10.0,
    seed: int = 0,
) -> list[Solution]:
    """Solutions between the least first and the least second cost; see `eqsat_extraction.vector.pareto`."""
    from . import vector

    limits(time_limit, None, seed)
    whole("points", points, least=2)
    return vector.pareto(egraph, costs, points=points, time_limit=time_limit, seed=seed)


def extractors() -> Mapping[str, EntryPoint]:
    """The registered extractors by name, not yet imported; see `eqsat_extraction.extractor.extractors`."""
    from . import extractor

    return extractor.extractors()


@checked
def find_extractor(name: str) -> Extractor:
    """The extractor called `name`; see `eqsat_extraction.extractor.find_extractor`."""
    from . import extractor

    return extractor.find_extractor(name)


@checked
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
    optimal, `time_limit` seconds have passed (kept within a second; compiling, once per installation, is not
    counted) or `work_limit` units of work are spent; under a work limit without a time limit, one seed gives one
    sequence. Stop iterating to interrupt it.
    Raises `CostError`, `InfeasibleError`, or `UnknownNameError`.
    """
    limits(time_limit, work_limit, seed)
    prices = egraph.check_costs(costs)
    if isinstance(extractor, str):
        extractor = find_extractor(extractor)
    proved = None
    for solution in extractor.solutions(
        egraph, prices, time_limit=time_limit, work_limit=work_limit, seed=seed
    ):
        if solution.choice is not proved:
            solution.check(egraph, prices)
            proved = solution.choice
        yield solution


@checked
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
