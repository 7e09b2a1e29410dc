"""The built-in extractors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from ._budget import Budget
from ._graph import cheapest_trees
from .egraph import EGraph, Floats, Ints
from .extractor import Extractor, Optimal
from .greedy import greedy_choice
from .problem import Problem, from_egraph
from .search import Progress, Search, granule
from .solution import Solution


@dataclass(frozen=True)
class _Greedy:
    """An extractor that answers once, with e-nodes."""

    name: str
    optimal: Optimal
    choose: Callable[[EGraph, Floats], Ints]

    def solutions(
        self, egraph: EGraph, costs: Floats, *, time_limit: float | None, work_limit: int | None, seed: int
    ) -> Iterator[Solution]:
        """One solution; limits and seed are not needed."""
        budget = Budget(time_limit, work_limit)
        nodes = self.choose(egraph, costs)
        yield Solution.from_nodes(egraph, costs, nodes, seconds=budget.seconds, extractor=self.name)


def _cheapest_trees(egraph: EGraph, costs: Floats) -> Ints:
    """The e-nodes of least tree cost; an operand that is read twice counts twice."""
    from_egraph(egraph, costs)  # raises where a root cannot be built
    _, choice, _ = cheapest_trees(
        egraph.node_class, costs, egraph.child_ptr, egraph.children, egraph.n_classes
    )
    return choice[choice >= 0]


def _cheapest_dags(egraph: EGraph, costs: Floats) -> Ints:
    """The e-nodes of DAG-greedy."""
    problem = from_egraph(egraph, costs)
    return problem.picked(greedy_choice(problem)[0])


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
        _Greedy("tree", "tree", _cheapest_trees),
        _Greedy("greedy", "neither", _cheapest_dags),
        _Searching("local", "neither", Search.local),
        _Searching("ilp", "dag", Search.integer_program),
        _Searching("auto", "anytime", Search.solve),
    )
}
