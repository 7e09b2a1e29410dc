"""Which of several engines is fastest here: timed in turns, so that a slow moment of the machine hits all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

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
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    seconds: float = 2.0,
    runs: int = 200,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time each engine (anything callable that returns when it is done) on these arguments, one call each per round.

    Rounds go on for `seconds` in all or until `runs` of them, and for at least five; each is in a random order, so
    that nobody always follows the same neighbour. A contestant that raises at any time has lost: it is left out of
    the result. Compare medians of one race, never of two.

    Raises:
        EngineError: no engine is left; the message has every contestant's error.
    """
    times: dict[str, list[float]] = {name: [] for name in engines}
    failures: list[str] = []
    order, shuffle = list(engines), random.Random(seed).shuffle
    deadline = float("inf")
    for done in range(-WARMUP, max(runs, 5)):
        if done == 0:
            deadline = time.perf_counter() + seconds
        if done >= 5 and time.perf_counter() > deadline:
            break
        shuffle(order)
        for name in tuple(order):
            start = time.perf_counter()
            try:
                engines[name](*args, **(kwargs or {}))
            except Exception as error:  # whatever a runtime raises
                order.remove(name)
                failures.append(f"{name}: {error}")
                continue
            if done >= 0:
                times[name].append((time.perf_counter() - start) * 1e6)
    if not order:
        raise EngineError(f"no engine ran: {'; '.join(failures) or 'none was given'}")
    return {name: _timing(taken) for name, taken in times.items() if name in order}


def _timing(taken: Sequence[float]) -> Timing:
    lower, _, upper = quantiles(taken, n=4)
    return Timing(median(taken), lower, upper, len(taken))
