"""What TensorRT calls back: its errors, and the times of its layers."""

from __future__ import annotations

from functools import cache
from typing import Any


def error_recorder(api: Any) -> Any:
    """Collects what TensorRT reports as errors."""
    return _classes(api)[0]()


def profiler(api: Any) -> Any:
    """Collects milliseconds by layer name, one for each run."""
    return _classes(api)[1]()


@cache
def _classes(api: Any) -> tuple[type, type]:
    """TensorRT's callback interfaces implemented; their bases exist once it is imported."""

    class Recorder(api.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IErrorRecorder.__init__(self)
            self.found: list[tuple[Any, str]] = []

        def num_errors(self) -> int:  # a method to override, not a property
            return len(self.found)

        def get_error_code(self, index: int) -> Any:
            return self.found[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.found[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.found.clear()

        def report_error(self, code: Any, description: str) -> bool:
            self.found.append((code, description))
            return False  # processing may continue

    class Profiler(api.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProfiler.__init__(self)
            self.milliseconds: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.milliseconds.setdefault(layer_name, []).append(ms)

    return Recorder, Profiler
