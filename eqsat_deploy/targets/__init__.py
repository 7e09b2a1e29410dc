"""Targets: what is priced, quantized and built for, one declaration each.

Every target, built in or not, is an entry point of the group `eqsat_deploy.targets`: its name, and a `Target`.
"""

from __future__ import annotations

from dataclasses import dataclass

from eqsat_deploy.engines.base import Engine
from eqsat_deploy.errors import EngineError, EqsatError, InputError, RegistrationError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.targets.target import Target, Triton
from eqsat_extraction.cost_models import find_cost_model
from eqsat_extraction.kernel import CostModel
from eqsat_extraction.registry import Registry

__all__ = [
    "TARGETS", "Candidate", "IntegerGrid", "Target", "Triton", "auto", "candidates", "find_cost", "find_engine",
    "find_target", "target_of",
]  # fmt: skip

MEASURED = "measured"
TARGETS: Registry[Target] = Registry(
    "eqsat_deploy.targets", "target", lambda found: isinstance(found, Target), "to be a Target"
)


@dataclass(frozen=True)
class Candidate:
    """A registered target on this machine. `lacks` is what keeps it from being built, None where nothing does;
    `target` is None where it cannot even be imported."""

    name: str
    target: Target | None
    lacks: str | None


def candidates() -> tuple[Candidate, ...]:
    """Every registered target in order of preference: by rank, then by name; those that cannot be imported last.

    Raises `RegistrationError` when two packages register one name.
    """
    return tuple(sorted(map(_candidate, TARGETS.entries()), key=_preference))


def auto() -> Target:
    """The preferred target among those that this machine can build.

    Raises `EngineError`, which says what each one lacks.
    """
    found = candidates()
    for candidate in found:
        if candidate.target is not None and candidate.lacks is None:
            return candidate.target
    reasons = "; ".join(f"{candidate.name}: {candidate.lacks}" for candidate in found)
    raise EngineError(
        "no engine is available on this machine; install one, or name a cost model to optimize without: "
        + (reasons or "no target is registered, run `pip install -e .` in the checkout")
    )


def find_target(name: str = "auto") -> Target:
    """The target called `name`, whether or not this machine can build for it; with `auto`, `auto()`.

    Raises `UnknownNameError` with near misses, and `RegistrationError` where its entry point is no target.
    """
    if name == "auto":
        return auto()
    target = TARGETS.find(name)
    if target.name != name:
        raise RegistrationError(
            f"target {name!r} has an engine called {target.name!r}: its entry point must have the same name"
        )
    return target


def find_engine(name: str = "auto") -> type[Engine]:
    """The engine of the target called `name`, or of `auto()`; `EngineError` says how to get one that is not there."""
    target = find_target(name)
    if (reason := target.unavailable) is not None:
        raise EngineError(f"engine {name!r} is not available: {reason}")
    return target.engine


def find_cost(cost: str | CostModel) -> CostModel:
    """The cost model called `cost`, made for the device of this machine; `cost` itself where it is one.

    `measured` measures on the engine of this machine, and `measured:NAME` on that of the cost model NAME, which prices
    what is not measured.

    Raises:
        UnknownNameError: no such cost model is registered.
        InputError: `cost` is neither a name nor a cost model.
    """
    if not isinstance(cost, str):
        if isinstance(cost, type) or not isinstance(cost, CostModel):
            raise InputError(
                f"cost={cost!r}: needs the name of a cost model, or an object with name, unit, float_dtype, int8 and "
                "price(kernel)"
            )
        return cost
    kind, _, table = cost.partition(":")
    if kind == MEASURED:
        return find_cost_model(MEASURED, table=table or "auto")
    target = auto() if cost == "auto" else target_of(cost)
    if target is None:
        return find_cost_model(cost)
    return find_cost_model(target.cost_models[0] if cost == "auto" else cost, **target.cost_options())


def target_of(cost_model: str) -> Target | None:
    """The target that the cost model of this name prices for, the preferred one of several; None where there is none,
    as for those that only count."""
    table = cost_model.removeprefix(f"{MEASURED}:")
    targets = (candidate.target for candidate in candidates())
    return next((target for target in targets if target is not None and table in target.cost_models), None)


def _candidate(name: str) -> Candidate:
    try:
        target = find_target(name)
        return Candidate(name, target, target.unavailable)
    except EqsatError as error:
        return Candidate(name, None, str(error))
    except Exception as error:  # a plugin may fail in any way, and costs itself alone
        return Candidate(name, None, f"{type(error).__name__}: {error}")


def _preference(candidate: Candidate) -> tuple[bool, int, str]:
    return candidate.target is None, candidate.target.rank if candidate.target else 0, candidate.name
