"""What the order of rewriting costs: rule families applied one after another, beside all of them together."""

from __future__ import annotations

import csv
import io
import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from eqsat_deploy.capture import capture
from eqsat_deploy.errors import UnknownNameError
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import Lowered, Term, lower
from eqsat_deploy.report.render import to_html, to_text
from eqsat_deploy.research.destructive import lowered_form
from eqsat_deploy.search import Limits, Model, Search, search
from eqsat_deploy.selection import TARGET, Selection, find_rules, registered_rules
from eqsat_deploy.targets import find_cost
from eqsat_extraction.arguments import checked, instance, whole
from eqsat_extraction.kernel import CostModel

ALL_UP_TO = 720
SHOWN = 12
SAME = 1e-4  # relative; prices of equal kernels differ by less, to break ties (see `price.TIE`)


@dataclass(frozen=True)
class Ordering:
    """Families in the order they were applied, and the form that was left: predicted cost and kernel launches."""

    order: tuple[str, ...]
    cost: float
    kernels: int


@dataclass(frozen=True, repr=False)
class OrderingTable:
    """Orders of destructive rewriting, cheapest first, beside joint saturation.

    `untouched` is the model with the target's kernels alone; `joint` has every family in one e-graph. `orders` are
    all there are of `families`, unless `possible` says there are more: then they are a sample. `inactive` are families
    that match nothing in this model, which therefore have no place in an order. Costs are in `unit`.
    """

    model: str
    cost_model: str
    unit: str
    batch: int
    seed: int
    families: tuple[str, ...]
    inactive: tuple[str, ...]
    possible: int
    untouched: Ordering
    joint: Ordering
    orders: tuple[Ordering, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def best(self) -> Ordering:
        """The cheapest order."""
        return self.orders[0]

    @property
    def worst(self) -> Ordering:
        """The dearest order."""
        return self.orders[-1]

    @property
    def order_matters(self) -> bool:
        """Whether some order ends in a dearer form than another."""
        return self.worst.cost > self.best.cost * (1 + SAME)

    @property
    def out_of_reach(self) -> bool:
        """Whether every order that was tried ends in a dearer form than joint saturation."""
        return self.best.cost > self.joint.cost * (1 + SAME)

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON values."""
        return asdict(self) | {"order_matters": self.order_matters, "out_of_reach": self.out_of_reach}

    def to_csv(self) -> str:
        """One line per row, joint saturation first: kind, order, cost, kernels."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(("kind", "order", f"cost ({self.unit})", "kernels"))
        for kind, row in (
            ("joint", self.joint),
            ("untouched", self.untouched),
            *(("order", o) for o in self.orders),
        ):
            writer.writerow((kind, " > ".join(row.order), row.cost, row.kernels))
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

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"Order of rewriting: {self.model} for {self.cost_model}", title_justify="left")
        for column in (self.unit, "kernels", "above joint", "orders"):
            table.add_column(column, justify="right")
        table.add_column("what these orders have in common")

        def add(row: Ordering, count: str, label: str, **style: Any) -> None:
            above = f"{row.cost / self.joint.cost - 1:+.1%}" if self.joint.cost else "-"
            table.add_row(f"{row.cost:,.2f}", str(row.kernels), above, count, label, **style)

        add(self.joint, "", f"all {len(self.joint.order)} families together, in one e-graph", style="bold")
        add(self.untouched, "", "no family: the model on the target's kernels", end_section=True)
        groups = self.groups()
        for group in groups[:SHOWN]:
            common = _precedences(group) if len(groups) > 1 else []
            label = ", ".join(f"{a} before {b}" for a, b in common)
            add(group[0], str(len(group)), label or f"such as {' > '.join(group[0].order)}")
        lines = [
            "the order matters" if self.order_matters else "every order ends at the same cost",
            *["no order reaches what all families reach together"] * self.out_of_reach,
            f"{len(self.orders)} of {self.possible} orders tried" + (
                f", a sample (seed {self.seed})" if len(self.orders) < self.possible else ""),
        ]  # fmt: skip
        if len(groups) > SHOWN:
            lines.append(
                f"TRUNCATED: {len(groups) - SHOWN} dearer costs are not shown (they are in `orders`)"
            )
        if self.inactive:
            lines.append(f"without a match here: {', '.join(self.inactive)}")
        return Group(table, *map(Text, (*lines, *self.notes)))

    def __repr__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self)


@checked
def compare_orderings(
    model: Model,
    example_inputs: Any = None,
    *,
    cost: str | CostModel = "auto",
    families: Iterable[str] | None = None,
    orders: Literal["all"] | int | None = None,
    seed: int = 0,
    dynamic_shapes: Any = None,
    **limits: Any,
) -> OrderingTable:
    """Apply rule families destructively, one after another, in every order, and compare with joint saturation.

    Each family is saturated alone on the current form, with the target's kernels so that there are prices; the
    cheapest form is extracted, and only that form goes on to the next family.

    Args:
        model, example_inputs, cost, dynamic_shapes: as for `optimize`.
        families: those to order; all but the target's own when missing. One that matches nothing is left out.
        orders: `all`, or how many to draw with `seed`; when missing, all if they are at most 720, else 720 drawn.
        limits: `batch`, `budget`, `extractor`, `time_limit`, `work_limit`, as for `optimize`.

    Raises:
        UnknownNameError: no such family or cost model.
        InputError: `orders` is neither `all` nor a positive number.
    """
    if orders not in (None, "all"):
        whole("orders", orders)
    chosen = _families(families)
    runs = _Runs(find_cost(cost), Limits(seed=seed, **limits))
    args, kwargs = example_arguments(model, example_inputs)
    lowered = lower(capture(model, args, kwargs, dynamic_shapes=dynamic_shapes))
    start = runs.start(lowered)
    matched, notes, joint = runs.joint(lowered, chosen)
    active = tuple(f for f in chosen if f in matched)
    possible = math.factorial(len(active))
    rows = [runs.follow(start, order) for order in _orders(active, possible, orders, seed)]
    rows.sort(key=lambda row: (row.cost, row.order))
    if rows[0].cost < joint.cost * (1 - SAME):
        notes.append(
            f"joint saturation is {joint.cost / rows[0].cost - 1:.2%} above the best order: its extraction is not "
            "proved optimal, or its saturation was stopped; raise time_limit= or budget="
        )
    return OrderingTable(
        model=type(model).__name__,
        cost_model=runs.cost_model.name,
        unit=runs.cost_model.unit,
        batch=runs.limits.batch,
        seed=seed,
        families=active,
        inactive=tuple(f for f in chosen if f not in matched),
        possible=possible,
        untouched=start.row,
        joint=joint,
        orders=tuple(rows),
        notes=tuple(notes),
    )


def _families(wanted: Iterable[str] | None) -> tuple[str, ...]:
    known = dict.fromkeys(r.family for r in registered_rules() if r.family not in TARGET)
    if wanted is None:
        return tuple(known)
    given = [wanted] if isinstance(wanted, str) else list(wanted)
    chosen = tuple(dict.fromkeys(instance("families", name, str) for name in given))
    for name in chosen:
        if name not in known:
            raise UnknownNameError("family", name, known)
    return chosen


def _orders(
    families: tuple[str, ...], possible: int, wanted: str | int | None, seed: int
) -> Iterable[tuple[str, ...]]:
    size = ALL_UP_TO if wanted is None else possible if wanted == "all" else int(wanted)
    if size >= possible:
        return itertools.permutations(families)
    draw = random.Random(seed)
    sample: dict[tuple[str, ...], None] = {}
    while len(sample) < size:
        sample[tuple(draw.sample(families, len(families)))] = None
    return sample


def _precedences(rows: Sequence[Ordering]) -> list[tuple[str, str]]:
    """Pairs of families that come in this order in every row, without those that follow from others."""
    order = rows[0].order
    held = {pair for pair in itertools.combinations(order, 2)
            if all(r.order.index(pair[0]) < r.order.index(pair[1]) for r in rows)}  # fmt: skip
    implied = {(a, c) for a, b in held for other, c in held if other == b}
    return [pair for pair in itertools.combinations(order, 2) if pair in held - implied]


@dataclass(frozen=True)
class _Form:
    """Where an order has got to."""

    lowered: Lowered
    row: Ordering


class _Runs:
    """Runs of families on forms, each distinct pair once: many orders pass through the same forms."""

    def __init__(self, cost_model: CostModel, limits: Limits) -> None:
        self.cost_model, self.limits = cost_model, limits
        self.known: dict[tuple[Any, str], _Form] = {}

    def start(self, lowered: Lowered) -> _Form:
        """The model as it is, priced by the target's kernels."""
        found = self._search(lowered, find_rules([]))
        return _Form(lowered, Ordering((), found.solution.cost, len(found.launches)))

    def joint(self, lowered: Lowered, families: tuple[str, ...]) -> tuple[set[str], list[str], Ordering]:
        """All families at once: which of them matched, what to note, and what they reach."""
        found = self._search(lowered, find_rules(families))
        saturation, solution = found.saturation, found.solution
        matched = {r.family for r in saturation.rules if saturation.matches[r.name]}
        notes = (
            [] if saturation.stopped == "saturated" else [f"joint saturation stopped: {saturation.stopped}"]
        )
        if not solution.proved:
            notes.append(f"joint extraction is certified to be at most {solution.gap:.2%} above its optimum")
        return matched, notes, Ordering(families, solution.cost, len(found.launches))

    def follow(self, form: _Form, order: tuple[str, ...]) -> Ordering:
        """Apply the families of `order`, forgetting after each what was not chosen."""
        for family in order:
            key = _signature(form.lowered), family
            if key not in self.known:
                found = self._search(form.lowered, find_rules(family))
                row = Ordering((), found.solution.cost, len(found.launches))
                self.known[key] = _Form(lowered_form(found), row)
            form = self.known[key]
        return Ordering(order, form.row.cost, form.row.kernels)

    def _search(self, lowered: Lowered, selection: Selection) -> Search:
        return search(lowered, selection, self.cost_model, self.limits)


def _signature(lowered: Lowered) -> tuple[Any, ...]:
    rows = tuple((row.operator.name, repr(row.args)) for row in lowered.rows)
    return rows, tuple(o.row if isinstance(o, Term) else None for o in lowered.outputs)
