"""What an extractor is: one method, and a declaration of what its answers are optimal for; finding them by name.

Every extractor, built in or not, is an entry point of the group `eqsat_deploy.extractors`: its name, and an
`Extractor` or a callable without arguments (a class, say) that makes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Literal, Protocol, runtime_checkable

from .egraph import EGraph, Floats
from .registry import Registry
from .solution import Solution

Optimal = Literal["tree", "dag", "neither", "anytime"]
"""`tree`: least tree cost. `dag`: least cost, shared parts once, unless a limit stops it. `neither`: a
heuristic. `anytime`: improves, and is `dag` once its answer is `proved`."""


@runtime_checkable
class Extractor(Protocol):
    """Finds solutions of an e-graph."""

    @property
    def name(self) -> str:
        """The name it is asked for by."""
        ...

    @property
    def optimal(self) -> Optimal:
        """What its answers are optimal for."""
        ...

    def solutions(
        self, egraph: EGraph, costs: Floats, *, time_limit: float | None, work_limit: int | None, seed: int
    ) -> Iterator[Solution]:
        """Solutions, each with a lower cost or a higher bound than the one before; at least one.

        `costs` are checked: float64 (n,), non-negative, infinite where forbidden. Raises `InfeasibleError`
        when there is none. Stops by itself when proved, within a second of `time_limit` seconds, or when
        `work_limit` units of counted work are spent.
        """
        ...


EXTRACTORS: Registry[Extractor] = Registry(
    "eqsat_deploy.extractors",
    "extractor",
    lambda found: not isinstance(found, type) and isinstance(found, Extractor),
    "name, optimal and solutions(...)",
)


def extractors() -> dict[str, EntryPoint]:
    """The registered extractors by name, in alphabetical order; none of them is imported.

    Raises `RegistrationError`, naming both, when two packages register one name.
    """
    return EXTRACTORS.entries()


def find_extractor(name: str) -> Extractor:
    """The extractor called `name`.

    Raises `UnknownNameError`, and `RegistrationError` for an entry point that is something else.
    """
    return EXTRACTORS.find(name)
