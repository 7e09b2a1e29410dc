"""The built-in extractors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from ._budget import Budget
from .egraph import EGraph, Floats, Ints
from .extractor import Extractor, Optimal
from .greedy import greedy_choice, tree_choice
from .problem import Problem, from_egraph
from .search import Progress, Search, granule
from .solution import Solution


@dataclass(frozen=True)
class _Greedy:
    """An extractor that answers once, from a function of the problem."""

    name: str
    optimal: Optimal
    choose: Callable[[Problem], tuple[Ints, float]]

    def solutions(
        self, egraph: EGraph, costs: Floats, *, time_limit: float | None, work_limit: int | None, seed: int
    ) -> Iterator[Solution]:
        """One solution; limits and seed are not needed."""
        budget = Budget(time_limit, work_limit)
        problem = from_egraph(egraph, costs)
        choice, _ = self.choose(problem)
        yield Solution.from_nodes(
            egraph, costs, problem.picked(choice), seconds=budget.seconds, extractor=self.name
        )


@dataclass(frozen=True)
class _Searching:
    """An extractor that runs a part of the portfolio."""

    name: str
    optimal: Optimal
    run: Callable[[Search, Problem], Iterator[Progress]]

    def solutions(
        self, egraph: EGraph, costs: Floats, *, time_limit: float | None, work_limit: int | None, seed: int
    ) -> Iterator[Solution]:
        """A solution whenever the cost fell or the bound rose."""
        budget = Budget(time_limit, work_limit)
        search = Search(budget, granule(costs), seed)
        best: Solution | None = None
        for progress in self.run(search, from_egraph(egraph, costs)):
            before = (inf, -inf) if best is None else (best.cost, best.bound)
            if progress.picked is not None:
                best = Solution.from_nodes(egraph, costs, progress.picked)
            assert best is not None
            bound = max(before[1], best.cost if progress.bound >= progress.cost else progress.bound)
            best = best.named(self.name, bound=bound, seconds=budget.seconds)
            if (best.cost, -best.bound) < (before[0], -before[1]) and best.cost <= before[0]:
                yield best
            if best.proved:
                return


EXTRACTORS: dict[str, Extractor] = {
    extractor.name: extractor
    for extractor in (
        _Greedy("tree", "tree", tree_choice),
        _Greedy("greedy", "neither", greedy_choice),
        _Searching("local", "neither", Search.local),
        _Searching("ilp", "dag", Search.integer_program),
        _Searching("auto", "anytime", Search.solve),
    )
}
