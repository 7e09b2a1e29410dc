"""The linear relaxation with lazily separated external-support cuts, on HiGHS."""

from __future__ import annotations

from itertools import compress, pairwise
from typing import Any

import numpy as np

from ._budget import Budget
from ._graph import derivable, members
from ._solver import solver
from .egraph import Floats, Ints, Mask, Offsets
from .problem import Problem, restrict, spans
from .separation import TOLERANCE, separate

DRAWS, MOST_DRAWS, GUESSES = 6, 9, 14
"""Attempts at separation in a round, up to how many while they cost less work than the last optimum did, and those
after which a point without a violated cut counts as supported."""
DEPTH = 5
"""Cuts of one e-class in one attempt, each of other chosen e-nodes than those before."""
PATIENCE = 3
"""Optima in a row at which a cut may be slack before it is taken out."""
INWARD = 0.3
"""How much of the optimum is in the point that is cut off; the rest is a mean of the optima so far, later ones more.

Cuts of such a point are violated by many optima, those of an optimum, which is extreme, by few.
"""


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
        self.slack_since = np.empty(0, dtype=np.int64)
        self.draws = 0
        self.work = 0.0
        self.x = np.zeros(problem.n_nodes)
        self.mean: Floats | None = None
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
        """Add the rows of cuts that are new since the last optimum; returns how many."""
        count, n = len(targets), self.problem.n_nodes
        row = np.repeat(
            np.tile(np.arange(count), 2), np.append(np.diff(ptr), np.diff(self.class_ptr)[targets])
        )
        members_of = self.class_node[spans(self.class_ptr, targets)]
        place, inverse = np.unique(row * n + np.append(nodes, members_of), return_inverse=True)
        value = np.bincount(inverse, np.where(np.arange(len(row)) < len(nodes), 1.0, -1.0))
        place, value = place[value != 0], value[value != 0]  # an e-node of both sides is in neither
        index = (place % n).astype(np.int32)
        starts = np.searchsorted(place, n * np.arange(count + 1))
        fresh = []
        for number, (first, last) in enumerate(pairwise(starts.tolist())):
            key = index[first:last].tobytes() + value[first:last].tobytes()
            if key not in self.keys:
                self.keys.add(key)
                fresh.append(number)
        if fresh:
            self.slack_since = np.append(self.slack_since, np.zeros(len(fresh), dtype=np.int64))
            entries = spans(starts, np.array(fresh, dtype=np.int32))
            sizes = np.diff(starts)[fresh]
            self._add_rows(np.append(0, np.cumsum(sizes)), index[entries], value[entries])
        return len(fresh)

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
        self.keys.clear()
        self.work = max(0, self.highs.getInfo().simplex_iteration_count) * self.rows / 1000
        budget.charge(self.work)
        if self.highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return False
        solution = self.highs.getSolution()
        self.x = np.clip(np.array(solution.col_value), 0.0, 1.0)
        self.mean = self.x if self.mean is None else (self.mean + self.x) / 2
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

    def separate(self, x: Floats, max_cuts: int = 500, guess: int = 0) -> tuple[Ints, Offsets, Ints]:
        """Cuts that a point violates: target e-classes, and offsets and e-nodes of the cuts.

        Separation guesses; another `guess` may find what the first one, 0, did not.
        """
        p = self.problem
        noise = np.random.default_rng(guess).uniform(0.2, 1.0, p.n_classes) if guess else np.ones(p.n_classes)
        return separate(p.head, p.ptr, p.child, p.n_classes, x, max_cuts, noise, DEPTH)

    def tighten(self, budget: Budget, max_cuts: int = 500) -> int:
        """Separate cuts at or near the current point and add those that it violates; returns how many were new."""
        inner = self.x if self.mean is None else INWARD * self.x + (1 - INWARD) * self.mean
        chosen = np.bincount(self.problem.head, self.x)
        added, drawn = 0, 0.0
        for attempt in range(DRAWS + GUESSES):
            if budget.spent or (added and attempt >= (MOST_DRAWS if drawn < self.work else DRAWS)):
                break
            targets, ptr, nodes = self.separate(inner if attempt < DRAWS else self.x, max_cuts, self.draws)
            self.draws += 1
            work = len(self.problem.child) * (1 + len(targets)) / 1000
            drawn += work
            budget.charge(work)
            supplied = np.diff(np.append(0.0, np.cumsum(self.x[nodes]))[ptr])
            broken = np.flatnonzero(chosen[targets] - supplied > TOLERANCE).astype(np.int32)
            sizes = np.diff(ptr)[broken]
            added += self.add_cuts(targets[broken], np.append(0, np.cumsum(sizes)), nodes[spans(ptr, broken)])
        return added

    def shrink(self, keep: Mask) -> None:
        """Go on without the e-nodes outside a mask (as in `restrict`), and without cuts that have long been slack.

        `problem` and everything about e-nodes are of the rest. The next `solve` starts from the last basis where
        that still is one.
        """
        import highspy

        basis = self.highs.getBasis()
        first = self.rows - len(self.slack_since)
        slack = [status == highspy.HighsBasisStatus.kBasic for status in basis.row_status[first:]]
        self.slack_since = np.where(slack, self.slack_since + 1, 0)
        stay = np.append(np.ones(first, dtype=np.bool_), self.slack_since <= PATIENCE)
        if stay.all() and keep.all():
            return
        basis.row_status = list(compress(basis.row_status, stay))
        basis.col_status = list(compress(basis.col_status, keep))
        for remove, mask in ((self.highs.deleteRows, stay), (self.highs.deleteCols, keep)):
            gone = np.flatnonzero(~mask).astype(np.int32)
            if len(gone):
                remove(len(gone), gone)
        self.highs.setBasis(basis)
        self.rows = int(stay.sum())
        self.slack_since = self.slack_since[stay[first:]]
        if not keep.all():
            self.problem = restrict(self.problem, keep)
            self.class_ptr, self.class_node = members(self.problem.head, self.problem.n_classes)
            self.x, self.duals = self.x[keep], self.duals[keep]
            self.mean = None if self.mean is None else self.mean[keep]
            if self.budget_row is not None:
                self.budget_row = (self.budget_row[0][keep], self.budget_row[1])
            self.keys.clear()


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
