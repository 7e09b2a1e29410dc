"""Checks of arguments: what does not fit is an `InputError` that names the argument and says what would."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from math import isfinite
from typing import Any, ParamSpec, TypeVar

from eqsat_extraction.errors import InputError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def checked(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates a public function or method: an argument that is not of its annotated type is an `InputError`."""

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        checking: Callable[Arguments, Result] = _checking(function)
        return checking(*args, **kwargs)

    return call


@cache
def _checking(function: Callable[..., Any]) -> Callable[..., Any]:
    # Imported by the first call: it takes as long as everything else that loading an engine imports.
    from beartype import BeartypeConf, beartype

    conf = BeartypeConf(violation_param_type=InputError, is_color=False, is_pep484_tower=True)
    return beartype(conf=conf)(function)


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """`value` as a whole number from `least` on.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: a whole number from {least} on is expected")
    return value


def seconds(name: str, value: Any) -> float | None:
    """`value` as a positive number of seconds, or None for no limit.

    Raises:
        InputError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and isfinite(value)):
        raise InputError(f"{name}={value!r}: a positive number of seconds, or None, is expected")
    return float(value)


def finite(name: str, value: Any, *, least: float = 0.0) -> float:
    """`value` as a finite number from `least` on.

    Raises:
        InputError: it is none.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (least <= value and isfinite(value))
    ):
        raise InputError(f"{name}={value!r}: a number from {least:g} on is expected")
    return float(value)


def limits(time_limit: float | None, work_limit: float | None, seed: int) -> None:
    """Check what bounds an extraction.

    Raises:
        InputError: a limit is negative or not finite, or the seed no whole number from 0 on.
    """
    for name, limit in (("time_limit", time_limit), ("work_limit", work_limit)):
        if limit is not None:
            finite(name, limit)
    whole("seed", seed, least=0)


def instance(name: str, value: Any, *kinds: type) -> Any:
    """`value`, which is of one of `kinds`.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{name}: {wanted} is expected, not {type(value).__name__} ({str(value)[:60]})")
    return value
