"""The portfolio: reduce, bound from both sides, exclude what the bounds forbid, begin again; then branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, inf

import numpy as np

from ._budget import Budget
from ._graph import detours, usable
from .egraph import Floats, Ints, Mask
from .greedy import greedy_choice, tree_choice
from .lmcut import LandmarkBound, critical_path, landmark_bound, probe
from .local import improve
from .mip import branch_and_cut, repair
from .presolve import presolve
from .problem import Problem, require, restrict, split
from .relaxation import Relaxation
from .treewidth import eliminate

RESTART = 0.85
"""Begin again when at most this share of the e-nodes is left."""
CANDIDATES = 3
"""E-nodes that are tried before one is branched on."""
RELAXABLE = 200_000
"""Operands above which the relaxation is not worth building: HiGHS would not solve it in minutes."""
VARIANTS = 4
"""Tie-breakings of LM-cut whose cuts the relaxation begins with."""
WINDOW = 10
"""Rounds of cuts that together must close a share `PACE` of the gap; below a branching, each must."""
PACE = 0.05
PROBING = 0.1
"""Share of what is left of the budget that one round of probing may use."""
LARGE = 20_000
"""E-nodes from which on local search comes before the linear relaxation."""


@dataclass(frozen=True, eq=False)
class Progress:
    """Something better is known: a cost, a lower bound, and who found it. Both include the problem's offset.

    `picked` are the original e-nodes (spares included) of the solution, or None where it is the one before.
    """

    picked: Ints | None
    cost: float
    bound: float


@dataclass(eq=False)
class _State:
    """The best solution of a search, in original e-nodes, and its bounds; `fresh` until it is reported."""

    upper: float
    lower: float = 0.0
    picked: Ints | None = None
    fresh: bool = False

    def offer(self, problem: Problem, choice: Ints, cost: float) -> None:
        """Take over a choice of a problem, at a cost without its offset, if it is better."""
        if cost + problem.offset < self.upper:
            self.upper = cost + problem.offset
            self.picked = problem.picked(choice)
            self.fresh = True

    def report(self) -> Progress:
        """What is known now."""
        picked = self.picked if self.fresh else None
        self.fresh = False
        return Progress(picked, self.upper, min(self.lower, self.upper))


@dataclass(frozen=True, eq=False)
class _Node:
    """What is left of a problem after reductions: its bound, landmarks and, unless out of budget, relaxation."""

    problem: Problem
    bound: float
    marks: LandmarkBound
    relaxation: Relaxation | None


def granule(costs: Floats) -> float:
    """The largest step of which all finite costs are multiples, 10^-k times an integer; 0 if there is none.

    The cost of every solution is then a multiple too, which lifts bounds to the next one.
    """
    finite = np.unique(costs[np.isfinite(costs)])
    for digits in range(7):
        scaled = finite * 10.0**digits
        whole = np.rint(scaled)
        if np.all(np.abs(scaled - whole) <= 1e-9 * np.maximum(1.0, whole)) and np.all(scaled < 2**40):
            return float(np.gcd.reduce(whole.astype(np.int64))) / 10.0**digits
    return 0.0


class Search:
    """One run of the portfolio under one budget; `step` is the granule of its costs, or 0."""

    def __init__(self, budget: Budget, step: float, seed: int) -> None:
        self.budget = budget
        self.step = step
        self.seed = seed

    def solve(self, problem: Problem, upper: float = inf, *, thorough: bool = True) -> Iterator[Progress]:
        """Progress on solutions cheaper than `upper`; finished when the last bound reaches the last cost.

        Where there is no such solution the last cost is `upper`. The first progress has a solution if `upper`
        is infinite. `thorough` searches try everything; others reduce and branch.
        """
        if self._at_least(problem, upper):
            yield Progress(None, upper, upper)
            return
        problem = presolve(problem, self.budget)
        if self.budget.spent and upper < inf:
            yield Progress(None, upper, min(problem.offset, upper))
            return
        parts = split(problem)
        if len(parts) > 1 or (self.budget.spent and upper < inf):
            yield from self._solve_parts(problem, parts, upper, thorough)
        else:
            yield from self._solve_one(problem, upper, thorough)

    def run(self, problem: Problem) -> Iterator[Progress]:
        """A greedy solution at once, then `solve`."""
        state = self._greedy(problem)
        yield state.report()
        if not self.budget.spent:
            yield from self.solve(problem, state.upper)

    def local(self, problem: Problem) -> Iterator[Progress]:
        """Large-neighbourhood search alone; its bound is the reduced problem's offset."""
        yield from self._reduced(problem, lambda reduced, state: self._improve(reduced, state, 1.0))

    def integer_program(self, problem: Problem) -> Iterator[Progress]:
        """Reductions, relaxation and branch and cut on HiGHS alone."""
        yield from self._reduced(problem, self._exact)

    def _greedy(self, problem: Problem) -> _State:
        state = _State(inf, problem.offset)
        state.offer(problem, *greedy_choice(problem))
        return state

    def _reduced(
        self, problem: Problem, search: Callable[[Problem, _State], Iterator[Progress]]
    ) -> Iterator[Progress]:
        """A greedy solution at once, then a search of the reduced problem."""
        state = self._greedy(problem)
        yield state.report()
        problem = presolve(problem, self.budget)
        state.lower = problem.offset
        if not self.budget.spent:
            state.offer(problem, *greedy_choice(problem))
        yield state.report()
        if not self.budget.spent:
            yield from search(problem, state)

    def _solve_parts(
        self, whole: Problem, parts: list[Problem], upper: float, thorough: bool
    ) -> Iterator[Progress]:
        """Independent parts, each to its first solution, then each to its end, small ones first.

        A part may use twice its fair share of what is left of the budget.
        """
        searches = [Search(self.budget, self.step, self.seed) for _ in parts]
        runs = [search.solve(part, thorough=thorough) for search, part in zip(searches, parts, strict=True)]
        states: list[Progress] = []
        for run in runs:
            if self.budget.spent and upper < inf:
                yield Progress(None, upper, min(whole.offset, upper))
                return
            states.append(next(run))
        picked = [state.picked for state in states]
        costs = np.array([state.cost for state in states])
        bounds = np.array([state.bound for state in states])

        def report() -> Progress:
            nonlocal upper
            cost = whole.offset + float(costs.sum())
            bound = whole.offset + float(bounds.sum())
            if cost >= upper:
                return Progress(None, upper, min(bound, upper))
            upper = cost
            nodes = np.concatenate([whole.decided, *(nodes for nodes in picked if nodes is not None)])
            return Progress(nodes, cost, min(bound, cost))

        yield report()
        order = sorted(range(len(parts)), key=lambda k: (parts[k].n_nodes, k))
        for done, k in enumerate(order):
            if self.budget.spent:
                return
            searches[k].budget = self.budget.share(min(1.0, 2.0 / (len(parts) - done)))
            allowed = searches[k].budget.work
            for state in runs[k]:
                costs[k], bounds[k] = state.cost, state.bound
                picked[k] = picked[k] if state.picked is None else state.picked
                yield report()
            self._settle(searches[k].budget, allowed)

    def _solve_one(self, problem: Problem, upper: float, thorough: bool) -> Iterator[Progress]:
        state = _State(upper, problem.offset)
        for choose in (greedy_choice, tree_choice):
            state.offer(problem, *choose(problem))
            if self.budget.spent:
                break
        yield state.report()
        if self.budget.spent:
            return
        if self._at_least(problem, state.upper):
            state.lower = state.upper
            yield state.report()
            return
        if thorough and problem.n_nodes > LARGE:
            yield from self._improve(problem, state, 0.3)
        node = self._reduce(problem, state, thorough)
        while node is not None:
            state.lower = max(state.lower, node.bound)
            yield state.report()
            upper = state.upper
            if thorough and node.relaxation is not None:
                yield from self._cores(node, state)
            if state.upper == upper or self.budget.spent:
                break
            node = self._reduce(node.problem, state, thorough)
        if node is None:
            state.lower = state.upper
            yield state.report()
            return
        if thorough:
            yield from self._branch(node, state, self.budget.share(0.6))
            if not self._closed(state) and not self.budget.spent:
                yield from self._improve(problem, state, 0.2)
                yield from self._exact(problem, state)
        else:
            yield from self._branch(node, state, self.budget)

    def _reduce(self, problem: Problem, state: _State, thorough: bool) -> _Node | None:
        """What remains to be decided about solutions cheaper than the best one; None when nothing does."""
        bound = 0.0
        while True:
            problem = presolve(problem, self.budget)
            if problem.n_nodes == 1:
                state.offer(problem, np.zeros(1, dtype=np.int32), 0.0)
                return None
            if not self.budget.spent:
                state.offer(problem, *greedy_choice(problem))
            variants = self._landmarks(problem, state, thorough)
            marks = max(variants, key=lambda variant: variant.bound)
            bound = max(bound, self._lift(marks.bound + problem.offset))
            if self._excludes(bound, state):
                return None
            if self.budget.spent:
                return _Node(problem, bound, marks, None)
            size = problem.n_nodes
            problem = self._without(problem, marks.bound, marks.reduced, state, thorough)
            if problem.n_nodes == 0:
                return None
            if problem.n_nodes <= RESTART * size:
                continue
            if problem.n_nodes < size:
                variants = self._landmarks(problem, state, thorough)
                marks = max(variants, key=lambda variant: variant.bound)
            if thorough and problem.n_nodes <= LARGE and not self.budget.spent:
                exact = eliminate(problem)
                if exact is not None:
                    choice, cost = exact
                    bound = max(bound, self._lift(cost + problem.offset))
                    if choice is not None:
                        state.offer(problem, choice, cost)
                    if self._excludes(bound, state):
                        return None
            if len(problem.child) > RELAXABLE or self.budget.spent:
                return _Node(problem, bound, marks, None)
            relaxation = Relaxation(problem, 1.0 / self.step if self.step else 1000.0 / state.upper)
            for variant in variants:
                targets = np.full(len(variant.cut_ptr) - 1, problem.root, dtype=np.int32)
                relaxation.add_cuts(targets, variant.cut_ptr, variant.cut)
            size = problem.n_nodes
            outcome = self._tighten(relaxation, state, WINDOW if thorough else 1)
            problem = relaxation.problem
            bound = max(bound, self._lift(relaxation.value + problem.offset))
            if self._excludes(bound, state):
                return None
            if not outcome:
                return _Node(problem, bound, marks, None)
            smaller = self._without(problem, relaxation.value, relaxation.duals, state, thorough)
            if smaller.n_nodes == 0:
                return None
            if smaller.n_nodes <= RESTART * size:
                problem = smaller
                continue
            return _Node(problem, bound, marks, relaxation)

    def _landmarks(self, problem: Problem, state: _State, thorough: bool) -> list[LandmarkBound]:
        """LM-cut under several tie-breakings, until one excludes better solutions; each finds other cuts."""
        variants: list[LandmarkBound] = []
        for tie_seed in range(VARIANTS if thorough else 1):
            variants.append(landmark_bound(problem, self.budget, tie_seed=tie_seed))
            if self._excludes(variants[-1].bound + problem.offset, state):
                break
        return variants

    def _tighten(self, relaxation: Relaxation, state: _State, window: int) -> bool:
        """Rounds of cuts, while they pay; whether the relaxation was solved at all.

        Between them the relaxation loses the e-nodes that no better solution uses.
        """
        values = [-inf] * window
        offset = relaxation.problem.offset
        while not self.budget.spent and relaxation.solve(self.budget):
            state.offer(relaxation.problem, *repair(relaxation, relaxation.x))
            values.append(relaxation.value)
            gap = state.upper - offset - relaxation.value
            if (
                self._excludes(relaxation.value + offset, state)
                or values[-1] - values[-1 - window] < PACE * gap
            ):
                break
            keep = self._affordable(relaxation.problem, relaxation.value, relaxation.duals, state)
            if not keep[-1]:
                break
            relaxation.shrink(keep)
            if not relaxation.tighten(self.budget):
                break
        return len(values) > window

    def _cores(self, node: _Node, state: _State) -> Iterator[Progress]:
        """Solve the problem of the e-nodes that cost the relaxation little: where good solutions are."""
        assert node.relaxation is not None
        problem, duals = node.problem, node.relaxation.duals
        dear = np.sort(duals[duals > 1e-12])
        largest = 1
        for share in (0.0, 0.05, 0.2):
            limit = dear[int(share * (len(dear) - 1))] if share and len(dear) else 1e-12
            keep = usable(
                problem.head, problem.ptr, problem.child, duals <= limit, problem.n_classes, problem.root
            )
            if not largest < keep.sum() <= 0.7 * problem.n_nodes:
                continue
            largest = int(keep.sum())
            budget = self.budget.share(0.1)
            allowed = budget.work
            for progress in Search(budget, self.step, self.seed).solve(
                restrict(problem, keep), state.upper, thorough=False
            ):
                if progress.picked is not None and progress.cost < state.upper:
                    state.upper, state.picked, state.fresh = progress.cost, progress.picked, True
                    yield state.report()
            self._settle(budget, allowed)

    def _branch(self, node: _Node, state: _State, budget: Budget) -> Iterator[Progress]:
        """Depth-first branch and bound; every subproblem is reduced before it is branched on."""
        allowed = budget.work
        search = Search(budget, self.step, self.seed)
        floor = state.lower
        open_: list[tuple[Problem | _Node, float]] = [(node, node.bound)]
        while open_ and not budget.spent:
            item, bound = open_.pop()
            if self._excludes(bound, state):
                continue
            found = item if isinstance(item, _Node) else search._reduce(item, state, False)
            if state.fresh:
                yield state.report()
            if found is None:
                continue
            parts = split(found.problem)
            if len(parts) > 1:
                below = bound
                for progress in search._solve_parts(found.problem, parts, state.upper, False):
                    if progress.picked is not None and progress.cost < state.upper:
                        state.upper, state.picked, state.fresh = progress.cost, progress.picked, True
                        yield state.report()
                    below = max(below, progress.bound)
                if not self._excludes(below, state):
                    open_.append((found.problem, max(bound, below)))
                    break
                continue
            open_.extend((child, found.bound) for child in search._children(found, state))
            state.lower = max(floor, min(state.upper, *(bound for _, bound in open_)))
        state.lower = max(floor, min([state.upper, *(bound for _, bound in open_)]))
        self._settle(budget, allowed)
        yield state.report()

    def _improve(self, problem: Problem, state: _State, fraction: float) -> Iterator[Progress]:
        """Large-neighbourhood search from the greedy solution of a problem, for a share of the budget."""
        budget = self.budget.share(fraction)
        allowed = budget.work

        def solve(smaller: Problem, upper: float, work: float) -> Ints | None:
            part = budget.share(1.0, work)
            before = part.work
            picked = None
            for progress in Search(part, self.step, self.seed).solve(smaller, upper, thorough=False):
                picked = progress.picked if progress.picked is not None else picked
            budget.charge(before - part.work)
            return picked

        choice, _ = greedy_choice(problem)
        for better, cost in improve(problem, choice, solve, budget, self.seed):
            state.offer(problem, better, cost)
            if state.fresh:
                yield state.report()
        self._settle(budget, allowed)

    def _exact(self, problem: Problem, state: _State) -> Iterator[Progress]:
        """HiGHS on what is left, for the rest of the budget."""
        node = self._reduce(problem, state, True)
        if node is None:
            state.lower = state.upper
        elif node.relaxation is not None:
            outcome = branch_and_cut(
                node.relaxation, self._below(state.upper) - node.problem.offset, self.budget
            )
            if outcome.choice is not None:
                state.offer(node.problem, outcome.choice, outcome.cost)
            state.lower = max(
                state.lower,
                state.upper if outcome.finished else self._lift(outcome.bound + node.problem.offset),
            )
        yield state.report()

    def _without(
        self, problem: Problem, bound: float, price: Floats, state: _State, probing: bool
    ) -> Problem:
        """The problem without what no better solution uses, by reduced costs and by probing; empty if none."""
        keep = self._affordable(problem, bound, price, state)
        if keep[-1] and keep.sum() > RESTART * len(keep) and probing:
            budget = self.budget.share(PROBING)
            available = budget.work
            spare = self._spare(bound + problem.offset, state)
            allowed, optional = probe(problem, price, spare, budget)
            self._settle(budget, available)
            keep &= allowed
            problem = require(problem, np.flatnonzero(~optional[:-1]).astype(np.int32))
            keep = usable(problem.head, problem.ptr, problem.child, keep, problem.n_classes, problem.root)
        return problem if keep.all() else restrict(problem, keep)

    def _affordable(self, problem: Problem, bound: float, price: Floats, state: _State) -> Mask:
        """The e-nodes (n,) that better solutions may use, by what they pay above a bound; none if there is none."""
        extra = detours(problem.head, price, problem.ptr, problem.child, problem.n_classes)
        keep = extra <= self._spare(bound + problem.offset, state)
        return usable(problem.head, problem.ptr, problem.child, keep, problem.n_classes, problem.root)

    def _spare(self, bound: float, state: _State) -> float:
        """What a better solution can pay above a bound."""
        return self._below(state.upper) + 1e-9 * abs(state.upper) - bound

    def _settle(self, budget: Budget, allowed: float) -> None:
        """Charge what a share of the budget has used."""
        if allowed < inf:
            self.budget.charge(allowed - budget.work)

    def _below(self, upper: float) -> float:
        """What the next cheaper solution costs at most."""
        return upper - self.step * (1 - 1e-6) if self.step else upper * (1 - 1e-9)

    def _lift(self, bound: float) -> float:
        """The least cost a solution can have above a bound."""
        return ceil(bound / self.step - 1e-6) * self.step if self.step else bound

    def _children(self, node: _Node, state: _State) -> Iterator[Problem]:
        """The problem without, and last (so first to be searched) with, the e-node that decides most.

        Among e-nodes that the relaxation chooses by halves, the one whose two subproblems' landmark bounds rise
        most, by their product.
        """
        problem = node.problem
        if node.relaxation is None:
            score = node.marks.reduced[:-1] + problem.cost[:-1]
        else:
            x = node.relaxation.x[:-1]
            score = np.minimum(x, 1 - x) * (
                problem.cost[:-1] + node.relaxation.duals[:-1] + 0.05 * problem.cost.max()
            )
        undecided = self._undecided(problem)
        if not len(undecided):
            state.offer(problem, *greedy_choice(problem))
        whole = self._below(state.upper) - problem.offset - node.marks.bound
        best: tuple[float, list[Problem | None]] = (-1.0, [])
        for i in undecided[np.argsort(-score[undecided], kind="stable")[:CANDIDATES]].tolist():
            if best[1] and score[i] <= 0:
                break
            pair = [self._decided(problem, i, False), self._decided(problem, i, True)]
            gains = [
                whole
                if child is None
                else min(whole, landmark_bound(child, self.budget).bound - node.marks.bound)
                for child in pair
            ]
            merit = max(gains[0], 1e-6 * whole) * max(gains[1], 1e-6 * whole)
            if merit > best[0]:
                best = (merit, pair)
        return (child for child in best[1] if child is not None)

    def _undecided(self, problem: Problem) -> Ints:
        """The e-nodes whose e-class has others, or is not compulsory yet."""
        members = np.bincount(problem.head, minlength=problem.n_classes)
        compulsory = np.zeros(problem.n_classes, dtype=bool)
        compulsory[problem.child[problem.ptr[-2] :]] = True
        heads = problem.head[:-1]
        return np.flatnonzero((members[heads] > 1) | ~compulsory[heads]).astype(np.int32)

    def _decided(self, problem: Problem, node: int, taken: bool) -> Problem | None:
        """The problem in which an e-node must, or may not, be chosen; None when it has no solution then."""
        keep = np.ones(problem.n_nodes, dtype=bool)
        if taken:
            keep = problem.head != problem.head[node]
            problem = require(problem, problem.head[node : node + 1])
        keep[node] = taken
        keep = usable(problem.head, problem.ptr, problem.child, keep, problem.n_classes, problem.root)
        return restrict(problem, keep) if keep[-1] else None

    def _at_least(self, problem: Problem, upper: float) -> bool:
        """Whether one walk shows that no solution is cheaper than `upper`."""
        return upper < inf and critical_path(problem) + problem.offset >= self._below(upper)

    def _excludes(self, bound: float, state: _State) -> bool:
        return bound >= self._below(state.upper)

    def _closed(self, state: _State) -> bool:
        return self._excludes(state.lower, state)
