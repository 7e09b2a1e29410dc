"""Inside an e-class: the forms that share it, what each costs, and which one won."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from eqsat_deploy.freeze import CONSTANT, Space
from eqsat_deploy.price import describe
from eqsat_deploy.rebuild import leading_parameter
from eqsat_deploy.report.render import to_html, to_text
from eqsat_deploy.research.exploration import Exploration, Model, explore
from eqsat_deploy.research.reasons import shape_words
from eqsat_extraction import InfeasibleError, extract

if TYPE_CHECKING:
    from eqsat_deploy.research.figure import Drawing


@dataclass(frozen=True)
class Form:
    """One way to provide a tensor.

    `kernel` names the launch and what it applies before it writes, `reads` the tensors it reads. `cost` is the
    kernel's own price; `total` that of the cheapest form of the whole model that was found with it, infinite where
    there is none. `codes` marks a form that writes INT8 codes instead of the tensor itself.
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

    exploration: Exploration
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
        from eqsat_deploy.research.drawing import draw

        numbers = [view.number for view in self.classes]
        return draw(self.exploration, numbers, depth=depth, max_forms=max_forms, max_classes=max_classes)

    def to_dict(self) -> dict[str, Any]:
        """The e-classes as JSON values; an impossible form has no total."""
        classes = [asdict(view) for view in self.classes]
        for form in (form for view in classes for form in view["forms"]):
            form["total"] = form["total"] if isfinite(form["total"]) else None
        priced, solution = self.exploration.priced, self.exploration.solution
        return {"unit": priced.model.unit, "cost": solution.cost, "classes": classes}

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*(_table(view, self.exploration.priced.model.unit) for view in self.classes))

    def __repr__(self) -> str:
        return to_text(self, 130)

    def _repr_html_(self) -> str:
        return to_html(self, 130)


def inside(
    model: Model | Exploration,
    node: str,
    *,
    limit: int = 12,
    extractor: str = "auto",
    time_limit: float | None = 1.0,
    **options: Any,
) -> Inside:
    """The e-class of a named node: which forms share it, what each costs, which one won.

    Args:
        model: a model, or what `explore` returned (`options` are then not needed).
        node: a node, a module's path or a pattern; see `Exploration.classes_of`.
        limit: how many forms of a class to price in a whole model; the others are counted in `left_out`.
        extractor, time_limit: for those whole models, each.
        options: arguments of `explore`.

    Raises:
        UnknownNameError: no such node.
    """
    exploration = model if isinstance(model, Exploration) else explore(model, **options)
    views = (_view(exploration, n, limit, extractor, time_limit) for n in exploration.classes_of(node))
    return Inside(exploration, tuple(views))


def class_name(space: Space, number: int) -> str:
    """What to call an e-class: an input or node of the exported graph, a number, a parameter, `weight*` for a constant
    that is computed from `weight`, else `e<number>`; `int8(...)` around it for its INT8 codes."""
    known = space.classes[number]
    if known.quantized_of is not None:
        return f"int8({class_name(space, known.quantized_of)})"
    term = space.terms.get(number) if known.constant else None
    if term is None:
        return known.origin[0] if known.origin is not None else f"e{number}"
    if term.kind == "scalar":
        return f"{term.attributes[0]:g}"
    parameter = leading_parameter(space, number)
    return "constant" if parameter is None else parameter if term.kind == "parameter" else f"{parameter}*"


def _view(
    exploration: Exploration, number: int, limit: int, extractor: str, time_limit: float | None
) -> ClassView:
    space, solution = exploration.space, exploration.solution
    known = space.classes[number]
    forms = forms_of(exploration, number)
    forms.sort(key=lambda f: (not f.chosen, f.cost, f.index))
    chosen = {f.codes for f in forms if f.chosen}
    priced = [
        replace(f, total=solution.cost if f.chosen else _total(exploration, f, extractor, time_limit))
        for f in forms[: max(limit, len(chosen))]
    ]
    priced.sort(key=lambda f: (f.total, not f.chosen, f.cost, f.index))
    rules = space.saturation.rules
    return ClassView(
        number=number,
        name=class_name(space, number),
        module=known.origin[1] if known.origin is not None else "",
        shape=known.shape,
        rules=tuple(rules[i].name for i in space.fired.get(number, ())),
        forms=tuple(priced),
        left_out=len(forms) - len(priced),
    )


def forms_of(exploration: Exploration, number: int) -> list[Form]:
    """Every way to provide an e-class or its INT8 codes, totals not yet known (infinite), in order of choices.

    A constant class is provided by its value; its forms are the terms that compute that value.
    """
    space, priced = exploration.space, exploration.priced
    chosen = set(exploration.solution.nodes().tolist())
    twins = {number} | {i for i, c in enumerate(space.classes) if c.quantized_of == number}
    found = []
    for index, (owner, node) in enumerate(space.choices):
        if owner in twins:
            reads = tuple(class_name(space, c) for c in node.children)
            cost, codes = float(priced.costs[index]), owner != number
            kernel = class_name(space, owner) if node.kind == CONSTANT else describe(node)
            found.append(Form(index, kernel, reads, cost, inf, index in chosen, codes))
    return found


def _total(exploration: Exploration, form: Form, extractor: str, time_limit: float | None) -> float:
    """The cost of the cheapest form of the model in which `form` provides its class."""
    egraph, costs = exploration.priced.egraph, exploration.priced.costs.copy()
    owner = int(egraph.node_class[form.index])
    own = egraph.nodes_of(owner)
    costs[own[own != form.index]] = np.inf
    needed = replace(egraph, roots=np.append(egraph.roots, np.int32(owner)))
    try:
        return extract(needed, costs, extractor=extractor, time_limit=time_limit).cost
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
