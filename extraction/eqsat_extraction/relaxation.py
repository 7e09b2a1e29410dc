"""The linear relaxation with lazily separated external-support cuts, on HiGHS."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._budget import Budget
from ._graph import derivable, members
from ._solver import solver
from .egraph import Floats, Ints, Offsets
from .problem import Problem, spans
from .separation import separate

GUESSES = 20
"""Attempts at separation after which a point counts as supported."""


class Relaxation:
    """Choose e-nodes fractionally, at least cost, so that what is read is chosen and derivations are supported.

    Variables are the e-nodes, between 0 and 1. Rows, each at least zero: an e-class is chosen as often as the
    e-nodes of any one other e-class read it; an e-class is chosen at most as often as a cut below it.
    Costs are multiplied by `scale` for HiGHS, whose tolerances are absolute. After `solve`, `x` (n,) is the
    optimal point, `value` a lower bound on every solution (`offset` not included), and `duals` (n,) what every
    e-node adds to that bound when it is chosen.
    """

    def __init__(self, problem: Problem, scale: float = 1.0) -> None:
        self.problem = problem
        self.scale = scale
        self.rows = 0
        self.budget_row: tuple[Floats, float] | None = None
        self.class_ptr, self.class_node = members(problem.head, problem.n_classes)
        self.keys: set[bytes] = set()
        self.x = np.zeros(problem.n_nodes)
        self.duals = np.zeros(problem.n_nodes)
        self.value = 0.0
        self.highs = solver(presolve="off")
        lower = np.zeros(problem.n_nodes)
        lower[-1] = 1.0
        self.highs.addVars(problem.n_nodes, lower, np.ones(problem.n_nodes))
        self.highs.changeColsCost(
            problem.n_nodes, np.arange(problem.n_nodes, dtype=np.int32), problem.cost * scale
        )
        self._add_rows(*_read_rows(problem, self.class_ptr, self.class_node))

    def _add_rows(self, ptr: Offsets, index: Ints, value: Floats) -> None:
        rows = len(ptr) - 1
        self.rows += rows
        if rows:
            self.highs.addRows(
                rows,
                np.zeros(rows),
                np.full(rows, np.inf),
                len(index),
                ptr[:-1].astype(np.int32),
                index.astype(np.int32),
                value,
            )

    def add_cuts(self, targets: Ints, ptr: Offsets, nodes: Ints) -> int:
        """Add the rows of cuts that are new; returns how many."""
        rows: list[tuple[Ints, Floats]] = []
        for row, target in enumerate(targets.tolist()):
            cut = nodes[ptr[row] : ptr[row + 1]]
            key = np.append(cut, target).tobytes()
            if key in self.keys:
                continue
            self.keys.add(key)
            rows.append(_cut_row(cut, self.class_node[self.class_ptr[target] : self.class_ptr[target + 1]]))
        if rows:
            sizes = np.cumsum([0] + [len(index) for index, _ in rows])
            self._add_rows(
                sizes,
                np.concatenate([index for index, _ in rows]),
                np.concatenate([value for _, value in rows]),
            )
        return len(rows)

    def limit_sum(self, values: Floats, limit: float) -> None:
        """Admit only choices over which `values` (n,), not negative, sum to at most `limit`; once at most."""
        self.budget_row = (values, limit)
        index = np.flatnonzero(values).astype(np.int32)
        self.rows += 1
        self.highs.addRow(-limit, np.inf, len(index), index, -values[index])

    def admits(self, choice: Ints) -> bool:
        """Whether a choice (n_classes,) keeps the limit on its sum, if there is one."""
        if self.budget_row is None:
            return True
        values, limit = self.budget_row
        return bool(values[choice[choice >= 0]].sum() <= limit)

    def solve(self, budget: Budget) -> bool:
        """Solve the current rows by dual simplex; whether an optimum was reached within the budget."""
        import highspy

        self.highs.setOptionValue("time_limit", self.highs.getRunTime() + min(budget.left, 1e9))
        allowed = budget.work * 1000 / max(1, self.rows)
        self.highs.setOptionValue("simplex_iteration_limit", int(min(allowed, 2**31 - 1)))
        self.highs.run()
        budget.charge(max(0, self.highs.getInfo().simplex_iteration_count) * self.rows / 1000)
        if self.highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return False
        solution = self.highs.getSolution()
        self.x = np.clip(np.array(solution.col_value), 0.0, 1.0)
        self._certify(np.array(solution.row_dual))
        return True

    def _certify(self, row_duals: Floats) -> None:
        """The bound that these duals prove, whatever the solver's tolerances were.

        With non-negative row duals, cost less what the duals pay for is a valid price of every e-node; a negative
        price is collected at most once.
        """
        lp = self.highs.getLp()
        matrix = lp.a_matrix_
        start, index, value = np.array(matrix.start_), np.array(matrix.index_), np.array(matrix.value_)
        lines = np.repeat(np.arange(len(start) - 1), np.diff(start))
        columns, rows = (lines, index) if _by_column(matrix) else (index, lines)
        paid = np.bincount(
            columns, weights=value * np.maximum(row_duals, 0.0)[rows], minlength=self.problem.n_nodes
        )
        price = (self.problem.cost * self.scale - paid) / self.scale
        self.value = float(price[-1] + np.minimum(price[:-1], 0.0).sum())
        if self.budget_row is not None:
            lower_sides = np.array(lp.row_lower_)
            self.value += float((lower_sides * np.maximum(row_duals, 0.0)).sum()) / self.scale
        self.duals = np.maximum(price, 0.0)
        self.duals[-1] = 0.0

    def supports_root(self, x: Floats) -> bool:
        """Whether the root has an acyclic derivation from the e-nodes with `x` above a half."""
        p = self.problem
        return bool(derivable(p.head, p.ptr, p.child, x > 0.5, p.n_classes)[p.root])

    def separate(self, x: Floats, max_cuts: int = 200, guess: int = 0) -> tuple[Ints, Offsets, Ints]:
        """Cuts that a point violates: target e-classes, and offsets and e-nodes of the cuts.

        Separation guesses; another `guess` may find what the first one, 0, did not.
        """
        p = self.problem
        noise = np.random.default_rng(guess).uniform(0.2, 1.0, p.n_classes) if guess else np.ones(p.n_classes)
        return separate(p.head, p.ptr, p.child, p.n_classes, x, max_cuts, noise)

    def tighten(self, budget: Budget, max_cuts: int = 200) -> int:
        """Separate cuts at the current point and add them; returns how many were new."""
        for guess in range(GUESSES):
            found = self.separate(self.x, max_cuts, guess)
            budget.charge(len(self.problem.child) * (1 + len(found[0])) / 1000)
            added = self.add_cuts(*found)
            if added or budget.spent:
                return added
        return 0


def _by_column(matrix: Any) -> bool:
    import highspy

    return bool(matrix.format_ == highspy.MatrixFormat.kColwise)


def _read_rows(problem: Problem, class_ptr: Offsets, class_node: Ints) -> tuple[Offsets, Ints, Floats]:
    """One row per pair (e-class, child e-class): the child's e-nodes less the e-nodes that read it.

    The two are never the same e-node, for no e-node reads its own e-class.
    """
    reader = np.repeat(np.arange(problem.n_nodes, dtype=np.int32), np.diff(problem.ptr))
    pair = problem.head[reader].astype(np.int64) * problem.n_classes + problem.child
    pairs, row_of_reader = np.unique(pair, return_inverse=True)
    children = pairs % problem.n_classes
    members_of = np.diff(class_ptr)[children]
    row = np.concatenate((np.repeat(np.arange(len(pairs)), members_of), row_of_reader))
    index = np.concatenate((class_node[spans(class_ptr, children)], reader))
    value = np.concatenate((np.ones(int(members_of.sum())), -np.ones(len(reader))))
    order = np.argsort(row, kind="stable")
    ptr = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=len(pairs)))))
    return ptr.astype(np.int64), index[order], value[order]


def _cut_row(plus: Ints, minus: Ints) -> tuple[Ints, Floats]:
    """Indices and coefficients of `sum(plus) - sum(minus)`, without what cancels."""
    more, less = np.setdiff1d(plus, minus), np.setdiff1d(minus, plus)
    return np.concatenate((more, less)), np.concatenate((np.ones(len(more)), -np.ones(len(less))))
