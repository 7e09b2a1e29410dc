"""What a strategy plays against: one model, rules to choose from, and a budget."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from eqsat_deploy.lower import Lowered, Term
from eqsat_deploy.research.destructive import lowered_form
from eqsat_deploy.schedule import SATURATE, Schedule, Step
from eqsat_deploy.search import Limits, Restrict, Search, search
from eqsat_deploy.selection import Selection, find_rules, registered_rules
from eqsat_deploy.tables import Frozen
from eqsat_extraction.kernel import CostModel

Actions = tuple[str, ...]


class Spent(Exception):
    """The budget of a strategy is spent."""


@dataclass(frozen=True)
class Effort:
    """What a strategy may spend: e-graphs to saturate and price, seconds, and e-nodes in each; an action that makes an
    e-graph larger is undone. Sequences have at most `length` actions."""

    evaluations: int = 60
    seconds: float = 60.0
    nodes: int = 20_000
    length: int = 12


@dataclass(frozen=True)
class Point:
    """What was best after so many evaluations and seconds."""

    evaluations: int
    seconds: float
    cost: float


@dataclass(frozen=True)
class Ordering:
    """Families in the order they were applied, and the form that was left: predicted cost and kernel launches."""

    order: Actions
    cost: float
    kernels: int


class Environment:
    """A model to rewrite, with memory: what was asked before costs nothing.

    `actions` are families or rules by name; `without`, a family or a rule, is left out of everything. `orders` are
    the orders that were followed to their end.
    """

    def __init__(
        self, lowered: Lowered, actions: Actions, cost_model: CostModel, effort: Effort, limits: Limits,
        without: str | None = None,
    ) -> None:  # fmt: skip
        self.lowered, self.actions, self.cost_model = lowered, actions, cost_model
        self.effort, self.limits, self.without = effort, limits, without
        self.evaluations = 0  # e-graphs that were saturated and priced
        self.costs: dict[Actions, float] = {}
        self.known: dict[Any, Search] = {}
        self.forms: dict[int, Lowered] = {}
        self.signatures: dict[int, str] = {id(lowered): _signature(lowered)}
        self.orders: dict[Actions, Ordering] = {}
        self.curve: list[Point] = []
        self.best: Search | None = None
        self.sequence: Actions = ()
        self.start = time.perf_counter()

    def cost(self, sequence: Sequence[str]) -> float:
        """The cost of the cheapest form after these actions on one e-graph.

        Raises:
            Spent: nothing is left of the budget.
        """
        sequence = tuple(sequence)[: self.effort.length]
        if sequence not in self.costs:  # only costs are kept: e-graphs can be large, and sequences many
            schedule = Schedule.sequence(sequence, nodes=self.effort.nodes)
            found = self._evaluated(self.lowered, schedule, sequence, None, None, True)
            self.costs[sequence] = found.solution.cost
        return self.costs[sequence]

    def together(self, schedule: Schedule | None = None) -> float:
        """The cost after saturation with all actions' rules, in the usual order or under a schedule."""
        return self.search(schedule, self.actions).solution.cost

    def destructively(self, order: Sequence[str]) -> float:
        """The cost where each action is saturated alone, and only the cheapest form of its e-graph goes on."""
        found = self.follow(order)
        self.orders[tuple(order)] = Ordering(tuple(order), found.solution.cost, len(found.launches))
        return found.solution.cost

    def follow(self, order: Sequence[str]) -> Search:
        """What `destructively` finds last."""
        form, found = self.lowered, self.search(Schedule(()), ())
        for count, action in enumerate(order, 1):
            alone = Schedule((Step(run=(action,), times=SATURATE, nodes=self.effort.nodes),))
            found = self.search(alone, tuple(order[:count]), form)
            form = self.form(found) if count < len(order) else form
        return found

    def form(self, found: Search) -> Lowered:
        """The cheapest form of what was found, as a model to go on with."""
        if id(found) not in self.forms:
            form = lowered_form(found)
            self.forms[id(found)], self.signatures[id(form)] = form, _signature(form)
        return self.forms[id(found)]

    def search(
        self, schedule: Schedule | None, sequence: Actions, form: Lowered | None = None, *,
        iterations: int | None = None, restrict: Restrict | None = None, restricted: str = "", counts: bool = True,
    ) -> Search:  # fmt: skip
        """Saturate a form and price what came of it.

        Args:
            schedule: what runs; the usual order of all actions' rules when missing.
            sequence: what led here, for the record.
            form: what to saturate, if not the model: one that `form` returned.
            iterations: at most so many of rewriting.
            restrict: what may be extracted, as for `eqsat_deploy.search.search`; `restricted` says so in words.
            counts: whether the form that is found is one to be had, and not a stage on the way.

        Raises:
            Spent: nothing is left of the budget.
            ExtractionError: no form can be built.
        """
        form = self.lowered if form is None else form
        key = self.signatures[id(form)], repr(schedule), iterations, restricted
        if key not in self.known:
            found = self._evaluated(form, schedule, sequence, iterations, restrict, counts)
            found.saturation.frozen = Frozen({})  # its largest part, which nobody asks for
            self.known[key] = found
        return self.known[key]

    def _evaluated(
        self, form: Lowered, schedule: Schedule | None, sequence: Actions, iterations: int | None,
        restrict: Restrict | None, counts: bool,
    ) -> Search:  # fmt: skip
        seconds = time.perf_counter() - self.start
        if self.evaluations and (
            self.evaluations >= self.effort.evaluations or seconds > self.effort.seconds
        ):
            raise Spent
        self.evaluations += 1
        if schedule is not None:
            schedule = schedule.among(self.selection.rules, registered_rules())
        most = self.limits.budget.iterations if iterations is None else iterations
        nodes = max(self.effort.nodes, 1)
        budget = replace(self.limits.budget, nodes=nodes, schedule=schedule, iterations=most)
        limits = replace(self.limits, budget=budget)
        found = search(form, self.selection, self.cost_model, limits, restrict=restrict)
        if counts and (self.best is None or found.solution.cost < self.best.solution.cost):
            self.best, self.sequence = found, sequence
            seconds = time.perf_counter() - self.start
            self.curve.append(Point(self.evaluations, seconds, found.solution.cost))
        return found

    @cached_property
    def selection(self) -> Selection:
        """The rules of all actions, and the target's: loaded once, whatever a schedule runs of them."""
        rules = find_rules(self.actions).rules
        return Selection(tuple(r for r in rules if self.without not in (r.name, r.family)))


def _signature(lowered: Lowered) -> str:
    rows = [(row.operator.name, row.args) for row in lowered.rows]
    outputs = [o.row if isinstance(o, Term) else None for o in lowered.outputs]
    return hashlib.sha256(repr((rows, outputs)).encode()).hexdigest()
