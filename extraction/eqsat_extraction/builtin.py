"""The built-in extractors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ._budget import Budget
from .egraph import EGraph, Floats, Ints
from .extractor import Extractor, Optimal
from .greedy import greedy_choice, tree_choice
from .problem import Problem, from_egraph
from .solution import Solution


@dataclass(frozen=True)
class _OneShot:
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
            egraph,
            costs,
            problem.picked(choice),
            seconds=budget.seconds,
            extractor=self.name,
        )


EXTRACTORS: dict[str, Extractor] = {
    extractor.name: extractor
    for extractor in (
        _OneShot("tree", "tree", tree_choice),
        _OneShot("greedy", "neither", greedy_choice),
        _OneShot("auto", "neither", greedy_choice),
    )
}
