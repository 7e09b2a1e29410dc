"""Strategies: ways to choose what to rewrite with next, compared under one budget.

An action runs a family of rules once on the e-graph. What a sequence is worth is the cost of the cheapest form in the
e-graph that it leaves, once the target's kernels are in it. A strategy is a function of an `Environment` and a
random generator: it asks `environment.cost(sequence)` until that raises `Spent`, or it has nothing more to ask.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from eqsat_deploy.capture import capture
from eqsat_deploy.errors import InputError, UnknownNameError
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import Lowered, lower
from eqsat_deploy.report.plotting import new_drawing
from eqsat_deploy.report.render import to_html, to_text
from eqsat_deploy.research.destructive import lowered_form
from eqsat_deploy.research.tables import frame
from eqsat_deploy.saturate import Budget
from eqsat_deploy.schedule import Schedule
from eqsat_deploy.search import Limits, Model, Search, search
from eqsat_deploy.selection import TARGET, find_rules, registered_rules
from eqsat_deploy.targets import find_cost
from eqsat_extraction.kernel import CostModel

if TYPE_CHECKING:
    from eqsat_deploy.report.figure import Drawing

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


class Environment:
    """A model to rewrite, with memory: a sequence that was asked for before costs nothing."""

    def __init__(
        self, lowered: Lowered, actions: Actions, cost_model: CostModel, effort: Effort, limits: Limits
    ) -> None:
        self.lowered, self.actions, self.cost_model = lowered, actions, cost_model
        self.effort, self.limits = effort, limits
        self.known: dict[Any, Search] = {}
        self.curve: list[Point] = []
        self.best: Search | None = None
        self.sequence: Actions = ()
        self.start = time.perf_counter()

    @property
    def evaluations(self) -> int:
        """How many e-graphs were saturated and priced."""
        return len(self.known)

    def cost(self, sequence: Sequence[str]) -> float:
        """The cost of the cheapest form after these actions on one e-graph.

        Raises:
            Spent: nothing is left of the budget.
        """
        sequence = tuple(sequence)[: self.effort.length]
        schedule = Schedule.sequence(sequence, nodes=self.effort.nodes)  # all rules are loaded, once
        return self._search(
            ("sequence", sequence), self.lowered, self.actions, schedule, sequence
        ).solution.cost

    def together(self, schedule: Schedule | None = None) -> float:
        """The cost after saturation with all actions' rules, in the usual order or under a schedule."""
        return self._search(
            ("all", repr(schedule)), self.lowered, self.actions, schedule, self.actions
        ).solution.cost

    def destructively(self, order: Sequence[str]) -> float:
        """The cost where each action is saturated alone, and only the cheapest form of its e-graph goes on."""
        form, found = self.lowered, None
        for count in range(1, len(order) + 1):
            prefix = tuple(order[:count])
            found = self._search(("destructive", prefix), form, prefix[-1:], None, prefix)
            form = lowered_form(found)
        return found.solution.cost if found is not None else self.cost(())

    def _search(
        self, key: Any, lowered: Lowered, names: Iterable[str], schedule: Schedule | None, sequence: Actions
    ) -> Search:
        if key not in self.known:
            taken = time.perf_counter() - self.start
            if self.known and (len(self.known) >= self.effort.evaluations or taken > self.effort.seconds):
                raise Spent
            budget = replace(self.limits.budget, nodes=max(self.effort.nodes, 1), schedule=schedule)
            found = search(lowered, find_rules(names), self.cost_model, replace(self.limits, budget=budget))
            self.known[key] = found
            if self.best is None or found.solution.cost < self.best.solution.cost:
                self.best, self.sequence = found, sequence
                seconds = time.perf_counter() - self.start
                self.curve.append(Point(len(self.known), seconds, found.solution.cost))
        return self.known[key]


Strategy = Callable[[Environment, random.Random], None]


def joint(environment: Environment, generator: random.Random, *, schedule: Schedule | None = None) -> None:
    """Everything saturated together; with a `schedule`, under that."""
    environment.together(schedule)


def destructive(environment: Environment, generator: random.Random) -> None:
    """One family after another, each forgetting what was not cheapest, in orders drawn at random."""
    while True:
        environment.destructively(generator.sample(environment.actions, len(environment.actions)))
        if environment.evaluations > math.perm(len(environment.actions)):
            return


def greedy(environment: Environment, generator: random.Random) -> None:
    """The action that makes the form cheapest now, as long as one does."""
    beam(environment, generator, width=1)


def beam(environment: Environment, generator: random.Random, *, width: int = 4) -> None:
    """The `width` cheapest sequences, made longer by every action; ends where none of them got cheaper."""
    level: list[tuple[float, Actions]] = [(environment.cost(()), ())]
    while level and len(level[0][1]) < environment.effort.length:
        longer = [(*sequence, action) for _, sequence in level for action in environment.actions]
        following = sorted((environment.cost(sequence), sequence) for sequence in longer)[:width]
        if following[0][0] >= level[0][0]:
            return
        level = following


def annealing(
    environment: Environment, generator: random.Random, *, start: float = 0.1, end: float = 0.002
) -> None:
    """A sequence changed at one place at a time: what is dearer by a share d is kept with probability exp(-d / t),
    where t falls from `start` to `end` over the evaluations."""
    actions, effort = environment.actions, environment.effort
    now: list[str] = [generator.choice(actions) for _ in range(min(len(actions), effort.length))]
    cost, tries = environment.cost(now), 0
    while tries < 20 * effort.evaluations:
        tries += 1
        changed = list(now)
        place = generator.randrange(len(changed))
        match generator.choice(("replace", "swap", "insert", "remove")):
            case "replace":
                changed[place] = generator.choice(actions)
            case "swap":
                other = generator.randrange(len(changed))
                changed[place], changed[other] = changed[other], changed[place]
            case "insert" if len(changed) < effort.length:
                changed.insert(place, generator.choice(actions))
            case "remove" if len(changed) > 1:
                del changed[place]
        new = environment.cost(changed)
        heat = start * (end / start) ** min(1.0, environment.evaluations / effort.evaluations)
        if new <= cost or generator.random() < math.exp(-(new / cost - 1) / heat):
            now, cost = changed, new


@dataclass
class _Visited:
    """A node of the search tree: how often it was passed, and what came of it."""

    visits: int = 0
    reward: float = 0.0
    children: dict[str, _Visited] = field(default_factory=dict)


def mcts(
    environment: Environment, generator: random.Random, *, exploration: float = 0.5, rollout: int = 4
) -> None:
    """Monte Carlo tree search over sequences of actions (UCT, Kocsis and Szepesvari 2006): down the tree by the mean
    reward and how seldom a child was tried, one new action, up to `rollout` random ones; the reward is the share of the
    cost that was saved."""
    root, before = _Visited(), environment.cost(())
    actions, length = environment.actions, environment.effort.length
    for _ in range(20 * environment.effort.evaluations):
        path, node = [root], root
        sequence: list[str] = []
        while len(sequence) < length:
            untried = [action for action in actions if action not in node.children]
            if untried:
                action = generator.choice(untried)
                node.children[action] = _Visited()
            else:
                log, children = math.log(node.visits), node.children

                def bound(a: str, log: float = log, children: dict[str, _Visited] = children) -> float:
                    child = children[a]
                    return child.reward / child.visits + exploration * math.sqrt(log / child.visits)

                action = max(actions, key=bound)
            node = node.children[action]
            sequence.append(action)
            path.append(node)
            if untried:
                break
        drawn = [generator.choice(actions) for _ in range(min(rollout, length - len(sequence)))]
        reward = 1 - environment.cost([*sequence, *drawn]) / before if before else 0.0
        for passed in path:
            passed.visits += 1
            passed.reward += reward


STRATEGIES: dict[str, Strategy] = {
    "joint": joint, "destructive": destructive, "greedy": greedy, "beam": beam, "annealing": annealing, "mcts": mcts,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one strategy found with one seed: the cost of its cheapest form and the bound under all forms in the same
    e-graph, kernel launches, the e-nodes of that e-graph, what was spent, the actions that led there, and how it got
    there."""

    strategy: str
    seed: int
    cost: float
    bound: float
    kernels: int
    e_nodes: int
    evaluations: int
    seconds: float
    sequence: Actions
    curve: tuple[Point, ...]


@dataclass(frozen=True, repr=False)
class StrategyTable:
    """Strategies side by side on one model; costs in `unit`."""

    model: str
    cost_model: str
    unit: str
    actions: Actions
    effort: Effort
    outcomes: tuple[Outcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def to_pandas(self) -> Any:
        """One row per strategy and seed; `EqsatError` where pandas is not installed."""
        rows = [asdict(outcome) | {"sequence": " > ".join(outcome.sequence)} for outcome in self.outcomes]
        return frame([{k: v for k, v in row.items() if k != "curve"} for row in rows])

    def curves(self) -> Any:
        """Quality against budget: one row for every improvement; `EqsatError` where pandas is not installed."""
        return frame(
            [{"strategy": o.strategy, "seed": o.seed, **asdict(p)} for o in self.outcomes for p in o.curve]
        )

    def plot(self) -> Drawing:
        """The best cost so far against evaluations, one line for every strategy and seed.

        Raises:
            EqsatError: matplotlib is not installed.
        """
        figure = new_drawing(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        names = list(dict.fromkeys(o.strategy for o in self.outcomes))
        for outcome in self.outcomes:
            points = [*outcome.curve, Point(outcome.evaluations, outcome.seconds, outcome.cost)]
            first = outcome.seed == min(o.seed for o in self.outcomes if o.strategy == outcome.strategy)
            axes.step([p.evaluations for p in points], [p.cost for p in points], where="post", marker=".",
                      color=f"C{names.index(outcome.strategy)}", label=outcome.strategy if first else None)  # fmt: skip
        axes.set_xlabel("e-graphs saturated and priced")
        axes.set_ylabel(f"cheapest form so far ({self.unit})")
        axes.legend()
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table("strategy", "seed", title=f"{self.model} for {self.cost_model}", title_justify="left")
        for column in (self.unit, "bound", "kernels", "e-nodes", "evaluations", "seconds"):
            table.add_column(column, justify="right")
        for o in sorted(self.outcomes, key=lambda o: (o.cost, o.strategy, o.seed)):
            table.add_row(o.strategy, str(o.seed), f"{o.cost:,.2f}", f"{o.bound:,.2f}", str(o.kernels),
                          f"{o.e_nodes:,}", str(o.evaluations), f"{o.seconds:.1f}")  # fmt: skip
        return table

    def __repr__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self)


def compare_strategies(
    model: Model,
    example_inputs: Any = None,
    *,
    strategies: Sequence[str] | dict[str, Strategy | Schedule] | None = None,
    families: Iterable[str] | None = None,
    effort: Effort | None = None,
    seeds: Iterable[int] = (0,),
    cost: str | CostModel = "auto",
    budget: Budget | None = None,
    **limits: Any,
) -> StrategyTable:
    """Run strategies on a model, each with every seed and the same budget.

    Args:
        model, example_inputs, cost: as for `optimize`.
        strategies: names of built-in ones (all when missing), or functions and schedules by name.
        families: those that are actions: all that match when missing, but the target's own, which always run.
        effort: what each may spend.
        budget, limits: of each saturation and extraction, as for `optimize`.

    Raises:
        UnknownNameError: no such strategy, family or cost model.
        InputError: there is nothing to choose from.
    """
    chosen = _strategies(strategies)
    cost_model, effort = find_cost(cost), effort or Effort()
    bounds = Limits(**{"extractor": "auto", "time_limit": 1.0, "budget": budget or Budget(), **limits})
    args, kwargs = example_arguments(model, example_inputs)
    lowered = lower(capture(model, args, kwargs))
    actions = _actions(lowered, families, cost_model, bounds)
    outcomes = [
        _outcome(name, strategy, seed, Environment(lowered, actions, cost_model, effort, bounds))
        for name, strategy in chosen.items() for seed in seeds
    ]  # fmt: skip
    return StrategyTable(
        type(model).__name__, cost_model.name, cost_model.unit, actions, effort, tuple(outcomes)
    )


def _strategies(wanted: Sequence[str] | dict[str, Strategy | Schedule] | None) -> dict[str, Strategy]:
    if isinstance(wanted, dict):
        return {
            name: partial(joint, schedule=s) if isinstance(s, Schedule) else s for name, s in wanted.items()
        }
    names = list(STRATEGIES) if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in STRATEGIES:
            raise UnknownNameError("strategy", name, STRATEGIES)
    return {name: STRATEGIES[name] for name in names}


def _actions(
    lowered: Lowered, families: Iterable[str] | None, cost_model: CostModel, limits: Limits
) -> Actions:
    known = dict.fromkeys(r.family for r in registered_rules() if r.family not in TARGET)
    wanted = tuple(known) if families is None else tuple(families)
    for name in wanted:
        if name not in known:
            raise UnknownNameError("family", name, known)
    saturation = search(lowered, find_rules(wanted), cost_model, limits).saturation
    matched = {r.family for r in saturation.rules if saturation.matches[r.name]}
    actions = tuple(name for name in wanted if name in matched)
    if not actions:
        raise InputError("families: none of them matches anything in this model")
    return actions


def _outcome(name: str, strategy: Strategy, seed: int, environment: Environment) -> Outcome:
    with suppress(Spent):
        strategy(environment, random.Random(seed))
    found = environment.best
    if found is None:
        raise InputError(f"strategy {name!r} asked for nothing")
    return Outcome(
        strategy=name, seed=seed, cost=found.solution.cost, bound=found.solution.bound, kernels=len(found.launches),
        e_nodes=len(found.space.nodes), evaluations=environment.evaluations,
        seconds=time.perf_counter() - environment.start, sequence=environment.sequence, curve=tuple(environment.curve),
    )  # fmt: skip
