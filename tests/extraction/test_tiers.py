"""What is interpreted and what is compiled compute the same."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from eqsat_extraction import _jit, anytime
from eqsat_extraction._graph import cheapest_trees
from tests.extraction.strategies import random_problem


@pytest.mark.parametrize("name", ["greedy", "local", "ilp", "auto"])
def test_interpreted_and_compiled_runs_are_the_same(monkeypatch, name):
    egraph, costs = random_problem(8, 60, members=2.5)

    def run():
        steps = anytime(egraph, costs, extractor=name, time_limit=None, work_limit=20_000)
        return [(s.cost, s.bound, s.choice.tolist()) for s in steps]

    def interpreted(self, *args):
        return self.plain(*args)

    def compiled(self, *args):
        return self.compiled(*args)

    monkeypatch.setattr(_jit._Tiered, "__call__", interpreted)
    first = run()
    monkeypatch.setattr(_jit._Tiered, "__call__", compiled)
    assert run() == first


NEVER = 10**9


@pytest.mark.parametrize(
    ("cached", "settings", "tiers"),
    [
        (False, {"SMALL": [NEVER, 0, NEVER]}, ["plain", "compiled", "compiled"]),
        (False, {"PATIENCE": [NEVER, NEVER, -1.0]}, ["plain", "plain", "compiled"]),
        (False, {"QUICK": [-1.0] * 3, "SMALL_IN_CACHE": [0] * 3}, ["plain", "plain", "plain"]),
        (True, {"QUICK": [NEVER, -1.0, NEVER]}, ["plain", "compiled", "compiled"]),
        (True, {"SMALL_IN_CACHE": [NEVER, 0, NEVER]}, ["plain", "compiled", "compiled"]),
        (True, {"modules": [{}, {"numba": None}, {}]}, ["plain", "compiled", "compiled"]),
    ],
)
def test_large_arrays_and_slow_functions_are_compiled(monkeypatch, cached, settings, tiers):
    used = []
    plain, compiled = cheapest_trees.plain, cheapest_trees.compiled
    tiered = _jit._Tiered(cheapest_trees.function)
    tiered.plain = lambda *args: used.append("plain") or plain(*args)
    tiered.compiled = lambda *args: used.append("compiled") or compiled(*args)
    tiered._is_cached = cached
    arrays = _arrays()
    expected = plain(*arrays)
    usual = {"SMALL": NEVER, "SMALL_IN_CACHE": NEVER, "PATIENCE": NEVER, "QUICK": NEVER, "modules": {}}
    for call in range(len(tiers)):
        now = usual | {setting: values[call] for setting, values in settings.items()}
        monkeypatch.setattr(_jit, "sys", SimpleNamespace(modules=now.pop("modules")))
        for setting, value in now.items():
            monkeypatch.setattr(_jit, setting, value)
        for got, want in zip(tiered(*arrays), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    assert used == tiers


def test_a_function_is_in_the_cache_once_it_was_compiled():
    cheapest_trees.compiled(*_arrays())
    assert _jit._Tiered(cheapest_trees.function)._is_cached
    assert not _jit._Tiered(_arrays)._is_cached


def _arrays():
    egraph, costs = random_problem(1, 20)
    return egraph.node_class, costs, egraph.child_ptr, egraph.children, egraph.n_classes
