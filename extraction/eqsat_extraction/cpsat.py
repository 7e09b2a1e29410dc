"""Exact extraction by OR-tools CP-SAT, a second opinion; installed by the extra `cpsat`.

E-nodes and e-classes are Booleans: an e-class that is needed chooses an e-node, an e-node needs its children. In a
strongly connected component of several e-classes these have levels, and an e-node reads lower levels of its own
component, so that derivations are acyclic.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from time import monotonic
from typing import Any

import numpy as np

from ._budget import Budget
from ._graph import components, members
from .egraph import EGraph, Floats, Ints
from .errors import ExtractionError
from .extractor import Extractor, Optimal
from .greedy import greedy_choice
from .presolve import presolve
from .problem import Problem, from_egraph
from .search import granule
from .solution import Solution

LARGEST = 2**50
"""The total of all scaled costs: CP-SAT optimizes integers, in 64 bits."""
STARTING = 1.0
"""Seconds that a process takes to load OR-tools."""
WORK_PER_SECOND = 1000.0
"""Units of work that one of CP-SAT's deterministic seconds is charged as."""


@dataclass(frozen=True)
class CPSat:
    """CP-SAT on the reduced problem, from the greedy solution, on one thread."""

    name: str = "cpsat"
    optimal: Optimal = "dag"

    def solutions(
        self, egraph: EGraph, costs: Floats, *, time_limit: float | None, work_limit: int | None, seed: int
    ) -> Iterator[Solution]:
        """The greedy solution, then the best one found with its bound.

        Raises `ExtractionError` when OR-tools is not installed.
        """
        if find_spec("ortools") is None:
            raise ExtractionError("extractor 'cpsat' needs OR-tools: pip install 'eqsat-deploy[cpsat]'")
        budget = Budget(time_limit, work_limit)
        problem = presolve(from_egraph(egraph, costs), budget)
        choice, cost = greedy_choice(problem)
        first = Solution.from_nodes(
            egraph,
            costs,
            problem.picked(choice),
            bound=cost + problem.offset if problem.n_nodes == 1 else problem.offset,
            seconds=budget.seconds,
            extractor=self.name,
        )
        yield first
        if budget.spent or first.proved:
            return
        prices, scale = _scaled(problem.cost)
        nodes, scaled_bound = _solve_apart(problem, choice, prices, budget, seed)
        best = first
        if nodes is not None:
            found = Solution.from_nodes(
                egraph, costs, np.concatenate((problem.decided, problem.parts_of(nodes)))
            )
            best = found if found.cost < first.cost else first
        bound = max(first.bound, scaled_bound / scale + problem.offset)
        closed = bound >= best.cost * (1 - 1e-9)
        yield best.named(self.name, bound=best.cost if closed else bound, seconds=budget.seconds)


def _solve_apart(
    problem: Problem, choice: Ints, prices: list[int], budget: Budget, seed: int
) -> tuple[Ints | None, float]:
    """The e-nodes of the best solution found, if any, and a lower bound on the sum of `prices`.

    In a process of its own: OR-tools and highspy bring libraries of one name that cannot be loaded together.
    """
    job = (problem, choice, prices, budget.left, budget.work, seed)
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps(job),
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ExtractionError(f"OR-tools failed: {' '.join(last) or f'exit status {done.returncode}'}")
    answer: tuple[Ints | None, float] = pickle.loads(done.stdout)
    return answer


def _solve(
    problem: Problem, choice: Ints, prices: list[int], seconds: float, work: float, seed: int
) -> tuple[Ints | None, float]:
    from ortools.sat.python import cp_model

    start = monotonic()
    model, used = _model(cp_model, problem, choice, prices)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed % 2**31
    if seconds < inf:
        solver.parameters.max_time_in_seconds = max(0.0, seconds - STARTING - (monotonic() - start))
    if work < inf:
        solver.parameters.max_deterministic_time = work / WORK_PER_SECOND
    status = solver.solve(model)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    nodes = np.flatnonzero([solver.value(node) for node in used]).astype(np.int32) if found else None
    return nodes, solver.best_objective_bound


def _scaled(costs: Floats) -> tuple[list[int], float]:
    """Costs as integers, and what they were multiplied by; exact where they have a granule, else rounded down."""
    step, total = granule(costs), max(float(costs.sum()), 1e-300)
    if step and total / step < LARGEST:
        return np.rint(costs / step).astype(np.int64).tolist(), 1.0 / step
    return np.floor(costs * (LARGEST / total)).astype(np.int64).tolist(), LARGEST / total


def _model(cp_model: Any, problem: Problem, choice: Ints, prices: list[int]) -> tuple[Any, list[Any]]:
    """The model, and the variable of every e-node; `choice` (n_classes,) is hinted."""
    model = cp_model.CpModel()
    hinted = np.zeros(problem.n_nodes, dtype=bool)
    hinted[choice[choice >= 0]] = True
    used = [model.new_bool_var("") for _ in range(problem.n_nodes)]
    needed = [model.new_bool_var("") for _ in range(problem.n_classes)]
    component = components(problem.head, problem.ptr, problem.child, problem.n_classes)
    size = np.bincount(component)[component]
    level = [model.new_int_var(0, int(k) - 1, "") if k > 1 else None for k in size]
    ptr, nodes = members(problem.head, problem.n_classes)
    for c in range(problem.n_classes):
        model.add_exactly_one([needed[c].negated(), *(used[i] for i in nodes[ptr[c] : ptr[c + 1]].tolist())])
    model.add(needed[problem.root] == 1)
    for i, c in enumerate(problem.head.tolist()):
        model.add_hint(used[i], bool(hinted[i]))
        for d in problem.child[problem.ptr[i] : problem.ptr[i + 1]].tolist():
            model.add_implication(used[i], needed[d])
            if component[c] == component[d]:
                model.add(level[d] < level[c]).only_enforce_if(used[i])
    model.minimize(cp_model.LinearExpr.weighted_sum(used, prices))
    return model, used


cpsat: Extractor = CPSat()

if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(_solve(*pickle.loads(sys.stdin.buffer.read()))))
