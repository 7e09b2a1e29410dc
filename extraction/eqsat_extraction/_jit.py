"""One typed door to numba: compiled once, cached on disk beside the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def jit(function: Function) -> Function:
    """`numba.njit` with its disk cache, keeping the function's type."""
    return cast(Function, numba.njit(cache=True, nogil=True)(function))
