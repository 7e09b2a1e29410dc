"""Why a kernel computes what the model's own nodes do: the equalities between them, each by a rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from eqsat_deploy.choices import Member
from eqsat_deploy.derivation import Applied, Derivation, Join, flat
from eqsat_deploy.language import SLOTS, decode
from eqsat_deploy.provenance import computed, inside_of, why_unchosen
from eqsat_deploy.report.render import to_html, to_text
from eqsat_deploy.rules.rule import Rule
from eqsat_deploy.search import Search
from eqsat_deploy.soundness import check_space
from eqsat_deploy.words import class_name, shape_words

INT8 = (
    "it reads INT8 codes: an approximation of this form, tied to its tensor by a relation and chosen for its price; "
    "what the rounding costs is measured by sensitivity()"
)


@dataclass(frozen=True)
class Step:
    """One equality: `left` and `right` are the same tensor, called `tensor`, by `rule`, whose variables stand for what
    `binding` says. `members` are the e-nodes of both sides."""

    rule: str
    family: str
    kind: str
    tensor: str
    left: str
    right: str
    binding: dict[str, str]
    members: tuple[Member, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.left} = {self.right}   [{self.rule}]"


@dataclass(frozen=True, repr=False)
class Explained:
    """Why the tensor of a node is computed as it is.

    `kernels` are the chosen launches and views between it and tensors of the model's own, in order; `steps` prove that
    they compute the model's tensor, each following from those before it. Where the chosen form has no kernel for the
    tensor, `why` says so, and `kernels` are those of the kernel that computes it on the way to another.
    """

    search: Search = field(repr=False)
    node: str
    kernels: tuple[str, ...]
    steps: tuple[Step, ...]
    why: str = ""
    notes: tuple[str, ...] = ()

    @cached_property
    def errors(self) -> tuple[float, ...]:
        """The error of every step, max|a - b| / max|a| in float64: both its sides are evaluated, at two batch sizes, on
        random inputs, from the values of the tensors that they read."""
        found = self.search
        members = {member for step in self.steps for member in step.members}
        report = check_space(found.lowered, found.saturation, found.space, members=members)
        return tuple(
            max((report.errors.get(m, 0.0) for m in step.members), default=0.0) for step in self.steps
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with the errors of the steps."""
        steps = [asdict(step) | {"error": error} for step, error in zip(self.steps, self.errors, strict=True)]
        for step in steps:
            del step["members"]
        return {"node": self.node, "kernels": list(self.kernels), "steps": steps, "why": self.why,
                "notes": list(self.notes)}  # fmt: skip

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        lines = [Text(f"{self.node}: {self.why or 'computed by'}", style="bold")]
        lines += [Text(f"  {kernel}", style="green") for kernel in self.kernels]
        if not self.kernels:
            return Group(*lines)
        if not self.steps:
            lines.append(Text("  the model's own operators: no rule was needed"))
            return Group(*lines, *(Text(f"note: {note}") for note in self.notes))
        table = Table("", "tensor", "is", "which equals", "by the rule", "where", show_lines=True)
        for position, step in enumerate(self.steps, 1):
            where = ", ".join(f"{k} = {v}" for k, v in step.binding.items())
            table.add_row(*map(Text, (str(position), step.tensor, step.left, step.right, step.rule, where)))
        worst = max(self.errors)
        table.caption = (
            f"both sides of every step evaluated on random inputs: they differ by at most {worst:.1e}"
        )
        return Group(*lines, table, *(Text(f"note: {note}") for note in self.notes))

    def __repr__(self) -> str:
        return to_text(self, 150)

    def _repr_html_(self) -> str:
        return to_html(self, 150)


def explain_node(found: Search, name: str, derivation: Derivation | None = None) -> tuple[Explained, ...]:
    """Why every tensor that `name` stands for (see `Search.classes_of`) is computed as it is.

    Raises:
        UnknownNameError: no such node.
        EqsatError: saturation was stopped by its time limit and cannot be repeated.
    """
    numbers = found.classes_of(name)
    derivation = derivation or Derivation(found)
    return tuple(_explained(derivation, number) for number in numbers)


def _explained(derivation: Derivation, number: int) -> Explained:
    found, inside = derivation.found, inside_of(derivation.found)
    name, why = class_name(found, number), why_unchosen(found, number, inside)
    codes = [c for c, known in enumerate(found.space.classes) if known.quantized_of == number]
    top = next((int(i) for c in (number, *codes) if (i := found.solution.choice[c]) >= 0), inside.get(number))
    if top is None:
        return Explained(found, name, (), (), why)
    chosen = list(_below(found, top))
    choices = [found.space.choices[index] for index in reversed(chosen)]
    members = {member: None for choice in choices for member in computed(found.space, choice)}
    constants = {
        c
        for index in chosen
        for c in found.space.choices[index][1].children
        if found.space.classes[c].constant
    }
    members |= dict.fromkeys(_terms(found, constants))
    joins = derivation.reasons(_claims(derivation, list(members)))
    steps = tuple(_step(found, join) for join in joins)
    kernels = tuple(_words(found, index) for index in reversed(chosen))
    notes = [INT8] if any(found.space.choices[index][1].integer for index in chosen) else []
    return Explained(found, name, kernels, steps, why, tuple(notes))


def _below(found: Search, top: int) -> Iterator[int]:
    """A chosen choice, and those that make what it reads, back to tensors of the model's own; readers first."""
    waiting, seen = [top], set()
    while waiting:
        index = waiting.pop(0)
        if index in seen:
            continue
        seen.add(index)
        yield index
        for child in found.space.choices[index][1].children:
            known = found.space.classes[child]
            below = int(found.solution.choice[child])
            if below >= 0 and not known.constant and known.origin is None:
                waiting.append(below)


def _terms(found: Search, constants: set[int]) -> Iterator[Member]:
    """The e-nodes that compute these constants from parameters."""
    waiting, seen = list(constants), set()
    while waiting:
        number = waiting.pop()
        if number in found.space.terms and number not in seen:
            seen.add(number)
            node = found.space.terms[number]
            yield number, node
            waiting += node.operands


def _claims(derivation: Derivation, members: Sequence[Member]) -> Iterator[tuple[int, int]]:
    """Pairs of terms that must be equal for the e-nodes to compute the model's own tensors from each other."""
    rows = derivation.found.space.row_class
    stands = {number: derivation.term_of[row] for row, number in reversed(list(enumerate(rows)))}
    chosen = [(number, node, derivation.entries[number, node][0]) for number, node in members]
    for number, _, term in chosen:
        stands.setdefault(number, term)
    for number, node, term in chosen:
        yield term, stands[number]
        for operand, below in zip(node.operands, derivation.written[term].operands, strict=True):
            yield below, stands.get(operand, below)


def _step(found: Search, join: Join) -> Step:
    assert join.place is not None
    place, form = join.place, flat(join.place.clause)
    rule = found.saturation.rules[place.rule]
    root, made = form.unions[join.pair]
    operators = {one.result: one for one in (*form.left, *form.right)}
    used = [one for name in (root, made) for one in _tree(operators, name)]
    named = rule.parameters if isinstance(rule, Rule) else ()
    binding = {
        v.name: class_name(found, place.binding[v.name]) if v.sort == "T" else _value(place.binding[v.name])
        for v in place.clause.bound
        if v.name in named or v.name in getattr(rule, "tensors", ())
    }
    left, right = (_term_words(found, operators, place.binding, name) for name in (root, made))
    members = tuple((place.binding[one.result], one.under(place.binding)) for one in used)
    tensor = f"{class_name(found, place.binding[root])} {shape_words(found.space.classes[place.binding[root]].shape)}"
    return Step(rule.name, rule.family, rule.kind, tensor, left, right, binding, members)


def _tree(operators: dict[str, Applied], name: str) -> Iterator[Applied]:
    if name in operators:
        yield operators[name]
        for operand in operators[name].operands():
            yield from _tree(operators, operand)


def _term_words(found: Search, operators: dict[str, Applied], binding: Any, name: str) -> str:
    """A side of a rule, in the names of the tensors it reads."""
    if name not in operators:
        return class_name(found, binding[name])
    one = operators[name]
    node = one.under(binding)
    operands = [_term_words(found, operators, binding, o) for o in one.operands()]
    called = one.operator.called
    attributes = [] if called is not None else [_value(a) for a in node.attributes]
    return f"{node.name}({', '.join(operands + attributes)})"


def _value(value: Any) -> str:
    """An attribute for people: an encoded shape as the shape, a number without noise."""
    if isinstance(value, tuple) and len(value) == SLOTS and 0 < value[0] < SLOTS:
        return shape_words(decode(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(found: Search, index: int) -> str:
    number, node = found.space.choices[index]
    reads = ", ".join(class_name(found, c) for c in node.children)
    cost = found.priced.costs[index]
    price = f"{cost:,.2f} {found.priced.model.unit}" if node.is_launch else "a view, free"
    return f"{class_name(found, number)} = {node}({reads})  {price}"
