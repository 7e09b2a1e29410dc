"""The built-in extractors, each an entry point."""

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

NOTABLE = 0.005
"""Share of the gap whose closing is worth a new solution object (building and checking one walks the e-graph)."""


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
        """A solution whenever the gap has shrunk by a `NOTABLE` share, and the last one."""
        budget = Budget(time_limit, work_limit)
        search = Search(budget, granule(costs), seed)
        shown: Solution | None = None
        picked: Ints | None = None
        gap = inf
        for progress in self.run(search, from_egraph(egraph, costs)):
            picked = picked if progress.picked is None else progress.picked
            cost, bound = progress.cost, progress.bound
            if shown is None or cost - bound <= (1 - NOTABLE) * gap:
                before = budget.seconds
                shown, gap = self._solution(egraph, costs, shown, picked, bound, budget), cost - bound
                picked = None
                budget.reserve(2 * (budget.seconds - before))  # the last one will take as long, and its check
                yield shown
                if shown.proved:
                    return
        last = self._solution(egraph, costs, shown, picked, bound, budget)
        if shown is None or (last.cost, last.bound) != (shown.cost, shown.bound):
            yield last

    def _solution(
        self,
        egraph: EGraph,
        costs: Floats,
        before: Solution | None,
        picked: Ints | None,
        bound: float,
        budget: Budget,
    ) -> Solution:
        """The solution before, or a cheaper one that was picked since, with the highest bound known."""
        best = before
        if picked is not None:
            found = Solution.from_nodes(egraph, costs, picked)
            best = found if best is None or found.cost < best.cost else best
        assert best is not None
        bound = max(bound, 0.0 if before is None else before.bound)
        closed = bound >= best.cost * (1 - 1e-9)
        return best.named(self.name, bound=best.cost if closed else bound, seconds=budget.seconds)


tree: Extractor = _Greedy("tree", "tree", _cheapest_trees)
greedy: Extractor = _Greedy("greedy", "neither", _cheapest_dags)
local: Extractor = _Searching("local", "neither", Search.local)
ilp: Extractor = _Searching("ilp", "dag", Search.integer_program)
auto: Extractor = _Searching("auto", "anytime", Search.run)
