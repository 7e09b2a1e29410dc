"""What the order of rewriting costs: strategies on one model, each within the same budget, in one table."""

from __future__ import annotations

import csv
import io
import itertools
import math
import random
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from eqsat_deploy.capture import capture
from eqsat_deploy.errors import InputError, UnknownNameError
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import Lowered, lower
from eqsat_deploy.report.plotting import new_drawing
from eqsat_deploy.report.render import to_html, to_text
from eqsat_deploy.research.environment import Actions, Effort, Environment, Ordering, Point, Spent
from eqsat_deploy.research.strategies import Strategy, draws, find_strategies
from eqsat_deploy.research.tables import frame
from eqsat_deploy.schedule import Schedule
from eqsat_deploy.search import QUICK, Limits, Model, search
from eqsat_deploy.selection import TARGET, find_rules, registered_rules
from eqsat_deploy.targets import find_cost
from eqsat_extraction.arguments import checked, instance, whole
from eqsat_extraction.kernel import CostModel

if TYPE_CHECKING:
    from eqsat_deploy.report.figure import Drawing

SHOWN = 12
SAME = 1e-4  # relative; prices of equal kernels differ by less, to break ties (see `price.TIE`)


@dataclass(frozen=True)
class Outcome:
    """What one strategy found with one seed, with the family or rule `without` left out: the cost of its cheapest form
    and the bound under all forms in the same e-graph, kernel launches, the e-nodes of that e-graph, what was spent, the
    actions that led there, how it got there, and the orders of families that it followed to the end, cheapest first."""

    strategy: str
    seed: int
    without: str | None
    cost: float
    bound: float
    kernels: int
    e_nodes: int
    evaluations: int
    seconds: float
    sequence: Actions
    curve: tuple[Point, ...]
    orders: tuple[Ordering, ...] = ()

    def row(self) -> dict[str, Any]:
        """What fits into one row of a table."""
        long = {"sequence": " > ".join(self.sequence), "orders": len(self.orders)}
        return {f.name: long.get(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "curve"}


@dataclass(frozen=True, repr=False)
class OrderingTable:
    """Strategies side by side on one model; costs in `unit`.

    `families` are the actions; `inactive` match nothing in this model, and are left out. `untouched` is the model with
    the target's kernels alone. `possible` is how many orders of the families there are.
    """

    model: str
    cost_model: str
    unit: str
    batch: int
    effort: Effort
    families: Actions
    inactive: Actions
    untouched: Ordering
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...] = ()

    @property
    def possible(self) -> int:
        """How many orders of the families there are."""
        return math.factorial(len(self.families))

    @property
    def joint(self) -> Outcome:
        """All families in one e-graph; `InputError` where the table has no such strategy."""
        return self.cheapest("joint")

    def cheapest(self, strategy: str, without: str | None = None) -> Outcome:
        """The cheapest outcome of a strategy.

        Raises:
            InputError: the table has none.
        """
        found = [o for o in self.outcomes if (o.strategy, o.without) == (strategy, without)]
        if not found:
            raise InputError(f"strategy {strategy!r} is not in this table; name it in strategies=")
        return min(found, key=lambda o: (o.cost, o.seed))

    @property
    def orders(self) -> tuple[Ordering, ...]:
        """Every order of all families that some strategy followed, cheapest first, each once."""
        known = {r.order: r for o in self.outcomes if o.without is None for r in o.orders}
        return tuple(sorted(known.values(), key=lambda row: (row.cost, row.order)))

    @property
    def best(self) -> Ordering:
        """The cheapest order."""
        return self._some_orders()[0]

    @property
    def worst(self) -> Ordering:
        """The dearest order."""
        return self._some_orders()[-1]

    def _some_orders(self) -> tuple[Ordering, ...]:
        if not self.orders:
            raise InputError(
                "no order was followed to its end: add 'destructive' to strategies=, or raise effort="
            )
        return self.orders

    @property
    def order_matters(self) -> bool:
        """Whether some order ends in a dearer form than another."""
        return self.worst.cost > self.best.cost * (1 + SAME)

    @property
    def out_of_reach(self) -> bool:
        """Whether every order that was tried ends in a dearer form than joint saturation."""
        return self.best.cost > self.joint.cost * (1 + SAME)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        more = {"order_matters": self.order_matters, "possible": self.possible} if self.orders else {}
        return asdict(self) | more

    def to_pandas(self) -> Any:
        """One row per strategy, seed and what was left out; `EqsatError` where pandas is not installed."""
        return frame([outcome.row() for outcome in self.outcomes])

    def curves(self) -> Any:
        """Quality against budget: one row for every improvement; `EqsatError` where pandas is not installed."""
        return frame(
            [
                {"strategy": o.strategy, "seed": o.seed, "without": o.without, **asdict(p)}
                for o in self.outcomes
                for p in o.curve
            ]
        )

    def to_csv(self) -> str:
        """One line per outcome, then one per order that was followed, cheapest first, as strategy `order`."""
        rows = [{"model": self.model, "unit": self.unit, **outcome.row()} for outcome in self.outcomes]
        common = {"model": self.model, "unit": self.unit, "strategy": "order"}
        rows += [
            {**common, "cost": o.cost, "kernels": o.kernels, "sequence": " > ".join(o.order)}
            for o in (self.untouched, *self.orders)
        ]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()

    def groups(self) -> list[tuple[Ordering, ...]]:
        """Orders that end at the same cost, cheapest first."""
        groups: list[list[Ordering]] = []
        for row in self.orders:
            if groups and row.cost <= groups[-1][0].cost * (1 + SAME):
                groups[-1].append(row)
            else:
                groups.append([row])
        return [tuple(group) for group in groups]

    def plot(self) -> Drawing:
        """Left what every strategy found, a point per seed, beside the model untouched; right the best cost so far
        against evaluations.

        Raises:
            EqsatError: matplotlib is not installed.
        """
        figure = new_drawing(figsize=(11, 4), layout="constrained")
        found, curves = figure.subplots(1, 2)
        labels = list(dict.fromkeys(map(_label, self.outcomes)))
        for outcome in self.outcomes:
            row = labels.index(_label(outcome))
            found.plot([outcome.cost], [row], "o", color=f"C{row}")
            points = [*outcome.curve, Point(outcome.evaluations, outcome.seconds, outcome.cost)]
            first = outcome is next(o for o in self.outcomes if _label(o) == labels[row])
            curves.step([p.evaluations for p in points], [p.cost for p in points], where="post", marker=".",
                        color=f"C{row}", label=labels[row] if first else None)  # fmt: skip
        found.axvline(self.untouched.cost, color="0.6", linestyle=":", label="untouched")
        found.set_yticks(range(len(labels)), labels)
        found.invert_yaxis()
        found.set_xlabel(f"cheapest form ({self.unit})")
        found.legend()
        curves.set_xlabel("e-graphs saturated and priced")
        curves.set_ylabel(f"cheapest form so far ({self.unit})")
        curves.legend()
        for axes in (found, curves):
            axes.spines[["top", "right"]].set_visible(False)
        return figure

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("strategy", "seed", title=f"Order of rewriting: {self.model} for {self.cost_model}",
                      title_justify="left")  # fmt: skip
        least = min(o.cost for o in self.outcomes)
        for column in (self.unit, "above best", "bound", "kernels", "e-nodes", "evaluations", "seconds"):
            table.add_column(column, justify="right")
        for o in sorted(self.outcomes, key=lambda o: (o.cost, o.strategy, o.seed)):
            table.add_row(_label(o), str(o.seed), f"{o.cost:,.2f}", _above(o.cost, least), f"{o.bound:,.2f}",
                          str(o.kernels), f"{o.e_nodes:,}", str(o.evaluations), f"{o.seconds:.1f}")  # fmt: skip
        table.add_row("untouched", "", f"{self.untouched.cost:,.2f}", _above(self.untouched.cost, least), "",
                      str(self.untouched.kernels), style="dim")  # fmt: skip
        lines = list(self.notes)
        if self.inactive:
            lines.append(f"without a match here: {', '.join(self.inactive)}")
        orders = self._rich_orders(least) if self.orders else []
        return Group(table, *orders, *map(Text, lines))

    def _rich_orders(self, least: float) -> list[Any]:
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title="One family after another, each keeping only the cheapest form", title_justify="left"
        )
        for column in (self.unit, "kernels", "above best", "orders"):
            table.add_column(column, justify="right")
        table.add_column("what these orders have in common")
        groups = self.groups()
        for group in groups[:SHOWN]:
            common = _precedences(group) if len(groups) > 1 else []
            label = ", ".join(f"{a} before {b}" for a, b in common) or f"such as {' > '.join(group[0].order)}"
            table.add_row(f"{group[0].cost:,.2f}", str(group[0].kernels), _above(group[0].cost, least), str(len(group)),
                          label)  # fmt: skip
        lines = ["the order matters" if self.order_matters else "every order ends at the same cost"]
        if least < self.best.cost * (1 - SAME):
            lines.append("no order reaches the best of all strategies")
        sampled = ", a sample" if len(self.orders) < self.possible else ""
        lines.append(f"{len(self.orders)} of {self.possible} orders tried{sampled}")
        if len(groups) > SHOWN:
            lines.append(
                f"TRUNCATED: {len(groups) - SHOWN} dearer costs are not shown (they are in `orders`)"
            )
        return [table, *map(Text, lines)]

    def __repr__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self)


def _label(outcome: Outcome) -> str:
    return outcome.strategy + (f" without {outcome.without}" if outcome.without else "")


def _above(cost: float, least: float) -> str:
    return f"{cost / least - 1:+.1%}" if least else "-"


@checked
def compare_orderings(
    model: Model,
    example_inputs: Any = None,
    *,
    strategies: str | Sequence[str] | dict[str, Strategy | Schedule] = ("joint", "destructive"),
    families: Iterable[str] | None = None,
    leave_out: Iterable[str] = (),
    effort: Effort | None = None,
    seeds: Iterable[int] = (0,),
    cost: str | CostModel = "auto",
    dynamic_shapes: Any = None,
    **limits: Any,
) -> OrderingTable:
    """Run strategies on a model, each with every seed and the same effort: one table of what they find.

    Args:
        model, example_inputs, cost, dynamic_shapes: as for `optimize`.
        strategies: names of built-in ones (`STRATEGIES`), or functions, schedules and `Sketches` by name. The usual two
            are joint saturation and families applied destructively, one after another, in every order.
        families: what a strategy chooses from, families or rules by name; when missing, all families that match, but
            the target's own, which always run.
        leave_out: ablations: every strategy again without this family or rule, for each of them.
        effort: what each may spend.
        seeds: of strategies that draw; the others run once.
        limits: of each saturation and extraction: `batch`, `budget`, `extractor`, `time_limit`, `work_limit`, as for
            `optimize`.

    Raises:
        UnknownNameError: no such strategy, family, rule or cost model, in a schedule neither.
        InputError: there is nothing to choose from.
    """
    chosen, cost_model, effort = find_strategies(strategies), find_cost(cost), effort or Effort()
    drawn = [whole("seeds", seed, least=0) for seed in seeds]
    if not drawn:
        raise InputError("seeds: at least one is expected")
    names = [leave_out] if isinstance(leave_out, str) else leave_out
    left_out = [None, *(_known(instance("leave_out", name, str)) for name in names)]
    bounds = Limits(**limits).within(QUICK)
    args, kwargs = example_arguments(model, example_inputs)
    lowered = lower(capture(model, args, kwargs, dynamic_shapes=dynamic_shapes))
    actions, inactive, notes = find_actions(lowered, families, cost_model, bounds)
    outcomes = []
    for without, (name, strategy) in itertools.product(left_out, chosen.items()):
        for seed in drawn if draws(strategy) else drawn[:1]:
            others = tuple(a for a in actions if a != without)
            environment = Environment(lowered, others, cost_model, effort, bounds, without)
            outcomes.append(_outcome(name, strategy, seed, environment))
    start = search(lowered, find_rules([]), cost_model, bounds)
    return OrderingTable(
        model=type(model).__name__, cost_model=cost_model.name, unit=cost_model.unit, batch=bounds.batch, effort=effort,
        families=actions, inactive=inactive, outcomes=tuple(outcomes), notes=tuple(notes),
        untouched=Ordering((), start.solution.cost, len(start.launches)),
    )  # fmt: skip


def _known(name: str) -> str:
    names = {n for r in registered_rules() for n in (r.name, r.family)}
    if name not in names:
        raise UnknownNameError("family or rule", name, names)
    return name


def find_actions(
    lowered: Lowered, families: Iterable[str] | None, cost_model: CostModel, limits: Limits
) -> tuple[Actions, Actions, list[str]]:
    """Those of the families (all when missing, but the target's) that match anything, the others, and what to note.

    Raises:
        UnknownNameError: no such family or rule.
        InputError: none of them matches.
    """
    rules = [r for r in registered_rules() if r.family not in TARGET]
    known = dict.fromkeys(r.family for r in rules)
    given = known if families is None else [families] if isinstance(families, str) else families
    wanted = tuple(dict.fromkeys(instance("families", name, str) for name in given))
    for name in wanted:
        if name not in known and name not in {r.name for r in rules}:
            raise UnknownNameError("family or rule", name, [*known, *(r.name for r in rules)])
    found = search(lowered, find_rules(wanted), cost_model, limits)
    saturation, solution = found.saturation, found.solution
    matched = {n for r in saturation.rules if saturation.matches[r.name] for n in (r.name, r.family)}
    actions = tuple(name for name in wanted if name in matched)
    if not actions:
        raise InputError("families: none of them matches anything in this model")
    notes = [] if saturation.stopped == "saturated" else [f"joint saturation stopped: {saturation.stopped}"]
    if not solution.proved:
        notes.append(f"joint extraction is certified to be at most {solution.gap:.2%} above its optimum")
    return actions, tuple(name for name in wanted if name not in matched), notes


def _precedences(rows: Sequence[Ordering]) -> list[tuple[str, str]]:
    """Pairs of families that come in this order in every row, without those that follow from others."""
    order = rows[0].order
    held = {pair for pair in itertools.combinations(order, 2)
            if all(r.order.index(pair[0]) < r.order.index(pair[1]) for r in rows)}  # fmt: skip
    implied = {(a, c) for a, b in held for other, c in held if other == b}
    return [pair for pair in itertools.combinations(order, 2) if pair in held - implied]


def _outcome(name: str, strategy: Strategy, seed: int, environment: Environment) -> Outcome:
    with suppress(Spent):
        strategy(environment, random.Random(seed))
    found = environment.best
    if found is None:
        raise InputError(f"strategy {name!r} asked for nothing")
    orders = sorted(environment.orders.values(), key=lambda row: (row.cost, row.order))
    return Outcome(
        strategy=name, seed=seed, without=environment.without, cost=found.solution.cost, bound=found.solution.bound,
        kernels=len(found.launches), e_nodes=len(found.space.nodes), evaluations=environment.evaluations,
        seconds=time.perf_counter() - environment.start, sequence=environment.sequence,
        curve=tuple(environment.curve), orders=tuple(orders),
    )  # fmt: skip
