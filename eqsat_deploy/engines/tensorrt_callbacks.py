"""What TensorRT calls back: its log, its errors, the times of its layers, and how far a build is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

Report = Callable[[str, int, int], object]
"""Told the name of a phase, how many of its steps are done, and of how many."""


_RECORDERS: list[Any] = []
"""Every recorder there was: objects of TensorRT point to theirs until they go, and in Python go in any order."""


@cache
def logger(api: Any) -> Any:
    """Warnings and errors, on standard error; one, since TensorRT takes one and warns of a second."""
    return api.Logger(api.Logger.WARNING)


def error_recorder(api: Any) -> Any:
    """Collects what TensorRT reports as errors, until `said()` tells it."""
    recorder = _classes(api)[0]()
    _RECORDERS.append(recorder)
    return recorder


def profiler(api: Any) -> Any:
    """Collects milliseconds by layer name, one for each run."""
    return _classes(api)[1]()


def monitor(api: Any, report: Report) -> Any:
    """Tells `report` of every step of a build. What that raises, Ctrl-C for one, stops the build: it is `raised`."""
    return _classes(api)[2](report)


@cache
def _classes(api: Any) -> tuple[type, type, type]:
    """TensorRT's callback interfaces implemented; their bases exist once it is imported."""

    class Recorder(api.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IErrorRecorder.__init__(self)
            self.found: list[tuple[Any, str]] = []

        def num_errors(self) -> int:  # a method to override, not a property
            return len(self.found)

        get_num_errors = (
            num_errors  # what the bindings of 10.13 to 11.4 look for when TensorRT asks (pyCore.cpp)
        )

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

        def said(self) -> str:
            """A sentence of what was reported since it was last asked."""
            found, self.found = self.found, []
            texts = dict.fromkeys(text.strip() for _, text in found)
            return f"It says: {'; '.join(texts)}" if texts else "It gives no reason; its log may have one."

    class Profiler(api.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProfiler.__init__(self)
            self.milliseconds: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.milliseconds.setdefault(layer_name, []).append(ms)

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self, report: Report) -> None:
            api.IProgressMonitor.__init__(self)
            self.report = report
            self.raised: BaseException | None = None
            self._steps: dict[str, int] = {}  # of phases under way, whose names are unique while they are

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:  # which may come before the last step
            self._tell(phase_name, self._steps.get(phase_name, 0))
            self._steps.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            try:  # nothing may be raised through TensorRT
                if self.raised is None:
                    self.report(phase, done, self._steps.get(phase, done))
            except BaseException as error:
                self.raised = error

    return Recorder, Profiler, Monitor
