"""What a rule says to the e-graph, as typed values: terms, facts that must hold, and actions that follow.

`egraph` writes them as text, `derivation` and `report.reasons` read them. Sorts of e-classes are `T` (tensors), `A`
(the anchor of a kernel), `Ep` (the steps after it), `Q` (INT8 codes) and `L` (lists of tensors).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from eqsat_deploy.language.expressions import Call, Guard, Variable
from eqsat_deploy.language.operator import Operator
from eqsat_deploy.language.shapes import encode

# -- terms -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constructor:
    """What makes e-nodes besides the operators of the language."""

    name: str
    sorts: tuple[str, ...]
    sort: str

    def __call__(self, *args: Any) -> Pattern:
        """The e-node with these arguments."""
        return Pattern(self, args)


@dataclass(frozen=True, eq=False)
class Pattern:
    """An operator or constructor applied to variables, patterns and expressions."""

    head: Operator | Constructor
    args: tuple[Any, ...] = ()

    @property
    def constructor(self) -> str:
        """The name of its e-nodes."""
        return self.head.constructor if isinstance(self.head, Operator) else self.head.name


NODE = Constructor("Node", ("i64",), "T")
"""The handle of a row of the model."""
NIL, SNOC = Constructor("Nil", (), "L"), Constructor("Snoc", ("L", "T"), "L")
RUN = Constructor("Run", ("A", "Ep"), "T")
NO_STEPS = Constructor("EpNone", (), "Ep")
UNARY_STEP = Constructor("EpUnary", ("String", "Ep"), "Ep")
BINARY_STEP = Constructor("EpBinary", ("String", "i64", "T", "Ep"), "Ep")
INTEGER_STEP = Constructor("EpQuant", ("String", "i64", "Q", "Ep"), "Ep")
QUANT = Constructor("Quant", ("T",), "Q")
QUANT_RUN = Constructor("QRun", ("A", "Ep"), "Q")
CONSTRUCTORS = (
    NODE, NIL, SNOC, RUN, NO_STEPS, UNARY_STEP, BINARY_STEP, INTEGER_STEP, QUANT, QUANT_RUN,
)  # fmt: skip


def anchor(operator: Operator) -> Constructor:
    """A kernel of `operator` before it applies any steps."""
    return Constructor(f"A{operator.constructor}", tuple(s for _, s in operator.parameters), "A")


def integer_anchor(operator: Operator) -> Constructor:
    """A kernel of `operator` on INT8: on every operand of a pointwise operator, on the data of any other."""
    first = first_operand(operator)
    sorts = ["Q" if i == first or (s == "T" and operator.integer == "pointwise") else s
             for i, (_, s) in enumerate(operator.parameters)]  # fmt: skip
    return Constructor(f"I{operator.constructor}", tuple(sorts), "A")


def on_codes(operator: Operator) -> Constructor:
    """`operator` on INT8 codes instead of the tensors they stand for; a list is of tensors whose codes are meant."""
    sorts = tuple("Q" if s == "T" else s for _, s in operator.parameters)
    return Constructor(f"Q{operator.constructor}", sorts, "Q")


def root(position: int) -> Variable:
    """The left side of a rule's pair. Like all that a rule does not name itself, it is called as no argument can be."""
    return Variable("T", f"e-{position}")


def arguments(operator: Operator) -> tuple[Variable, ...]:
    """Variables for all arguments of an operator."""
    return tuple(Variable(sort, f"a{i}") for i, (_, sort) in enumerate(operator.parameters))


def first_operand(operator: Operator) -> int:
    """Position of the operand that an integer kernel reads as INT8."""
    return next(i for i, (_, s) in enumerate(operator.parameters) if s == "T")


# -- facts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relation:
    """A table of the e-graph. `words` says what a row means."""

    name: str
    sorts: tuple[str, ...]
    words: str


CONSTANT = Relation("const", ("T",), "{} is constant")
RUNTIME = Relation("dynamic", ("T",), "{} depends on the model's inputs")
NONNEGATIVE = Relation("nonnegative", ("T",), "{} has no negative elements")
SIBLINGS = Relation("siblings", ("T", "T"), "{} and {} are siblings")
INTEGER_KERNEL = Relation("integer-kernel", ("T", "A", "Ep"), "{} is computed on INT8 by {} and {}")
QUANTIZED_STEPS = Relation("quantized-steps", ("Ep", "Ep"), "{} on INT8 is {}")
INTEGER_STEPS = Relation("integer-steps", ("Ep", "Ep"), "{} on nothing but INT8 is {}")
RELATIONS = (CONSTANT, RUNTIME, NONNEGATIVE, SIBLINGS, INTEGER_KERNEL, QUANTIZED_STEPS, INTEGER_STEPS)


@dataclass(frozen=True, eq=False)
class Row(Guard):
    """Guard: a row of a table. As an action, it is put there."""

    relation: Relation
    terms: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Match:
    """The e-class of `root` has an e-node of this form."""

    root: Variable
    form: Pattern


@dataclass(frozen=True, eq=False)
class ShapeOf:
    """The shape of `tensor` is known; `variable` is it."""

    tensor: Variable

    @property
    def variable(self) -> Variable:
        """The encoded shape."""
        return Variable("VI", f"s-{self.tensor.name}")


@dataclass(frozen=True, eq=False)
class Size:
    """The axis in `slot` of `tensor`, whose `ShapeOf` is a fact, is `value` long; slot 0 is the rank."""

    value: Any
    tensor: Variable
    slot: int


@dataclass(frozen=True, eq=False)
class Define:
    """`variable` is a value that the rule computes; where it cannot be computed, the rule does not match."""

    variable: Variable
    value: Any


Fact = Match | ShapeOf | Size | Define | Guard


def shape(x: Any) -> Any:
    """The encoded shape of a tensor, or of a term of a pattern."""
    return Call("VI", "shape", (x,)) if is_term(x) else encode(tuple(x.shape))


def steps(ep: Any) -> Call:
    """How many steps a kernel takes after its anchor."""
    return Call("i64", "steps", (ep,))


def joins(ep: Any) -> Call:
    """How many other tensors they read."""
    return Call("i64", "joins", (ep,))


def is_term(x: Any) -> bool:
    """Whether `x` is part of a pattern, and no tensor."""
    return isinstance(x, Pattern | Variable)


# -- actions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Union:
    """The e-class of `root` also has the e-node `form`, or is that of a variable."""

    root: Variable
    form: Any


@dataclass(frozen=True, eq=False)
class Fired:
    """The rule is reported to have acted on the e-class of `root`."""

    root: Variable


@dataclass(frozen=True, eq=False)
class Set:
    """A function of the e-graph has this value."""

    call: Call
    value: Any


Action = Union | Fired | Set | Row


@dataclass(frozen=True, eq=False)
class Clause:
    """Where all facts hold, in this order, the actions are taken. Without facts they are, once."""

    name: str
    facts: tuple[Fact, ...]
    actions: tuple[Action, ...]

    @property
    def roots(self) -> tuple[Variable, ...]:
        """What it makes equal to something, or finds a kernel for."""
        found = {a.root.name: a.root for a in self.actions if isinstance(a, Union)}
        found |= {a.terms[0].name: a.terms[0] for a in self.actions
                  if isinstance(a, Row) and a.relation is INTEGER_KERNEL}  # fmt: skip
        return tuple(found.values())

    @property
    def equates(self) -> bool:
        """Whether it is about terms of the language alone, which it makes equal."""
        forms = [f.form for f in self.facts if isinstance(f, Match)] + [
            a.form for a in self.actions if isinstance(a, Union)
        ]
        joined = any(isinstance(a, Union) for a in self.actions)
        return joined and all(isinstance(f, Variable) or _is_plain(f) for f in forms)

    @property
    def bound(self) -> tuple[Variable, ...]:
        """The variables of its patterns and of what it makes, each once."""
        named = [(f.root, f.form) for f in self.facts if isinstance(f, Match)]
        named += [(a.root, a.form) for a in self.actions if isinstance(a, Union)]
        return tuple({v.name: v for v in variables(tuple(named))}.values())

    @property
    def heads(self) -> frozenset[Operator]:
        """Operators at the top of what it replaces."""
        roots = {root.name for root in self.roots}
        matches = [f for f in self.facts if isinstance(f, Match) and f.root.name in roots]
        return frozenset(m.form.head for m in matches if isinstance(m.form.head, Operator))


def _is_plain(form: Pattern) -> bool:
    return isinstance(form.head, Operator) and all(
        map(_is_plain, (a for a in form.args if isinstance(a, Pattern)))
    )


# -- walks -------------------------------------------------------------------------------------------------


def structure(value: Any) -> Any:
    """Equal, and hashed alike, for what is written alike: expressions themselves compare to guards."""
    if isinstance(value, tuple):
        return tuple(map(structure, value))
    kind = value.__class__
    if (names := _parts(kind)) is not None:
        return (kind, *(structure(getattr(value, name)) for name in names))
    return (kind, value)


def variables(value: Any) -> Iterator[Variable]:
    """Every variable in a fact, an action, a term or an expression, once for every place it has."""
    if isinstance(value, Variable):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from variables(item)
    elif (names := _parts(value.__class__)) is not None:
        for name in names:
            yield from variables(getattr(value, name))


@cache
def _parts(kind: type) -> tuple[str, ...] | None:
    """The fields of what facts are made of; None for what is whole."""
    if not is_dataclass(kind) or issubclass(kind, Operator):
        return None
    return tuple(field.name for field in fields(kind))
