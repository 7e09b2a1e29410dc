"""Which of several engines is fastest here: timed in turns, so that a slow moment of the machine hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from torch import Tensor

from eqsat_deploy.errors import EngineError

WARMUP = 3


@dataclass(frozen=True)
class Timing:
    """What one contestant took, in microseconds a call: the median, and the quartiles around it."""

    median: float
    lower: float
    upper: float
    runs: int


def race(
    engines: Mapping[str, Callable[..., Any]],
    inputs: Sequence[Tensor],
    *,
    seconds: float = 2.0,
    runs: int = 200,
) -> dict[str, Timing]:
    """Time each engine (anything callable that returns when it is done) on `inputs`, one call each per round.

    Rounds go on for `seconds` in all or until `runs` of them, and for at least five; every other round goes
    the other way round, so that nobody always follows the same neighbour. A contestant that raises loses the
    race for itself only: it is left out of the result. Compare medians of one race, never of two.

    Raises:
        EngineError: no engine is left; the message has every contestant's error.
    """
    contestants, failures = dict(engines), []
    for name, engine in engines.items():
        try:
            for _ in range(WARMUP):
                engine(*inputs)
        except Exception as error:  # whatever a runtime raises
            del contestants[name]
            failures.append(f"{name}: {error}")
    if not contestants:
        raise EngineError(f"no engine ran: {'; '.join(failures) or 'none was given'}")
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    deadline = time.perf_counter() + seconds
    for done in range(max(runs, 5)):
        if done >= 5 and time.perf_counter() > deadline:
            break
        for name in order:
            start = time.perf_counter()
            contestants[name](*inputs)
            times[name].append((time.perf_counter() - start) * 1e6)
        order.reverse()
    return {name: _timing(taken) for name, taken in times.items()}


def _timing(taken: Sequence[float]) -> Timing:
    lower, _, upper = quantiles(taken, n=4)
    return Timing(median(taken), lower, upper, len(taken))
