"""Before and after: kernels side by side, and what each family or rule is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from eqsat_deploy.errors import ExtractionError, InputError
from eqsat_deploy.report.plotting import new_drawing
from eqsat_deploy.report.render import to_html, to_text
from eqsat_deploy.search import Search, search
from eqsat_deploy.words import class_name, shape_words

if TYPE_CHECKING:
    from eqsat_deploy.report.figure import Drawing

SHOWN = 16


@dataclass(frozen=True)
class Kernel:
    """One launch of a form: the tensor it writes, its shape and module, what it computes from what, the precision it
    reads, and its predicted cost."""

    tensor: str
    shape: str
    module: str
    kernel: str
    reads: tuple[str, ...]
    precision: str
    cost: float


@dataclass(frozen=True, repr=False)
class Diff:
    """Launches of the plain form and of the chosen one in order of execution. A pair is the same launch in both, or one
    of either side alone."""

    pairs: tuple[tuple[Kernel | None, Kernel | None], ...]
    unit: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"unit": self.unit, "pairs": [[k and asdict(k) for k in pair] for pair in self.pairs]}

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table("plain form", "", "chosen form", "", title="before and after", title_justify="left")
        table.columns[1].justify = table.columns[3].justify = "right"
        for before, after in self.pairs:
            same = before is not None and after is not None
            style = "dim" if same else "green" if before is None else "red"
            table.add_row(*_cells(before), *_cells(after), style=style)
        sums = [sum(k.cost for k in side if k) for side in zip(*self.pairs, strict=True)] or [0.0, 0.0]
        table.caption = f"together {sums[0]:,.2f} {self.unit} before, {sums[1]:,.2f} after"
        return table

    def __repr__(self) -> str:
        return to_text(self, 150)

    def _repr_html_(self) -> str:
        return to_html(self, 150)


def kernels_of(found: Search) -> list[Kernel]:
    """The launches of the chosen form, in order of execution."""
    return list(_kernels(found))


def _kernels(found: Search) -> Iterator[Kernel]:
    space = found.space
    for index in found.launches:
        number, node = space.choices[index]
        known = space.classes[number]
        reads = tuple(class_name(found, c) for c in node.children)
        codes = node.integer or any(space.classes[o].quantized_of is not None for o in node.children)
        yield Kernel(
            class_name(found, number),
            shape_words(known.shape),
            known.origin[1] if known.origin else "",
            str(node),
            reads,
            "int8" if codes else found.priced.model.float_dtype,
            float(found.priced.costs[index]),
        )


def diff(before: Search, after: Search) -> Diff:
    """The launches of two forms of one model, the same ones beside each other."""
    left, right = kernels_of(before), kernels_of(after)
    keys = [[(k.tensor, k.kernel, k.reads) for k in side] for side in (left, right)]
    pairs: list[tuple[Kernel | None, Kernel | None]] = []
    for kind, a, b, c, d in SequenceMatcher(a=keys[0], b=keys[1], autojunk=False).get_opcodes():
        if kind == "equal":
            pairs += zip(left[a:b], right[c:d], strict=True)
        else:
            pairs += [(k, None) for k in left[a:b]] + [(None, k) for k in right[c:d]]
    return Diff(tuple(pairs), after.priced.model.unit)


def _cells(kernel: Kernel | None) -> tuple[str, str]:
    if kernel is None:
        return "", ""
    return f"{kernel.tensor} = {kernel.kernel}({', '.join(kernel.reads)})", f"{kernel.cost:,.2f}"


@dataclass(frozen=True)
class Worth:
    """The cost of the cheapest form without a family or rule, and how much dearer that is. Exact where both forms are
    proved cheapest; else it is at least `least` and at most `most`. Infinite where no form is left."""

    name: str
    cost: float
    worth: float
    least: float
    most: float

    @property
    def exact(self) -> bool:
        """Whether it is known exactly."""
        return self.least == self.most


@dataclass(frozen=True, repr=False)
class Contribution:
    """What each family or rule is worth, the most first. Two together are not worth the sum: one may do what the other
    would. `cost` is with all of them; `unmatched` are those that match nothing in this model."""

    by: str
    unit: str
    cost: float
    rows: tuple[Worth, ...]
    unmatched: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def plot(self) -> Drawing:
        """As a bar chart.

        Raises:
            EqsatError: matplotlib is not installed.
        """
        from eqsat_deploy.report.drawing import CHOSEN

        rows = [row for row in reversed(self.rows) if row.cost < float("inf")]
        figure = new_drawing(figsize=(7, 0.9 + 0.28 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh([r.name for r in rows], [r.worth for r in rows], color=CHOSEN)
        axes.bar_label(bars, [f"{row.worth:,.2f}" for row in rows], padding=3, fontsize=8)
        axes.margins(x=0.12)
        axes.set_xlabel(f"dearer without it ({self.unit}, of {self.cost:,.2f})")
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(f"without {self.by}", title="what each is worth, left out alone", title_justify="left")
        for column in (self.unit, "dearer by", ""):
            table.add_column(column, justify="right")
        for row in self.rows:
            share = f"{row.worth / self.cost:+.2%}" if self.cost else "-"
            worth = f"{row.worth:,.2f}" if row.exact else f"{row.least:,.2f} to {row.most:,.2f}"
            table.add_row(row.name, f"{row.cost:,.2f}", worth, share)
        lines = [f"with all: {self.cost:,.2f} {self.unit}"]
        if self.unmatched:
            first = ", ".join(self.unmatched[:SHOWN])
            more = f" and {len(self.unmatched) - SHOWN} more" if len(self.unmatched) > SHOWN else ""
            lines.append(f"without a match here: {first}{more}")
        return Group(table, *map(Text, lines))

    def __repr__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self)


def contribution(found: Search, by: str = "family") -> Contribution:
    """What every family of rules, or every rule, of a search is worth: the search again without it.

    Raises:
        InputError: `by` is neither `family` nor `rule`.
    """
    if by not in ("family", "rule"):
        raise InputError(f"by={by!r}: 'family' or 'rule' is expected")
    rules, matches = found.saturation.rules, found.saturation.matches

    def name(rule: Any) -> str:
        return str(rule.family if by == "family" else rule.name)

    matched = dict.fromkeys(name(r) for r in rules if matches[r.name])
    rows = []
    for left_out in matched:
        others = tuple(rule for rule in rules if name(rule) != left_out)
        try:
            without = search(
                found.lowered, replace(found.selection, rules=others), found.priced.model, found.limits
            )
        except ExtractionError:
            rows.append(Worth(left_out, *[float("inf")] * 4))
            continue
        cost, bound = without.solution.cost, without.solution.bound
        if without.solution.proved and found.solution.proved:
            worth = max(0.0, cost - found.solution.cost)
            rows.append(Worth(left_out, cost, worth, worth, worth))
        else:
            least = max(0.0, bound - found.solution.cost)
            most = max(least, cost - found.solution.bound)
            rows.append(Worth(left_out, cost, max(0.0, cost - found.solution.cost), least, most))
    rows.sort(key=lambda row: (-row.worth, row.name))
    unmatched = tuple(n for n in dict.fromkeys(map(name, rules)) if n not in matched)
    return Contribution(by, found.priced.model.unit, found.solution.cost, tuple(rows), unmatched)
