"""Checks of arguments: what does not fit is an `InputError` that names the argument and says what would."""

from __future__ import annotations

from math import isfinite
from typing import Any

from eqsat_deploy.errors import InputError


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


def instance(name: str, value: Any, *kinds: type) -> Any:
    """`value`, which is of one of `kinds`.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{name}: {wanted} is expected, not {type(value).__name__} ({str(value)[:60]})")
    return value
