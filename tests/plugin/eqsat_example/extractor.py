"""An extractor: the greedy answer, and then what local search makes of it."""

from __future__ import annotations

from collections.abc import Iterator

from eqsat_extraction import EGraph, Solution, anytime
from eqsat_extraction.egraph import Floats
from eqsat_extraction.extractor import Optimal


class Patient:
    """Greedy first, so that there is an answer at once; then the built-in search for as long as it may take."""

    name = "patient"
    optimal: Optimal = "anytime"

    def solutions(
        self, egraph: EGraph, costs: Floats, *, time_limit: float | None, work_limit: int | None, seed: int
    ) -> Iterator[Solution]:
        """Solutions, each better than the one before or with a better bound."""
        best = None
        for extractor in ("greedy", "auto"):
            for found in anytime(
                egraph, costs, extractor=extractor, time_limit=time_limit, work_limit=work_limit, seed=seed
            ):
                if best is None or found.cost < best.cost or found.bound > best.bound:
                    best = found
                    yield found.named(self.name)
