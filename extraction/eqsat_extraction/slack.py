"""What it costs at least to use an e-node: which of them can matter when prices are not exact."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._budget import Budget
from ._graph import detours
from .egraph import EGraph, Floats
from .lmcut import landmark_bound
from .problem import from_egraph


def slack(egraph: EGraph, costs: ArrayLike, *, time_limit: float | None = 5.0) -> tuple[float, Floats]:
    """A lower bound on the cost of every solution, and for every e-node (n,) how much more one with it costs at least.

    Infinity where no finite solution has the e-node. By landmark cuts (`lmcut`), so that the bound may be below the
    optimum, and what it lacks may be missing in the others. Raises like `extract`.
    """
    problem = from_egraph(egraph, egraph.check_costs(costs))
    marks = landmark_bound(problem, Budget(time_limit))
    found = detours(problem.head, marks.reduced, problem.ptr, problem.child, problem.n_classes)
    out = np.full(egraph.n_nodes, np.inf)
    out[problem.part] = np.repeat(found, np.diff(problem.part_ptr))
    return marks.bound + problem.offset, out
