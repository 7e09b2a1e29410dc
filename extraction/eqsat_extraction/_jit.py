"""One typed door to numba: interpreted while that is cheap, then compiled once and cached on disk beside the source.

Compiling everything takes half a minute, loading it from the cache a second; extraction from the e-graph of a small
model takes less than that in the interpreter, which computes the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache, cached_property, update_wrapper
from pathlib import Path
from time import monotonic, thread_time
from types import FunctionType
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., object])

SMALL = 100_000
"""Entries of a call's arrays above which it, and every later one, is not interpreted."""
SMALL_IN_CACHE = 10_000
"""The same for a function that is in numba's cache already."""
PATIENCE = 1.0
"""Seconds of a core in the interpreter after which a function is compiled: about what compiling it takes."""
QUICK = 0.02
"""The same for a function that is in numba's cache: about what loading it takes. Once numba is there, none waits."""


def jit(function: Function) -> Function:
    """`numba.njit` with its disk cache, from the moment it pays; keeps the function's type."""
    return cast(Function, _Tiered(cast(FunctionType, function)))


class _Tiered:
    """A function over arrays, interpreted until it has taken long enough to be worth compiling."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        self.seconds = 0.0
        self.hot = False
        update_wrapper(self, function)

    def __call__(self, *args: Any) -> Any:
        self.hot = self.hot or self._pays(sum(getattr(arg, "size", 0) for arg in args))
        if self.hot:
            return self.compiled(*args)
        start = thread_time()
        result = self.plain(*args)
        self.seconds += thread_time() - start
        return result

    def _pays(self, size: int) -> bool:
        """Whether a call on arrays of `size` entries in all is worth compiling for, or loading numba and its cache."""
        if size > SMALL or self.seconds > PATIENCE:
            return True
        worth = "numba" in sys.modules or size > SMALL_IN_CACHE or self.seconds > QUICK
        return worth and self._is_cached

    @cached_property
    def plain(self) -> FunctionType:
        """The function for the interpreter; what it calls is plain as well."""
        return self._calling(lambda other: other.plain)

    @cached_property
    def compiled(self) -> Any:
        """The function for numba, which compiles or loads it when it is called."""
        return _numba().njit(cache=True, nogil=True)(self._calling(lambda other: other.compiled))

    def _calling(self, tier: Callable[[_Tiered], Any]) -> FunctionType:
        known = self.function.__globals__
        called = {name: known[name] for name in self.function.__code__.co_names if name in known}
        tiers = {name: tier(other) for name, other in called.items() if isinstance(other, _Tiered)}
        copy = FunctionType(self.function.__code__, {**known, **tiers}, self.function.__name__)
        copy.__qualname__, copy.__module__ = self.function.__qualname__, self.function.__module__
        return copy

    @cached_property
    def _is_cached(self) -> bool:
        """Whether numba has an index for the function where it keeps them first; asked without importing numba."""
        code = self.function.__code__
        source = Path(code.co_filename)
        folder = Path(os.environ.get("NUMBA_CACHE_DIR") or source.parent / "__pycache__")
        index = f"{source.stem}.{self.function.__qualname__}-{code.co_firstlineno}.*.nbi"
        return any(folder.rglob(index))


@cache
def _numba() -> Any:
    """numba, with the stopwatch running whenever it compiles."""
    import numba
    from numba.core import event

    events: Any = event
    events.Listener.register(_Stopwatch)
    events.register("numba:compile", _compiling)
    return numba


class _Stopwatch:
    """Seconds during which numba compiled (a listener to its events); compiling one function may compile others."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.depth = 0
        self.since = 0.0

    def notify(self, event: Any) -> None:
        """Count the outermost of nested compilations."""
        if event.is_start:
            self.depth += 1
            if self.depth == 1:
                self.since = monotonic()
        else:
            self.depth -= 1
            if self.depth == 0:
                self.seconds += monotonic() - self.since


_compiling = _Stopwatch()


def compile_seconds() -> float:
    """Seconds that this process has spent compiling so far; about half a minute when nothing is cached yet."""
    return _compiling.seconds
