"""Cost models: prices of kernels on a target, found by name.

Every model, built in or not, is an entry point of the group `eqsat_deploy.cost_models`: its name, and a
callable that returns a `CostModel` and takes its options as keywords.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from eqsat_extraction.errors import EqsatError
from eqsat_extraction.kernel import CostModel
from eqsat_extraction.registry import Registry


class CostModelError(EqsatError):
    """A cost model has no table for the device asked for, or its table is incomplete."""


COST_MODELS: Registry[CostModel] = Registry(
    "eqsat_deploy.cost_models",
    "cost model",
    lambda found: not isinstance(found, type) and isinstance(found, CostModel),
    "name, unit, float_dtype, int8 and price(kernel)",
)


def cost_models() -> dict[str, EntryPoint]:
    """The registered cost models by name, in alphabetical order; none of them is imported.

    Raises `RegistrationError`, naming both, when two packages register one name.
    """
    return COST_MODELS.entries()


def find_cost_model(name: str, **options: Any) -> CostModel:
    """The cost model called `name`, built with `options` (a roofline model takes `device=`, for instance).

    Raises `UnknownNameError`, and `RegistrationError` for an entry point that makes something else.
    """
    return COST_MODELS.find(name, **options)
