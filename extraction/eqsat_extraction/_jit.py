"""One typed door to numba: compiled once, cached on disk beside the source; and how long compiling took."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar, cast

import numba
from numba.core import event

Function = TypeVar("Function", bound=Callable[..., object])


def jit(function: Function) -> Function:
    """`numba.njit` with its disk cache, keeping the function's type."""
    return cast(Function, numba.njit(cache=True, nogil=True)(function))


class _Stopwatch(cast(type[Any], event.Listener)):  # type: ignore[misc]
    """Seconds during which numba compiled; compiling one function may compile others."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.depth = 0
        self.since = 0.0

    def on_start(self, event: Any) -> None:
        self.depth += 1
        if self.depth == 1:
            self.since = monotonic()

    def on_end(self, event: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.seconds += monotonic() - self.since


_compiling = _Stopwatch()
cast(Any, event).register("numba:compile", _compiling)


def compile_seconds() -> float:
    """Seconds that this process has spent compiling so far; about half a minute when nothing is cached yet."""
    return _compiling.seconds
