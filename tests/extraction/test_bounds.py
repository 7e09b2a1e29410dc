"""The parts of the search by themselves, without the reductions that usually leave them nothing to do."""

from __future__ import annotations

from itertools import pairwise
from math import inf, isfinite

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from eqsat_extraction import extract
from eqsat_extraction._budget import Budget
from eqsat_extraction._graph import components, derivable, detours, prune, usable
from eqsat_extraction.egraph import EGraph
from eqsat_extraction.errors import InfeasibleError
from eqsat_extraction.greedy import cheapest_dags, greedy_choice, tree_choice
from eqsat_extraction.lmcut import critical_path, landmark_bound, probe
from eqsat_extraction.mip import branch_and_cut, repair
from eqsat_extraction.presolve import landmarks, presolve
from eqsat_extraction.problem import from_egraph, restrict, split
from eqsat_extraction.relaxation import PATIENCE, Relaxation
from eqsat_extraction.search import Search, granule
from eqsat_extraction.treewidth import LEVELS, eliminate
from tests.extraction.strategies import every_choice, optimum, problems, random_problem, sums

many = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
close = {"rel": 1e-8, "abs": 1e-9}


def feasible(problem):
    egraph, costs = problem
    try:
        return from_egraph(egraph, costs)
    except InfeasibleError:
        assume(False)
        raise


def as_egraph(problem) -> EGraph:
    return EGraph(
        problem.head, problem.ptr, problem.child, np.array([problem.root], dtype=np.int32), problem.n_classes
    )


def best_of(problem) -> float:
    """The optimum of a problem by enumeration, its offset included."""
    return optimum(as_egraph(problem), problem.cost) + problem.offset


@many
@given(problems())
def test_presolve_keeps_an_optimum(drawn):
    problem = feasible(drawn)
    assert best_of(presolve(problem, Budget())) == pytest.approx(best_of(problem), **close)


@many
@given(problems())
def test_parts_add_up(drawn):
    problem = feasible(drawn)
    assert problem.offset + sum(map(best_of, split(problem))) == pytest.approx(best_of(problem), **close)


@pytest.mark.parametrize("cyclic", [False, True])
def test_parts_come_apart_at_articulation_points_that_every_solution_needs(cyclic):
    """Two triangles, each to be covered by its corners, with one e-class that all of the first's corners read."""
    corners = {0: (1, 2, 3), 7: (8, 9, 10)}
    nodes = [(0, [4, 5, 6]), (7, [11, 12, 13])]
    for top, (a, b, c) in corners.items():
        for edge, ends in zip((top + 4, top + 5, top + 6), ((a, b), (b, c), (c, a)), strict=True):
            nodes += [(edge, [end]) for end in ends]
        nodes += [(corner, [] if top else [7]) for corner in (a, b, c)]
    if cyclic:
        nodes.append((7, [1]))
    egraph = EGraph.build(nodes, [0], 14)
    costs = np.ones(len(nodes))
    problem = presolve(from_egraph(egraph, costs), Budget())
    parts = split(problem)
    assert len(parts) == 2
    assert problem.offset + sum(map(best_of, parts)) == optimum(egraph, costs) == 12.0


@many
@given(problems())
def test_greedy_choices_are_solutions(drawn):
    problem = feasible(drawn)
    for choice, cost in (greedy_choice(problem), tree_choice(problem)):
        assert isfinite(cost)
        assert prune(problem.ptr, problem.child, problem.cost, choice, problem.root)[1] == cost
        assert cost >= best_of(problem) - 1e-9


@many
@given(st.one_of(problems(), st.builds(random_problem, st.integers(0, 999), st.integers(10, 120))))
def test_greedy_knows_what_each_derivation_costs_with_its_shared_parts_once(drawn):
    problem = feasible(drawn)
    best, choice = cheapest_dags(
        problem.head, problem.cost, problem.ptr, problem.child, problem.n_classes, 2**20
    )
    assert isfinite(best[problem.root])
    for eclass in np.flatnonzero(choice >= 0).tolist():
        cost = prune(problem.ptr, problem.child, problem.cost, choice, eclass)[1]
        assert best[eclass] == pytest.approx(cost, **close)


def test_greedy_keeps_of_a_deep_network_what_each_layer_adds():
    """Residual blocks one after another: an entry for every e-class is enough."""
    depth = 5_000
    nodes = [(2 * depth, [])]
    for layer in range(depth):
        nodes += [(2 * layer, [2 * layer + 1, 2 * layer + 2]), (2 * layer + 1, [2 * layer + 2])]
    problem = from_egraph(EGraph.build(nodes, [0]), np.ones(len(nodes)))
    best, choice = cheapest_dags(
        problem.head, problem.cost, problem.ptr, problem.child, problem.n_classes, problem.n_classes
    )
    assert best[problem.root] == len(nodes)
    assert choice[problem.root] >= 0


def test_a_deep_network_is_proved_by_its_critical_path():
    """Layers in two precisions, conversions between them, and a skip that costs nothing: one walk is enough."""
    depth = 4_000
    nodes, costs = [(4 * depth, []), (4 * depth + 1, [4 * depth])], [1.0, 0.5]
    for layer in range(depth):
        exact, codes, body, rounded = (4 * layer + k for k in range(4))
        below = 4 * layer + 4
        forms = [(body, [below], 3.0), (rounded, [below + 1], 1.0), (body, [below + 1], 3.5),
                 (exact, [body, below], 1.0), (codes, [rounded, below + 1], 0.5), (codes, [exact], 0.5),
                 (exact, [codes], 0.5)]  # fmt: skip
        nodes += [(head, children) for head, children, _ in forms]
        costs += [cost for *_, cost in forms]
    solution = extract(EGraph.build(nodes, [0]), np.array(costs), time_limit=None, work_limit=20_000)
    assert solution.proved
    assert solution.cost == 1.0 + 0.5 + 1.5 * depth + 0.5


@many
@given(problems())
def test_landmark_bounds_are_bounds(drawn):
    problem = feasible(drawn)
    best = best_of(problem)
    assert critical_path(problem) <= best + 1e-9
    for tie_seed in (0, 1):
        marks = landmark_bound(problem, Budget(), tie_seed=tie_seed)
        assert marks.bound <= best + 1e-9
        choice, cost = greedy_choice(problem)
        paid = marks.bound + marks.reduced[choice[choice >= 0]].sum()
        assert paid <= cost + 1e-9  # the prices left over never overcharge a solution
        for k in range(len(marks.cut_ptr) - 1):
            cut = marks.cut[marks.cut_ptr[k] : marks.cut_ptr[k + 1]]
            without = np.ones(problem.n_nodes, dtype=bool)
            without[cut] = False
            keep = usable(problem.head, problem.ptr, problem.child, without, problem.n_classes, problem.root)
            assert not keep[-1]  # no derivation of the root avoids a landmark cut


@many
@given(problems(max_classes=6))
def test_reduced_costs_exclude_only_what_is_dearer(drawn):
    problem = feasible(drawn)
    marks = landmark_bound(problem, Budget())
    extra = detours(problem.head, marks.reduced, problem.ptr, problem.child, problem.n_classes)
    egraph = as_egraph(problem)
    uses = every_choice(egraph, problem.cost)
    best = min(problem.cost[used].sum() for used in uses)
    allowed, optional = probe(problem, marks.reduced, best - marks.bound + 1e-9, Budget())
    for node in range(problem.n_nodes - 1):
        cost = min((problem.cost[used].sum() for used in uses if node in used), default=inf)
        assert marks.bound + extra[node] <= cost + 1e-9
        assert allowed[node] or cost > best
    for eclass in range(problem.n_classes - 1):
        keep = usable(
            problem.head, problem.ptr, problem.child, problem.head != eclass, problem.n_classes, problem.root
        )
        cost = best_of(restrict(problem, keep)) if keep[-1] else inf
        assert optional[eclass] or cost > best


@many
@given(problems())
def test_landmarks_are_what_cannot_be_done_without(drawn):
    problem = feasible(drawn)
    order = np.arange(problem.n_classes)[::-1].astype(np.int32)
    bits = landmarks(problem.head, problem.ptr, problem.child, problem.n_classes, order, inf)
    for eclass in range(problem.n_classes - 1):
        keep = usable(
            problem.head, problem.ptr, problem.child, problem.head != eclass, problem.n_classes, problem.root
        )
        marked = bool(bits[problem.root, eclass >> 6] >> np.uint64(eclass & 63) & np.uint64(1))
        assert marked == (not keep[-1])


@settings(many, max_examples=100)
@given(problems())
def test_relaxation_and_branch_and_cut(drawn):
    problem = feasible(drawn)
    best = best_of(problem)
    relaxation = Relaxation(problem, 1.0)
    for _ in range(20):
        assert relaxation.solve(Budget())
        assert relaxation.value <= best + 1e-7
        assert repair(relaxation, relaxation.x)[1] >= best - 1e-9
        if not relaxation.tighten(Budget()):
            break
    found = branch_and_cut(relaxation, best + 1.0, Budget())
    assert found.finished
    assert found.cost == pytest.approx(best, rel=1e-6, abs=1e-6)
    nothing = branch_and_cut(relaxation, best - 1e-3, Budget())
    assert nothing.finished
    assert nothing.choice is None


@settings(many, max_examples=100)
@given(problems(), st.integers(0, 5))
def test_cuts_are_violated_valid_and_minimal(drawn, seed):
    problem = feasible(drawn)
    relaxation = Relaxation(problem)
    x = np.random.default_rng(seed).random(problem.n_nodes)
    chosen = np.bincount(problem.head, x)
    targets, ptr, nodes = relaxation.separate(x, guess=seed)
    for target, (first, last) in zip(targets, pairwise(ptr), strict=True):
        cut = nodes[first:last]

        def derived(without, target=target) -> bool:
            rest = ~np.isin(np.arange(problem.n_nodes), without)
            return bool(derivable(problem.head, problem.ptr, problem.child, rest, problem.n_classes)[target])

        assert x[cut].sum() < chosen[target]
        assert not derived(cut)
        assert all(derived(np.delete(cut, k)) for k in range(len(cut)))


@pytest.mark.parametrize(("terms", "roots", "seed"), [(6, 6, 3), (6, 8, 1), (6, 8, 3)])
def test_few_rounds_of_cuts_do(terms, roots, seed):
    """Sums that share parts have many landmarks. One cut of each e-class at the optimum would take 8 or 9 rounds."""
    egraph, costs = sums(seed, terms, roots)
    relaxation = Relaxation(from_egraph(egraph, costs))
    rounds = 1
    assert relaxation.solve(Budget())
    while relaxation.tighten(Budget()):
        assert relaxation.solve(Budget())
        rounds += 1
    assert 1 < rounds <= 6
    best = extract(egraph, costs, time_limit=None, work_limit=100_000)
    assert best.proved
    assert 0.97 * best.cost <= relaxation.value <= best.cost + 1e-6


@settings(many, max_examples=100)
@given(problems())
def test_what_no_better_solution_uses_leaves_the_relaxation(drawn):
    """E-nodes go between rounds of cuts, and slack cuts with them; the bound stays one, and rises."""
    problem = feasible(drawn)
    best = best_of(problem)
    relaxation = Relaxation(problem)
    values = [0.0]
    while relaxation.solve(Budget()):
        values.append(relaxation.value)
        p = relaxation.problem
        spare = best - relaxation.value + 1e-6
        keep = detours(p.head, relaxation.duals, p.ptr, p.child, p.n_classes) <= spare
        keep = usable(p.head, p.ptr, p.child, keep, p.n_classes, p.root)
        assert best_of(restrict(p, keep)) == pytest.approx(best, **close)
        relaxation.shrink(keep)
        assert relaxation.problem.n_nodes == keep.sum() == len(relaxation.x)
        if not relaxation.tighten(Budget()):
            break
    assert values == pytest.approx(sorted(values), rel=1e-6, abs=1e-6)
    assert values[-1] <= best + 1e-7


def test_slack_cuts_leave_the_relaxation():
    problem = from_egraph(*sums(0, 6, 8))
    relaxation = Relaxation(problem)
    everything = np.ones(problem.n_nodes, dtype=bool)
    relaxation.add_cuts(  # the root e-node and another: never binding
        np.array([problem.root], dtype=np.int32),
        np.array([0, 2]),
        np.array([0, problem.n_nodes - 1], dtype=np.int32),
    )
    rows = relaxation.rows
    for _ in range(PATIENCE):
        relaxation.solve(Budget())
        relaxation.shrink(everything)
        assert relaxation.rows == rows
    relaxation.solve(Budget())
    relaxation.shrink(everything)
    assert relaxation.rows == rows - 1 == relaxation.highs.getNumRow()


@many
@given(problems(max_classes=9))
def test_elimination_is_a_bound_and_exact_where_components_are_small(drawn):
    problem = feasible(drawn)
    found = eliminate(problem)
    assert found is not None
    choice, value = found
    best = best_of(problem)
    assert value <= best + 1e-9
    largest = np.bincount(components(problem.head, problem.ptr, problem.child, problem.n_classes)).max()
    assert choice is not None or largest > LEVELS
    if choice is not None:
        assert value == pytest.approx(best, **close)
        assert prune(problem.ptr, problem.child, problem.cost, choice, problem.root)[1] == pytest.approx(
            value
        )


def test_elimination_gives_up_on_wide_problems():
    nodes = [(c, [d]) for c in range(12) for d in range(12) if c != d] + [(11, [])]
    problem = from_egraph(EGraph.build(nodes, [0]), np.ones(len(nodes)))
    assert eliminate(problem, table_limit=1000) is None


@settings(many, max_examples=100)
@given(problems())
def test_branching_without_reductions(drawn):
    """Branch and bound from a node that was never reduced, so that it has to branch."""
    problem = feasible(drawn)
    best = best_of(problem)
    search = Search(Budget(), granule(problem.cost), 0)
    found = [p.cost for p in search.solve(problem, thorough=False)][-1]
    assert found == pytest.approx(best, **close)


@pytest.mark.parametrize(
    ("costs", "step"),
    [([2, 4, 6], 2.0), ([0.1, 0.25], 0.05), ([1 / 3, 1.0], 0.0), ([0.0, 0.0], 0.0), ([3.0, inf], 3.0)],
)
def test_granule(costs, step):
    assert granule(np.array(costs, dtype=float)) == pytest.approx(step)
