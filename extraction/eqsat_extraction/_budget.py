"""Time and work limits of one extraction."""

from __future__ import annotations

from math import inf
from time import monotonic


class Budget:
    """A wall-clock limit in seconds and a limit on counted work, of which either may be infinite.

    One unit of work is about a thousand edge visits of a compiled walk; it is counted, not timed, so a run
    that is limited by work alone is the same on every machine.
    """

    def __init__(self, seconds: float | None = None, work: float | None = None) -> None:
        self.start = monotonic()
        self.deadline = inf if seconds is None else self.start + seconds
        self.work = inf if work is None else float(work)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return monotonic() - self.start

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.deadline - monotonic())

    @property
    def spent(self) -> bool:
        """Whether either limit is reached."""
        return self.work <= 0 or monotonic() >= self.deadline

    def charge(self, units: float) -> None:
        """Count work."""
        self.work -= units

    def share(self, fraction: float, work: float = inf) -> Budget:
        """A budget of a fraction of what is left, and at most `work` units; charge what it used to this one."""
        return Budget(None if self.left == inf else self.left * fraction, min(self.work * fraction, work))
