"""Why a form was chosen: its kernels, and for one tensor what else could have stood there, at what price."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from eqsat_deploy.kernels import CONSTANT
from eqsat_deploy.report.render import to_html, to_text
from eqsat_deploy.search import QUICK, Limits, Model, Search, explore
from eqsat_deploy.words import class_name, shape_words
from eqsat_extraction import InfeasibleError
from eqsat_extraction.arguments import checked, whole

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from eqsat_deploy.report.figure import Drawing


@dataclass(frozen=True)
class Launch:
    """One kernel of the chosen form. `node` is the model's node whose tensor it writes, empty for one that only a
    rule made; `cost` is its own price."""

    node: str
    kernel: str
    cost: float


@dataclass(frozen=True)
class Form:
    """One way to provide a tensor.

    `kernel` names the launch and what it applies before it writes, `reads` the tensors it reads. `cost` is the
    kernel's own price; `total` that of the cheapest form of the whole model that was found with it, infinite where
    there is none: the reason for or against it, since what a kernel saves may be spent elsewhere. `codes` marks a form
    that writes INT8 codes instead of the tensor itself.
    """

    index: int
    kernel: str
    reads: tuple[str, ...]
    cost: float
    total: float
    chosen: bool
    codes: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}({', '.join(self.reads)})"


@dataclass(frozen=True)
class ClassView:
    """One e-class: every form in it computes the same tensor.

    `forms` come cheapest whole model first; `left_out` says how many more there are. `rules` acted on the class.
    """

    number: int
    name: str
    module: str
    shape: tuple[int, ...] | None
    rules: tuple[str, ...]
    forms: tuple[Form, ...]
    left_out: int

    @property
    def chosen(self) -> Form | None:
        """The form that won; None where no kernel of the chosen form writes this tensor."""
        return next((f for f in self.forms if f.chosen), None)


@dataclass(frozen=True, repr=False)
class Inside:
    """The e-classes that a name stands for."""

    search: Search
    classes: tuple[ClassView, ...]

    def draw(self, *, depth: int = 3, max_forms: int = 6, max_classes: int = 14) -> Drawing:
        """The e-class, and those it is computed from, as a matplotlib figure; what is left out is said in it.

        Args:
            depth: how many e-classes back to go.
            max_forms: how many forms of each to show, the chosen ones first.
            max_classes: how many e-classes to show.

        Raises:
            EqsatError: matplotlib is not installed.
        """
        from eqsat_deploy.report.drawing import draw

        numbers = [view.number for view in self.classes]
        return draw(self.search, numbers, depth=depth, max_forms=max_forms, max_classes=max_classes)

    def to_dict(self) -> dict[str, Any]:
        """The e-classes as JSON values; an impossible form has no total."""
        classes = [asdict(view) for view in self.classes]
        for form in (form for view in classes for form in view["forms"]):
            form["cost"] = form["cost"] if isfinite(form["cost"]) else None
            form["total"] = form["total"] if isfinite(form["total"]) else None
        return {"unit": self.search.priced.model.unit, "classes": classes}

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*(_table(view, self.search.priced.model.unit) for view in self.classes))

    def __repr__(self) -> str:
        return to_text(self, 130)

    def _repr_html_(self) -> str:
        return to_html(self, 130)


@dataclass(frozen=True, repr=False)
class Explanation:
    """A choice, and the search it was made in."""

    search: Search

    def launches(self) -> Iterator[Launch]:
        """Kernels of the chosen form, in order of execution."""
        for index in self.search.launches:
            number, node = self.search.space.choices[index]
            origin = self.search.space.classes[number].origin
            yield Launch(origin[0] if origin else "", str(node), float(self.search.priced.costs[index]))

    def to_dict(self) -> dict[str, Any]:
        """Kernels and cost as JSON values."""
        solution, unit = self.search.solution, self.search.priced.model.unit
        return {"cost": solution.cost, "bound": solution.bound, "unit": unit,
                "kernels": [asdict(launch) for launch in self.launches()]}  # fmt: skip

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        table = Table("tensor of", "kernel", title="chosen kernels, in order", title_justify="left")
        table.add_column(self.search.priced.model.unit, justify="right")
        for launch in self.launches():
            table.add_row(launch.node, launch.kernel, f"{launch.cost:,.2f}")
        yield table

    def __repr__(self) -> str:
        return f"<Explanation of {self.search!r}>"


def explain(model: Model, example_inputs: Any = None, **options: Any) -> Explanation:
    """The choice that `optimize` makes, with the search it makes it in; arguments and errors as for `explore`."""
    return Explanation(explore(model, example_inputs, **options))


@checked
def inside(
    model: Model | Search | Explanation,
    node: str,
    *,
    limit: int = 12,
    extractor: str = "auto",
    time_limit: float | None = None,
    **options: Any,
) -> Inside:
    """The e-class of a named node: which forms share it, what each costs, which one won.

    Args:
        model: a model, or what `explore` or `explain` returned (`options` are then not needed).
        node: a node, a module's path or a pattern; see `Search.classes_of`.
        limit: how many forms of a class to price in a whole model; the others are counted in `left_out`.
        extractor, time_limit: for those whole models, each; `search.QUICK` units of work where no seconds are given.
        options: arguments of `explore`.

    Raises:
        UnknownNameError: no such node.
    """
    whole("limit", limit, least=0)
    limits = Limits(extractor=extractor, time_limit=time_limit).within(QUICK)
    found = model.search if isinstance(model, Explanation) else model
    found = found if isinstance(found, Search) else explore(found, **options)
    views = (_view(found, n, limit, limits) for n in found.classes_of(node))
    return Inside(found, tuple(views))


def _view(found: Search, number: int, limit: int, limits: Limits) -> ClassView:
    known = found.space.classes[number]
    forms = forms_of(found, number)
    forms.sort(key=lambda f: (not f.chosen, f.cost, f.index))
    chosen = {f.codes for f in forms if f.chosen}
    priced = [
        replace(f, total=found.solution.cost if f.chosen else _total(found, f, limits))
        for f in forms[: max(limit, len(chosen))]
    ]
    priced.sort(key=lambda f: (f.total, not f.chosen, f.cost, f.index))
    return ClassView(
        number=number,
        name=class_name(found, number),
        module=known.origin[1] if known.origin is not None else "",
        shape=known.shape,
        rules=found.rules_at(number),
        forms=tuple(priced),
        left_out=len(forms) - len(priced),
    )


def forms_of(found: Search, number: int) -> list[Form]:
    """Every way to provide an e-class or its INT8 codes, totals not yet known (infinite), in order of choices.

    A constant class is provided by its value; its forms are the terms that compute that value.
    """
    chosen = set(found.solution.nodes().tolist())
    twins = {number} | {i for i, c in enumerate(found.space.classes) if c.quantized_of == number}
    forms = []
    for index, (owner, node) in enumerate(found.space.choices):
        if owner in twins:
            reads = tuple(class_name(found, c) for c in node.children)
            cost, codes = float(found.priced.costs[index]), owner != number
            kernel = class_name(found, owner) if node.operator is CONSTANT else str(node)
            forms.append(Form(index, kernel, reads, cost, inf, index in chosen, codes))
    return forms


def _total(found: Search, form: Form, limits: Limits) -> float:
    """The cost of the cheapest form of the model in which `form` provides its class."""
    egraph, costs = found.priced.egraph, found.priced.costs.copy()
    owner = int(egraph.node_class[form.index])
    own = egraph.nodes_of(owner)
    costs[own[own != form.index]] = np.inf
    needed = replace(egraph, roots=np.append(egraph.roots, np.int32(owner)))
    try:
        return limits.extract(needed, costs).cost
    except InfeasibleError:
        return inf


def _table(view: ClassView, unit: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    title = f"{view.name} {shape_words(view.shape)}" + (f" of {view.module}" if view.module else "")
    table = Table(title=Text(title, style="bold"), title_justify="left", caption_justify="left")
    table.add_column("")
    table.add_column("form")
    table.add_column("writes")
    table.add_column(f"kernel, {unit}", justify="right")
    table.add_column(f"model, {unit}", justify="right")
    for form in view.forms:
        total = f"{form.total:,.2f}" if isfinite(form.total) else "impossible"
        cost = f"{form.cost:,.2f}" if isfinite(form.cost) else "no such kernel"
        mark, writes = "chosen" if form.chosen else "", "codes" if form.codes else "tensor"
        style = "bold green" if form.chosen else ""
        table.add_row(mark, Text(str(form)), writes, cost, total, style=style)
    notes = []
    if view.chosen is None:
        notes.append("none is chosen: a kernel of the chosen form computes this tensor on the way to another")
    if view.left_out:
        notes.append(f"TRUNCATED: {view.left_out} more forms are not shown (limit=)")
    if view.rules:
        notes.append(f"rules that acted here: {', '.join(view.rules)}")
    table.caption = "\n".join(notes) or None
    return table
