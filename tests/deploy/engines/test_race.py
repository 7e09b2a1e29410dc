from __future__ import annotations

import time

import pytest
import torch

from eqsat_deploy.engines.race import race
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
