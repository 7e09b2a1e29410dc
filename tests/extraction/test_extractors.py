"""Every extractor against brute force, and every part of the search against the optimum."""

from __future__ import annotations

from importlib.util import find_spec
from math import inf, isinf

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from eqsat_extraction import (
    CostError,
    EGraph,
    InfeasibleError,
    UnknownNameError,
    anytime,
    extract,
    find_extractor,
)
from tests.extraction.strategies import optimum, problems, random_problem

many = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", ["tree", "greedy", "local", "ilp", "auto"])
@many
@given(problems())
def test_agrees_with_brute_force(name, problem):
    egraph, costs = problem
    best = optimum(egraph, costs)
    if isinf(best):
        with pytest.raises(InfeasibleError):
            extract(egraph, costs, extractor=name)
        return
    solution = extract(egraph, costs, extractor=name, time_limit=None, work_limit=100_000)
    solution.check(egraph, costs)
    assert solution.bound <= best * (1 + 1e-8) + 1e-12
    assert solution.cost >= best * (1 - 1e-8) - 1e-12
    if find_extractor(name).optimal in ("dag", "anytime"):
        assert solution.cost == pytest.approx(best, rel=1e-8, abs=1e-12)
        assert solution.gap < 1e-8 or solution.cost - solution.bound < 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_cpsat_agrees_with_brute_force(seed):
    pytest.importorskip("ortools")
    egraph, costs = random_problem(seed, 9, members=3.0, back=0.5)
    costs = costs + 0.1 * (seed % 2) * np.random.default_rng(seed).random(len(costs))
    solution = extract(egraph, costs, extractor="cpsat", time_limit=30)
    best = optimum(egraph, costs)
    assert solution.cost == pytest.approx(best)
    assert solution.bound == pytest.approx(best)
    assert solution.bound <= best * (1 + 1e-9)


@many
@given(problems())
def test_tree_is_tree_optimal(problem):
    egraph, costs = problem
    if isinf(optimum(egraph, costs)):
        return
    value = np.full(egraph.n_classes, inf)
    for _ in range(egraph.n_classes):  # Bellman-Ford: correct whatever the cycles
        for node in range(egraph.n_nodes):
            total = costs[node] + value[egraph.children_of(node)].sum()
            value[egraph.node_class[node]] = min(value[egraph.node_class[node]], total)
    solution = extract(egraph, costs, extractor="tree")
    tree: dict[int, float] = {}
    for node in solution.order(egraph).tolist():
        tree[int(egraph.node_class[node])] = costs[node] + sum(
            tree[c] for c in egraph.children_of(node).tolist()
        )
    for root in set(egraph.roots.tolist()):
        assert tree[root] == pytest.approx(value[root])


@pytest.mark.parametrize("seed", range(6))
def test_exact_extractors_agree_beyond_brute_force(seed):
    egraph, costs = random_problem(seed, 60, members=2.5)
    exact = extract(egraph, costs, extractor="ilp", time_limit=60)
    auto = extract(egraph, costs, extractor="auto", time_limit=60)
    assert exact.proved
    assert auto.proved
    if find_spec("ortools") is not None:
        assert extract(egraph, costs, extractor="cpsat", time_limit=60).cost == pytest.approx(auto.cost)
    assert auto.cost == pytest.approx(exact.cost)
    for name in ("tree", "greedy", "local"):
        assert extract(egraph, costs, extractor=name, time_limit=5).cost >= auto.cost - 1e-9


def test_progress_is_monotone_and_repeatable():
    egraph, costs = random_problem(3, 400, members=3.0)
    runs = [
        [
            (s.cost, s.bound, s.choice.tolist())
            for s in anytime(egraph, costs, time_limit=None, work_limit=50_000)
        ]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    for (cost, bound, _), (next_cost, next_bound, _) in zip(runs[0], runs[0][1:], strict=False):
        assert next_cost <= cost
        assert next_bound >= bound
        assert (next_cost, next_bound) != (cost, bound)


def test_can_be_interrupted():
    egraph, costs = random_problem(5, 300, members=3.0)
    first = next(iter(anytime(egraph, costs)))
    first.check(egraph, costs)


def test_limits_are_met_by_the_first_answer():
    egraph, costs = random_problem(7, 200)
    solution = extract(egraph, costs, time_limit=0.0)
    solution.check(egraph, costs)


@pytest.mark.parametrize("name", ["tree", "greedy", "auto"])
def test_deep_egraph(name):
    depth = 100_000
    nodes = [(level, [level + 1]) for level in range(depth)] + [
        (level, [level + 1, level + 1]) for level in range(depth)
    ]
    egraph = EGraph.build([*nodes, (depth, [])], [0])
    costs = np.concatenate((np.full(depth, 2.0), np.full(depth, 1.0), [1.0]))
    solution = extract(egraph, costs, extractor=name)
    # Read as trees, the second members read their operand twice, so only the lowest one is the cheaper.
    assert solution.cost == (2 * depth + 1 if name == "tree" else depth + 1)
    assert len(solution.order(egraph)) == depth + 1


def test_cycles_are_never_chosen():
    egraph = EGraph.build([(0, [1]), (1, [0]), (0, [2]), (2, [])], [0])
    solution = extract(egraph, [0.0, 0.0, 5.0, 1.0])
    assert solution.cost == 6.0
    assert solution.proved


def test_shared_parts_are_paid_once():
    egraph = EGraph.build([(0, [1, 2]), (1, [3]), (2, [3]), (3, []), (1, []), (2, [])], [0])
    solution = extract(egraph, [0.0, 0.0, 0.0, 3.0, 2.0, 2.0])
    assert solution.cost == 3.0
    assert extract(egraph, [0.0, 0.0, 0.0, 3.0, 2.0, 2.0], extractor="tree").cost == 4.0


def test_errors_name_the_culprit():
    egraph = EGraph.build(
        [(0, [1]), (1, [])], [0], ops=["add", "x"], node_ids=["a", "b"], class_ids=["r", "s"]
    )
    with pytest.raises(CostError, match=r"e-node 1 \('b', 'x'\) is negative"):
        extract(egraph, [0.0, -1.0])
    with pytest.raises(CostError, match="not a number"):
        extract(egraph, [np.nan, 1.0])
    with pytest.raises(CostError, match=r"shape \(3,\)"):
        extract(egraph, [0.0, 1.0, 2.0])
    with pytest.raises(InfeasibleError, match=r"root e-class 0 \('r'\)"):
        extract(egraph, [0.0, inf])
    with pytest.raises(UnknownNameError, match="known: auto, cpsat, greedy"):
        extract(egraph, [0.0, 1.0], extractor="gredy")
