"""Which of several engines is fastest here: timed in turns, so that a slow moment of the machine hits all.

Contestants run in one process, one call each a round, in an order drawn anew for every round. What one round's calls
take is comparable, whatever else the machine does then; what two processes take one after another is not.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from eqsat_deploy.errors import EngineError

WARMUP = 3
FIRST_LOOK = 8
"""Rounds before anybody may be out; looks are after as many, twice as many, four times as many, ..."""
DOUBT = 0.005
"""The chance at one look that a contestant as fast as the fastest is out."""
EQUAL = 0.01
"""A share of its time by which a contestant may be faster without being looked for any longer."""
RULE = (
    f"contestants take one call each a round, in random order; after {FIRST_LOOK}, {2 * FIRST_LOOK}, "
    f"{4 * FIRST_LOOK}, ... rounds, one that is slower than the fastest for certain is out, and the race is over when "
    f"the fastest is at most {EQUAL:.0%} slower for certain than anybody left "
    f"({1 - 2 * DOUBT:.0%} intervals of the median over rounds of one's time over another's)"
)

Round = Mapping[str, float]
"""Microseconds of everybody who ran in a round."""


@dataclass(frozen=True)
class Timing:
    """What one contestant took, in microseconds a call: the median, and the quartiles around it.

    `over` is its time over the winner's, of the same rounds: the median within its interval (`ratio`). It is None for
    the winner.
    """

    median: float
    lower: float
    upper: float
    runs: int
    over: tuple[float, float, float] | None = None


def race(
    engines: Mapping[str, Callable[..., Any]],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    seconds: float = 2.0,
    runs: int = 200,
    seed: int = 0,
    until_clear: bool = False,
    handicaps: Mapping[str, float] | None = None,
    earlier: Iterable[Round] = (),
    keep: Callable[[Round], object] | None = None,
) -> dict[str, Timing]:
    """Time each engine (anything callable that returns when it is done) on these arguments, one call each per round.

    Rounds go on for `seconds` in all or until `runs` of them, and for at least five; each is in a random order, so
    that nobody follows the same neighbour, or itself, more often than others do. With `until_clear` one that is slower
    for certain runs no more, and the race ends when the winner is clear (`RULE`). A contestant that raises at any time
    has lost: it is left out of the result. Compare medians of one race, never of two.

    One with a handicap is judged as if it took that many times as long: who wins, what is clear, and `Timing.over`.

    A race that was interrupted goes on from the `earlier` rounds that it gave to `keep`, one by one.

    Raises:
        EngineError: no engine is left; the message has every contestant's error.
    """
    handicaps = handicaps or {}
    rounds = list(earlier)
    judged = [_judged(taken, handicaps) for taken in rounds]
    failures: dict[str, str] = {}
    running, draw = list(engines), random.Random(f"{seed} {len(rounds)}")

    def turn() -> dict[str, float]:
        draw.shuffle(running)
        taken: dict[str, float] = {}
        for name in tuple(running):
            start = time.perf_counter()
            try:
                engines[name](*args, **(kwargs or {}))
            except Exception as error:  # whatever a runtime raises
                running.remove(name)
                failures[name] = f"{name}: {error}"
                continue
            taken[name] = (time.perf_counter() - start) * 1e6
        return taken

    for _ in range(WARMUP):
        turn()
    deadline = time.perf_counter() + seconds
    while running and len(rounds) < max(runs, 5) and (len(rounds) < 5 or time.perf_counter() < deadline):
        if until_clear:
            running[:] = standing(judged, running)
            if settled(judged, running):
                break
        rounds.append(turn())
        judged.append(_judged(rounds[-1], handicaps))
        if keep is not None:
            keep(rounds[-1])
    if not running:
        raise EngineError(f"no engine ran: {'; '.join(failures.values()) or 'none was given'}")
    best = fastest(judged, running)
    return {
        name: _timing(rounds, name, None if name == best else ratio(judged, name, best))
        for name in engines
        if name not in failures
    }


def winner(timings: Mapping[str, Timing]) -> str:
    """Who won the race that these are of."""
    return next(name for name, timing in timings.items() if timing.over is None)


def standing(rounds: Sequence[Round], names: Iterable[str]) -> list[str]:
    """Those of `names` that are not slower for certain by what the rounds say up to the last look."""
    left = list(names)
    for look in _looks(len(rounds)):
        seen = rounds[:look]
        best = fastest(seen, left)
        left = [name for name in left if name == best or ratio(seen, name, best)[0] <= 1.0]
    return left


def settled(rounds: Sequence[Round], left: Sequence[str]) -> bool:
    """Whether the fastest of those `left` is at most `EQUAL` slower than any other, by what the rounds say up to the
    last look."""
    if len(left) < 2:
        return bool(rounds)
    seen = rounds[: max(_looks(len(rounds)), default=0)]
    best = fastest(seen, left)
    return all(ratio(seen, best, name)[2] <= 1 + EQUAL for name in left if name != best)


def fastest(rounds: Sequence[Round], names: Iterable[str]) -> str:
    """The one of the lowest median over rounds that all of `names` ran in; the first of equals."""
    left = list(names)
    common = [taken for taken in rounds if all(name in taken for name in left)]
    return min(left, key=lambda name: median(taken[name] for taken in common) if common else 0.0)


def ratio(rounds: Sequence[Round], name: str, to: str) -> tuple[float, float, float]:
    """The median over rounds of `name`'s time over that of `to`, within the interval that misses it by chance in twice
    `DOUBT` of cases, whatever times are distributed like (by order statistics)."""
    ranked = sorted(taken[name] / taken[to] for taken in rounds if name in taken and to in taken)
    if not ranked:
        return 0.0, math.nan, math.inf
    cut = _cut(len(ranked))
    if cut is None:
        return 0.0, median(ranked), math.inf
    return ranked[cut], median(ranked), ranked[-1 - cut]


def _cut(count: int) -> int | None:
    """How many of the lowest of `count` values lie under an interval of their median; None where even all are too
    few."""
    chance, cut = 0.0, None
    for index in range(count):
        chance += math.comb(count, index) / 2**count
        if chance > DOUBT:
            break
        cut = index
    return cut


def _looks(rounds: int) -> Iterator[int]:
    look = FIRST_LOOK
    while look <= rounds:
        yield look
        look *= 2


def _judged(taken: Round, handicaps: Mapping[str, float]) -> Round:
    return {name: us * handicaps.get(name, 1.0) for name, us in taken.items()}


def _timing(rounds: Sequence[Round], name: str, over: tuple[float, float, float] | None) -> Timing:
    taken = [entry[name] for entry in rounds if name in entry]
    lower, _, upper = quantiles(taken, n=4) if len(taken) > 1 else taken * 3
    return Timing(median(taken), lower, upper, len(taken), over)
