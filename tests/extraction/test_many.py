"""k-best solutions and vectors of costs against enumeration."""

from __future__ import annotations

from itertools import pairwise
from math import inf, isinf

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eqsat_extraction import (
    CostError,
    EGraph,
    InfeasibleError,
    InputError,
    extract_within,
    k_best,
    pareto,
    scalarize,
    totals,
)
from eqsat_extraction.kbest import distance
from tests.extraction.strategies import every_choice, every_cost, optimum, problems, random_problem

some = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@some
@given(problems(max_classes=5), st.integers(1, 6))
def test_k_best_are_the_k_cheapest(problem, k):
    egraph, costs = problem
    if isinf(optimum(egraph, costs)):
        return
    expected = every_cost(egraph, costs)
    found = k_best(egraph, costs, k, time_limit=60)
    assert [s.cost for s in found] == pytest.approx(expected[:k])
    assert len({tuple(s.nodes().tolist()) for s in found}) == len(found)
    for solution, cost in zip(found, expected, strict=False):
        assert solution.bound <= cost + 1e-9
    keys = [(s.cost, s.nodes().tolist()) for s in found]
    assert keys == sorted(keys)


def test_k_best_on_a_larger_egraph_is_repeatable_and_sorted():
    egraph, costs = random_problem(11, 150, members=2.5)
    runs = [k_best(egraph, costs, 5, time_limit=None, work_limit=3_000_000) for _ in range(2)]
    assert [s.choice.tolist() for s in runs[0]] == [s.choice.tolist() for s in runs[1]]
    assert len(runs[0]) == 5
    for one, other in pairwise(runs[0]):
        assert one.cost <= other.cost


def test_diverse_solutions_differ():
    egraph, costs = random_problem(12, 150, members=3.0, leaves=0.3)
    found = k_best(egraph, costs, 4, diversity=0.2, time_limit=20)
    assert len(found) > 1
    for i, one in enumerate(found):
        for other in found[:i]:
            assert distance(one, other) >= 0.2


def test_bad_requests_are_refused():
    egraph = EGraph.build([(0, [])], [0])
    with pytest.raises(InputError, match="k=0"):
        k_best(egraph, [1.0], 0)
    with pytest.raises(InputError, match="diversity"):
        k_best(egraph, [1.0], 1, diversity=2.0)
    with pytest.raises(CostError, match="shapes"):
        scalarize([[1.0, 2.0]], [1.0])
    with pytest.raises(CostError, match="not negative"):
        scalarize([[1.0, 2.0]], [1.0, -1.0])
    with pytest.raises(CostError, match=r"\(n, 2\)"):
        extract_within(egraph, [1.0], 1.0)


def test_forbidden_components_stay_forbidden():
    assert scalarize([[1.0, inf], [1.0, 2.0]], [1.0, 0.0]).tolist() == [inf, 1.0]


@settings(some, max_examples=80)
@given(problems(max_classes=5), st.integers(0, 2**16), st.floats(0.0, 1.0))
def test_budgets_are_kept_at_least_cost(problem, seed, share):
    egraph, costs = problem
    second = np.random.default_rng(seed).integers(0, 5, egraph.n_nodes).astype(float)
    vectors = np.stack((costs, second), axis=1)
    points = [(costs[used].sum(), second[used].sum()) for used in every_choice(egraph, costs)]
    if not points:
        return
    least, most = min(p[1] for p in points), max(p[1] for p in points)
    limit = least + share * (most - least)
    best = min(cost for cost, used in points if used <= limit + 1e-9)
    solution = extract_within(egraph, vectors, limit, time_limit=60)
    assert totals(vectors, solution)[1] <= limit + 1e-6
    assert solution.cost == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert solution.bound <= best + 1e-6
    assert solution.proved or solution.cost - solution.bound < 1e-6
    with pytest.raises(InfeasibleError, match="second cost"):
        extract_within(egraph, vectors, least - 0.5)


def test_front_is_convex_and_optimal_at_its_ends():
    egraph, costs = random_problem(4, 40, members=4.0, leaves=0.02, back=0.0)
    second = np.random.default_rng(0).integers(0, 6, egraph.n_nodes).astype(float)
    vectors = np.stack((costs, second), axis=1)
    front = [totals(vectors, s) for s in pareto(egraph, vectors, time_limit=30)]
    assert len(front) > 2
    for a, b in pairwise(front):
        assert a[0] < b[0]
        assert a[1] > b[1]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(front)]
    assert slopes == sorted(slopes)
