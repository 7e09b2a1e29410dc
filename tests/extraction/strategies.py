"""Random e-graphs of every shape, and the optimum by enumeration."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
from hypothesis import strategies as st

from eqsat_extraction import EGraph

COSTS = {
    "ties": st.sampled_from([0.0, 1.0, 1.0, 2.0]),
    "mostly zero": st.sampled_from([0.0, 0.0, 0.0, 1.0]),
    "floats": st.floats(0.0, 10.0, allow_subnormal=False),
    "with forbidden": st.sampled_from([0.0, 1.0, 3.0, inf]),
}


@st.composite
def problems(draw, max_classes: int = 7, max_members: int = 3, max_operands: int = 3):
    """An e-graph and its costs: cyclic or not, one or more roots, shared, with ties, zeros and forbidden e-nodes."""
    n_classes = draw(st.integers(1, max_classes))
    acyclic = draw(st.booleans())
    cost = COSTS[draw(st.sampled_from(sorted(COSTS)))]
    nodes, costs = [], []
    for eclass in range(n_classes):
        for _ in range(draw(st.integers(0 if eclass else 1, max_members))):
            first = eclass + 1 if acyclic else 0
            below = st.integers(first, n_classes - 1) if first < n_classes else st.nothing()
            operands = draw(st.lists(below, max_size=max_operands)) if first < n_classes else []
            nodes.append((eclass, operands))
            costs.append(draw(cost))
    roots = draw(st.lists(st.integers(0, n_classes - 1), min_size=1, max_size=3))
    return EGraph.build(nodes, roots, n_classes), np.array(costs)


def random_problem(seed: int, n_classes: int, members: float = 2.0, back: float = 0.2, leaves: float = 0.2):
    """An e-graph of any size: `members` e-nodes per e-class, a share `back` of operands may close cycles."""
    rng = np.random.default_rng(seed)
    nodes, costs = [], []
    for eclass in range(n_classes):
        for member in range(1 + rng.poisson(members - 1)):
            width = 0 if eclass == n_classes - 1 or rng.random() < leaves else rng.integers(1, 4)
            operands = []
            for _ in range(width):
                if member and rng.random() < back:
                    operands.append(int(rng.integers(0, n_classes)))
                else:
                    operands.append(int(min(n_classes - 1, eclass + 1 + rng.geometric(0.2))))
            if operands and eclass in operands:
                continue
            nodes.append((eclass, operands))
            costs.append(float(rng.integers(0, 6)))
    return EGraph.build(nodes, [0], n_classes), np.array(costs)


def sums(seed: int, terms: int, roots: int):
    """Every way to add up some sums of at least three of these terms; an addition costs 4 to 7, a term nothing."""
    rng = np.random.default_rng(seed)
    nodes, costs = [], []
    for total in range(1, 2**terms):
        parts = [part for part in range(1, total) if part & total == part and part > total - part]
        nodes += [(total - 1, [part - 1, total - part - 1]) for part in parts]
        costs += rng.integers(4, 8, len(parts)).tolist()
        if total & (total - 1) == 0:
            nodes.append((total - 1, []))
            costs.append(0)
    wanted = [total - 1 for total in range(2**terms) if total.bit_count() > 2]
    chosen = rng.choice(wanted, roots, replace=False).tolist()
    return EGraph.build(nodes, chosen, 2**terms - 1), np.array(costs, dtype=float)


def optimum(egraph: EGraph, costs) -> float:
    """The least DAG cost by trying every choice; infinite when there is none."""
    options = [
        [n for n in egraph.nodes_of(c).tolist() if costs[n] < inf] or [None] for c in range(egraph.n_classes)
    ]
    best = inf
    for choice in product(*options):
        best = min(best, _cost(egraph, costs, choice))
    return best


def every_cost(egraph: EGraph, costs) -> list[float]:
    """The costs of all distinct solutions, ascending."""
    return sorted(float(costs[used].sum()) for used in every_choice(egraph, costs))


def every_choice(egraph: EGraph, costs) -> list[list[int]]:
    """The e-nodes of all distinct solutions."""
    options = [
        [n for n in egraph.nodes_of(c).tolist() if costs[n] < inf] or [None] for c in range(egraph.n_classes)
    ]
    found = set()
    for choice in product(*options):
        used = _used(egraph, choice)
        if used is not None:
            found.add(tuple(sorted(used)))
    return [list(used) for used in sorted(found)]


def _cost(egraph, costs, choice) -> float:
    used = _used(egraph, choice)
    return inf if used is None else sum(costs[n] for n in used)


def _used(egraph, choice):
    """The chosen e-nodes that the roots need, or None when incomplete or cyclic."""
    done, open_, used = set(), set(), []

    def visit(eclass) -> bool:
        if eclass in done:
            return True
        if eclass in open_ or choice[eclass] is None:
            return False
        open_.add(eclass)
        if not all(visit(child) for child in egraph.children_of(choice[eclass]).tolist()):
            return False
        open_.discard(eclass)
        done.add(eclass)
        used.append(choice[eclass])
        return True

    return used if all(visit(root) for root in egraph.roots.tolist()) else None
