"""What an extractor is: one method, and a declaration of what its answers are optimal for; finding them by name.

Every extractor, built in or not, is an entry point of the group `eqsat_deploy.extractors`: its name, and an
`Extractor` or a callable without arguments (a class, say) that makes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, Protocol, runtime_checkable

from .egraph import EGraph, Floats
from .errors import ExtractionError
from .solution import Solution

GROUP = "eqsat_deploy.extractors"

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


def extractors() -> dict[str, EntryPoint]:
    """The registered extractors by name, in alphabetical order; none of them is imported.

    Raises `ExtractionError`, naming both, when two packages register one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other != entry:
            raise ExtractionError(
                f"two extractors are called {entry.name!r}: {other.value} and {entry.value}; "
                "uninstall one of the packages or rename its entry point"
            )
    return dict(sorted(found.items()))


def find_extractor(name: str) -> Extractor:
    """The extractor called `name`.

    Raises `ExtractionError` for a name that is not registered and for an entry point that is something else.
    """
    known = extractors()
    if name not in known:
        raise ExtractionError(
            f"unknown extractor {name!r}; known: {', '.join(known)}"
            if known
            else f"no entry point of group {GROUP!r} is installed: pip install eqsat-deploy"
        )
    loaded = known[name].load()
    extractor = loaded if not isinstance(loaded, type) and isinstance(loaded, Extractor) else loaded()
    if not isinstance(extractor, Extractor):
        raise ExtractionError(
            f"extractor {name!r} ({known[name].value}) made a {type(extractor).__name__}, not an Extractor: "
            "it needs name, optimal and solutions(...)"
        )
    return extractor
