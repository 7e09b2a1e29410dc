"""Stages of a run: their times, a listener for progress, and a note on errors of where they happened."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, float | None], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside, `listener(stage, None)` is called when a stage starts and `listener(stage, seconds)` when it ends."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Stages:
    """Seconds per stage, in the order in which the stages ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a stage; an error that leaves it carries a note saying so."""
        listener = _listener.get()
        start = time.perf_counter()
        if listener is not None:
            listener(name, None)
        try:
            yield
        except BaseException as error:
            error.add_note(f"while in stage: {name}")
            raise
        finally:
            taken = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            if listener is not None:
                listener(name, taken)


@contextmanager
def no_collection() -> Iterator[None]:
    """Inside, Python's cyclic collector rests: going once over all that torch keeps takes as long as saturation."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
