"""What is interpreted and what is compiled compute the same."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("settings", "tiers"),
    [
        ({"SMALL": [10**9, 0, 10**9]}, ["plain", "compiled", "compiled"]),
        ({"PATIENCE": [10**9, -1.0, 10**9], "QUICK": [10**9] * 3}, ["plain", "plain", "compiled"]),
    ],
)
def test_large_arrays_and_slow_functions_are_compiled(monkeypatch, settings, tiers):
    used = []
    plain, compiled = cheapest_trees.plain, cheapest_trees.compiled
    tiered = _jit._Tiered(cheapest_trees.function)
    tiered.plain = lambda *args: used.append("plain") or plain(*args)
    tiered.compiled = lambda *args: used.append("compiled") or compiled(*args)
    egraph, costs = random_problem(1, 20)
    arrays = (egraph.node_class, costs, egraph.child_ptr, egraph.children, egraph.n_classes)
    expected = plain(*arrays)
    for call in range(len(tiers)):
        for setting, values in settings.items():
            monkeypatch.setattr(_jit, setting, values[call])
        for got, want in zip(tiered(*arrays), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    assert used == tiers
