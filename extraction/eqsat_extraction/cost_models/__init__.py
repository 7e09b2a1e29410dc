"""Cost models: prices of kernels on a target, found by name.

Every model, built in or not, is an entry point of the group `eqsat_deploy.cost_models`: its name, and a
callable that returns a `CostModel` and takes its options as keywords.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from eqsat_extraction.kernel import CostModel

GROUP = "eqsat_deploy.cost_models"


class CostModelError(ValueError):
    """A cost model is unknown, defined twice, wrongly built, or has no table for the device asked for."""


def cost_models() -> dict[str, EntryPoint]:
    """The registered cost models by name, in alphabetical order; none of them is imported.

    Raises `CostModelError`, naming both, when two packages register one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other != entry:
            raise CostModelError(
                f"two cost models are called {entry.name!r}: {_origin(other)} and {_origin(entry)}; "
                "uninstall one of the packages or rename its entry point"
            )
    return dict(sorted(found.items()))


def find_cost_model(name: str, **options: Any) -> CostModel:
    """The cost model called `name`, built with `options` (a roofline model takes `device=`, for instance).

    Raises `CostModelError` for a name that is not registered and for an entry point that makes something
    else.
    """
    known = cost_models()
    if name not in known:
        raise CostModelError(f"unknown cost model {name!r}; {_listed(known)}")
    model = known[name].load()(**options)
    if not isinstance(model, CostModel):
        raise CostModelError(
            f"cost model {name!r} ({_origin(known[name])}) made a {type(model).__name__}, not a CostModel: "
            "it needs name, unit, float_dtype, int8 and price(kernel)"
        )
    return model


def _origin(entry: EntryPoint) -> str:
    package = f" of {entry.dist.name}" if entry.dist is not None else ""
    return f"{entry.value}{package}"


def _listed(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return (
        f"known: {listed}"
        if listed
        else f"no entry point of group {GROUP!r} is installed: pip install eqsat-deploy"
    )
