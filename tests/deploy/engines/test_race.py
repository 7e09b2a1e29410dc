from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from eqsat_deploy.engines import race as module
from eqsat_deploy.engines.race import FIRST_LOOK, race, ratio, settled, standing, winner
from eqsat_deploy.errors import EngineError


def test_contestants_take_turns_and_the_slow_one_loses() -> None:
    calls: list[str] = []

    def fast(x: torch.Tensor) -> None:
        calls.append("fast")

    def slow(x: torch.Tensor) -> None:
        calls.append("slow")
        time.sleep(0.005)

    timings = race({"fast": fast, "slow": slow}, [torch.zeros(1)], runs=12)
    assert list(timings) == ["fast", "slow"]
    assert timings["slow"].median > timings["fast"].median
    assert timings["fast"].runs == timings["slow"].runs == 12
    rounds = [tuple(calls[i : i + 2]) for i in range(6, len(calls), 2)]
    assert len(rounds) == 12
    assert set(rounds) == {("fast", "slow"), ("slow", "fast")}
    before = list(calls)
    calls.clear()
    race({"fast": fast, "slow": slow}, [torch.zeros(1)], runs=12)
    assert calls == before  # seeded
    assert timings["slow"].lower <= timings["slow"].median <= timings["slow"].upper


def test_a_contestant_that_fails_costs_only_itself() -> None:
    def broken(x: torch.Tensor) -> None:
        raise RuntimeError("no kernel")

    assert list(race({"broken": broken, "fine": torch.abs}, [torch.zeros(1)], runs=5)) == ["fine"]
    with pytest.raises(EngineError, match="broken: no kernel"):
        race({"broken": broken}, [torch.zeros(1)])
    with pytest.raises(EngineError, match="none was given"):
        race({}, [torch.zeros(1)])


def test_a_contestant_that_fails_late_has_lost() -> None:
    calls = 0

    def crashes(x: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise RuntimeError("out of memory")

    assert list(race({"crashes": crashes, "fine": torch.abs}, [torch.zeros(1)], runs=8)) == ["fine"]
    calls = 0
    with pytest.raises(EngineError, match="crashes: out of memory"):
        race({"crashes": crashes}, [torch.zeros(1)], runs=8)


class Clock:
    """A clock that only the contestants move: each takes its time, give or take a share, in a machine of some speed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls, self.random = 0.0, list[str](), random.Random(0)
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def contestant(
        self, name: str, microseconds: float, noise: float = 0.05
    ) -> Callable[[torch.Tensor], None]:
        def run(x: torch.Tensor) -> None:
            self.calls.append(name)
            self.now += microseconds * 1e-6 * (1 + noise * self.random.random())

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


X = [torch.zeros(1)]


def test_a_race_ends_when_the_winner_is_clear(clock: Clock) -> None:
    field = {"slow": clock.contestant("slow", 150), "fast": clock.contestant("fast", 100)}
    timings = race(field, X, until_clear=True)
    assert winner(timings) == "fast"
    assert timings["slow"].runs == timings["fast"].runs == FIRST_LOOK
    assert timings["slow"].over[0] > 1.3


def test_one_that_is_out_runs_no_more_while_others_are_close(clock: Clock) -> None:
    field = {n: clock.contestant(n, us) for n, us in (("one", 100), ("two", 100.5), ("slow", 130))}
    timings = race(field, X, until_clear=True, seconds=1e6, runs=1000)
    assert timings["slow"].runs == FIRST_LOOK
    assert timings["one"].runs == timings["two"].runs > FIRST_LOOK


def test_equals_do_not_run_for_ever(clock: Clock) -> None:
    field = {n: clock.contestant(n, 100, noise=0.001) for n in ("one", "two")}
    assert race(field, X, until_clear=True, seconds=1e6, runs=1000)["one"].runs == FIRST_LOOK
    field = {n: clock.contestant(n, 100, noise=0.5) for n in ("one", "two")}
    assert race(field, X, until_clear=True, seconds=1e-3, runs=10**6)["one"].runs < 20  # time is up


def test_one_with_a_handicap_has_to_be_that_much_faster(clock: Clock) -> None:
    def raced(behind: float, handicap: float) -> dict[str, module.Timing]:
        field = {"one": clock.contestant("one", 100), "two": clock.contestant("two", 100 - behind)}
        return race(field, X, until_clear=True, seconds=1e6, runs=10_000, handicaps={"two": handicap})

    assert winner(raced(3, 1.0)) == winner(raced(13, 1.1)) == "two"
    timings = raced(6, 1.1)
    assert winner(timings) == "one"
    assert timings["two"].median < timings["one"].median
    assert timings["two"].over[0] > 1
    assert raced(0, 1.05)["one"].runs < raced(0, 1.0)["one"].runs


def test_who_follows_whom_is_left_to_chance(clock: Clock) -> None:
    names = ("a", "b", "c")
    race({n: clock.contestant(n, 100) for n in names}, X, seconds=1e6, runs=3000)
    follows = Counter(pairwise(clock.calls))
    itself = [follows[n, n] for n in names]
    others = [follows[a, b] for a in names for b in names if a != b]
    assert max(itself) < 1.15 * min(itself)
    assert max(others) < 1.1 * min(others)


def test_an_interrupted_race_goes_on(clock: Clock) -> None:
    field = {n: clock.contestant(n, us, 0.2) for n, us in (("slow", 200), ("one", 100), ("two", 104))}
    kept: list[dict[str, float]] = []

    def interrupted(taken: dict[str, float]) -> None:
        kept.append(taken)
        if len(kept) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race(field, X, until_clear=True, seconds=1e6, keep=interrupted)
    assert "slow" not in kept[-1]
    clock.calls.clear()
    timings = race(field, X, until_clear=True, seconds=1e6, earlier=list(kept), keep=kept.append)
    assert Counter(clock.calls)["slow"] == module.WARMUP  # it is out already
    assert timings["one"].runs == len(kept) > 10
    assert winner(timings) == "one"
    clock.calls.clear()
    assert race(field, X, until_clear=True, earlier=kept) == timings  # nothing was left to do
    assert len(clock.calls) == 3 * module.WARMUP


def test_intervals_of_the_median_ratio() -> None:
    rounds = [{"a": 1.0, "b": 1.0 + i / 100} for i in range(-3, 5)]
    assert ratio(rounds, "b", "a") == pytest.approx((0.97, 1.005, 1.04))  # eight: the whole range
    assert ratio(rounds[:7], "b", "a")[::2] == (0.0, float("inf"))  # too few to say
    assert standing(rounds, ["a", "b"]) == ["a", "b"]
    assert standing([{"a": 1.0, "b": 1.01}] * 8, ["a", "b"]) == ["a"]
    assert standing([{"a": 1.0, "b": 1.01}] * 7, ["a", "b"]) == ["a", "b"]
    assert settled([{"a": 1.0, "b": 1.001}, {"a": 1.001, "b": 1.0}] * 4, ["a", "b"])
    assert not settled([{"a": 1.0, "b": 1.05}, {"a": 1.05, "b": 1.0}] * 4, ["a", "b"])
