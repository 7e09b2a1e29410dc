"""Time and work limits of one extraction."""

from __future__ import annotations

from math import inf
from time import monotonic

from ._jit import compile_seconds


class Budget:
    """A wall-clock limit in seconds and a limit on counted work, of which either may be infinite.

    Compiling, once per installation, is not charged to the time. One unit of work is about a thousand edge
    visits of a compiled walk; it is counted, not timed, so a run that is limited by work alone is the same on
    every machine.
    """

    def __init__(self, seconds: float | None = None, work: float | None = None) -> None:
        self.start = _clock()
        self.deadline = inf if seconds is None else self.start + seconds
        self.work = inf if work is None else float(work)
        self.reserved = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return _clock() - self.start

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.deadline - _clock())

    @property
    def spent(self) -> bool:
        """Whether either limit is reached."""
        return self.work <= 0 or _clock() >= self.deadline

    def charge(self, units: float) -> None:
        """Count work."""
        self.work -= units

    def reserve(self, seconds: float) -> None:
        """Keep at least these last seconds for what has to be done after the limit."""
        self.deadline -= max(0.0, seconds - self.reserved)
        self.reserved = max(seconds, self.reserved)

    def share(self, fraction: float, work: float = inf) -> Budget:
        """A budget of a fraction of what is left, and at most `work` units; charge what it used to this one."""
        return Budget(None if self.left == inf else self.left * fraction, min(self.work * fraction, work))


def _clock() -> float:
    """A clock that stands still while functions are compiled."""
    return monotonic() - compile_seconds()
