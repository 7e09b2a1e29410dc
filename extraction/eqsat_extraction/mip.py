"""Exact extraction: HiGHS' branch and bound over the relaxation, with lazily separated cuts.

HiGHS cannot take rows while it branches. So a run is interrupted as soon as it meets an integer point that is
cyclic, the cuts that the point violates are added, and it starts again; a run that ends by itself has proved
its bound, and with an acyclic solution its optimality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._budget import Budget
from ._graph import cheapest_trees, prune
from ._solver import solver
from .egraph import Floats, Ints
from .relaxation import Relaxation

NODE_ITERATIONS = 50
"""Simplex iterations that a node of branch and bound is charged for; HiGHS does not count them for us."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What branch and bound found out about solutions below its cutoff.

    `choice` (n_classes,) is the best one, or None; no solution costs less than `bound`. `finished` says that
    no solution costs less than `choice` does, or than the cutoff where `choice` is None.
    """

    choice: Ints | None
    cost: float
    bound: float
    finished: bool


def branch_and_cut(relaxation: Relaxation, cutoff: float, budget: Budget) -> Outcome:
    """Search below `cutoff` until finished or the budget is spent.

    Cuts found on the way stay in the relaxation.
    """
    best: Ints | None = None
    limit, bound = cutoff, relaxation.value
    while not budget.spent:
        run = _Run(relaxation, limit, budget)
        for point in run.points:
            choice, cost = repair(relaxation, point)
            if cost < limit and relaxation.admits(choice):
                best, limit = choice, cost
        bound = max(bound, min(run.bound, limit))
        if run.cyclic:
            fresh = sum(relaxation.add_cuts(*cuts) for cuts in run.cuts)
            if fresh:
                continue
        finished = run.finished and not run.cyclic
        return Outcome(best, limit, limit if finished else bound, finished)
    return Outcome(best, limit, bound, False)


def repair(relaxation: Relaxation, x: Floats) -> tuple[Ints, float]:
    """The cheapest tree when e-nodes cost less the more they are chosen; an acyclic choice and its cost.

    Where `x` is an acyclic choice itself, that choice.
    """
    problem = relaxation.problem
    guide = problem.cost * (1.0 - x) + relaxation.value * (1.0 - x)
    _, choice, _ = cheapest_trees(problem.head, guide, problem.ptr, problem.child, problem.n_classes)
    return prune(problem.ptr, problem.child, problem.cost, choice, problem.root)


class _Run:
    """One run of HiGHS: the integer points it met, the cuts they violate, its bound, whether it ended by itself."""

    def __init__(self, relaxation: Relaxation, cutoff: float, budget: Budget) -> None:
        import highspy

        self.relaxation, self.budget = relaxation, budget
        self.points: list[Floats] = []
        self.cuts: list[Any] = []
        self.cyclic = False
        self.finished = False
        scale = relaxation.scale
        model = relaxation.highs.getLp()
        model.integrality_ = [highspy.HighsVarType.kInteger] * relaxation.problem.n_nodes
        highs = solver(
            mip_rel_gap=0.0,
            mip_abs_gap=1e-7 * scale * max(cutoff, 0.0),
            objective_bound=cutoff * scale,
            time_limit=min(budget.left, 1e9),
        )
        node_work = max(1, relaxation.rows) * NODE_ITERATIONS / 1000
        highs.setOptionValue("mip_max_nodes", int(min(budget.work / node_work, 2**31 - 1)))
        highs.passModel(model)
        highs.cbMipSolution.subscribe(self._meet)
        highs.cbMipImprovingSolution.subscribe(self._meet)
        highs.cbMipInterrupt.subscribe(self._stop)
        highs.run()
        info, status = highs.getInfo(), highs.getModelStatus()
        budget.charge((1 + info.mip_node_count) * node_work)
        self.bound = info.mip_dual_bound / scale if np.isfinite(info.mip_dual_bound) else 0.0
        ended = highspy.HighsModelStatus
        self.finished = status in (
            ended.kOptimal,
            ended.kInfeasible,
            ended.kObjectiveBound,
            ended.kUnboundedOrInfeasible,
        )
        if status == ended.kOptimal:
            self._look(np.array(highs.getSolution().col_value))

    def _meet(self, event: Any) -> None:
        self._look(np.array(event.data_out.mip_solution))

    def _look(self, x: Floats) -> None:
        x = (x > 0.5).astype(np.float64)
        relaxation = self.relaxation
        self.points.append(x)
        if not relaxation.supports_root(x):
            self.cyclic = True
            self.cuts.append(relaxation.separate(x))

    def _stop(self, event: Any) -> None:
        event.interrupt(bool(self.cyclic or self.budget.spent))
