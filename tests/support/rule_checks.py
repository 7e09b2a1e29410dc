"""What is derived from a rule's declaration: samples of its domain, values and shapes of both sides, and whether an
e-graph that holds its left side matches it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from random import Random
from typing import Any, cast

import torch
from torch import Tensor

from eqsat_deploy.errors import EqsatError
from eqsat_deploy.language import BATCH, Operator, encode, input_, parameter
from eqsat_deploy.language.normalization import REDUCTIONS
from eqsat_deploy.language.operator import interpreted_by
from eqsat_deploy.language.pointwise import BINARY, UNARY
from eqsat_deploy.lower import Lowered, Row
from eqsat_deploy.rules import Guard, Rule
from eqsat_deploy.saturate import saturate

BATCHES = (2, 3)
TOLERANCE = {"exact": 1e-12, "real": 1e-9}
POSITIVE = re.compile(r"variance|^var$")
INDEX = re.compile(r"^index")
BOOLEAN = re.compile(r"^(removed|kept)$")
PRIME = 8191
RING = frozenset({"add", "sub", "mul"})
REFUSED = (RuntimeError, IndexError, ValueError, ZeroDivisionError, TypeError, KeyError, AssertionError)


class Unsound(AssertionError):
    """A check caught a rule."""


@dataclass(frozen=True, eq=False)
class Tree:
    """An operator applied to trees and attributes, or a variable; its shape is computed when it is asked for."""

    head: Operator | str
    args: tuple[Any, ...] = ()
    given: tuple[int, ...] = ()

    @cached_property
    def meta(self) -> Tensor:
        if isinstance(self.head, str):
            return torch.empty(self.given, dtype=_dtype(self.head), device="meta")
        operands, attributes = self.head.split(self.args)
        value = self.head.body(*self.head.join(tuple(o.meta for o in operands), attributes))
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.meta.shape)

    def key(self) -> Any:
        if isinstance(self.head, str):
            return (self.head, self.given)
        return (self.head.name, *(a.key() if isinstance(a, Tree) else a for a in self.args))

    def operators(self) -> Iterator[tuple[Operator, tuple[Any, ...]]]:
        if isinstance(self.head, Operator):
            operands, attributes = self.head.split(self.args)
            yield self.head, attributes
            for operand in operands:
                yield from operand.operators()


def _dtype(variable: str) -> torch.dtype:
    if BOOLEAN.match(variable):
        return torch.bool
    return torch.int64 if INDEX.match(variable) else torch.float64


class _Plant:
    def apply(self, operator: Operator, args: tuple[Any, ...]) -> Tree:
        return Tree(operator, args)


@dataclass
class Sample:
    """One point of a rule's domain: shapes by tensor argument, dimensions and attributes by name."""

    rule: Rule
    shapes: dict[str, tuple[int, ...]]
    others: dict[str, Any]
    pairs: list[tuple[Tree, Tree]] = field(init=False)
    guards: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        leaves = {name: Tree(name, given=shape) for name, shape in self.shapes.items()}
        with interpreted_by(_Plant()):
            self.pairs, self.guards = self.rule(**self.others, **leaves)

    @property
    def allowed(self) -> bool:
        return all(bool(g) for g in self.guards)

    def well_formed(self) -> bool:
        """Whether the operators of the left side accept the shapes."""
        try:
            return all(left.shape is not None for left, _ in self.pairs)
        except REFUSED:
            return False


def draw(rule: Rule, random: Random, batch: int, attempts: int = 300) -> Iterator[Sample]:
    """Samples whose guards hold and whose left side the operators accept."""
    for _ in range(attempts):
        try:
            values = rule.draw(random, batch)
            shapes = {k: v for k, v in values.items() if k in rule.tensors}
            sample = Sample(rule, shapes, {k: v for k, v in values.items() if k not in shapes})
            accepted = sample.allowed and sample.well_formed()
        except REFUSED:
            continue
        if accepted:
            yield sample


def some(rule: Rule, seed: int, batch: int, count: int) -> list[Sample]:
    """`count` samples; a rule whose domain is empty is a failure."""
    found = list(itertools.islice(draw(rule, Random(seed), batch), count))
    if not found:
        raise Unsound(
            f"rule {rule.name!r}: no draw of its domain at batch {batch} passes its guards and operators"
        )
    return found


# -- values ------------------------------------------------------------------------------------------------


def evaluate(tree: Tree, values: dict[str, Tensor], modulus: int | None = None) -> Tensor:
    if isinstance(tree.head, str):
        return values[tree.head]
    operands, attributes = tree.head.split(tree.args)
    operands = tuple(evaluate(o, values, modulus) for o in operands)
    value = tree.head.body(*tree.head.join(operands, attributes))
    value = value.double() if value.is_floating_point() else value
    return value if modulus is None else torch.remainder(value, modulus)


def tensors(sample: Sample, generator: torch.Generator, *, integers: bool = False) -> dict[str, Tensor]:
    values = {}
    nonnegative = _guarded(sample.rule, "nonnegative")
    for name, shape in sample.shapes.items():
        if INDEX.match(name):
            values[name] = torch.randint(0, 2, shape, generator=generator)
        elif BOOLEAN.match(name):
            values[name] = _some(name == "kept", shape, generator)
        elif integers:
            values[name] = torch.randint(0, PRIME, shape, generator=generator).double()
        elif POSITIVE.search(name) or name in nonnegative:
            values[name] = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
        else:
            values[name] = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values


def _some(kept: bool, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Booleans by which no row is masked as a whole: there is no softmax of nothing."""
    removed = torch.rand(shape, generator=generator) < 0.4
    removed[..., :1] = False
    return removed ^ kept


def check_values(sample: Sample, generator: torch.Generator) -> None:
    """Both sides agree on random tensors: values, shapes, and shapes on meta tensors."""
    rule, values = sample.rule, tensors(sample, generator)
    for left, right in sample.pairs:
        try:
            a, b = (evaluate(side, values).double() for side in (left, right))
            metas = left.shape, right.shape
        except REFUSED as error:
            raise Unsound(f"rule {rule.name!r} at {sample.shapes}, {sample.others}: {error}") from error
        if not a.shape == b.shape == metas[0] == metas[1]:
            raise Unsound(f"rule {rule.name!r} at {sample.shapes}, {sample.others}: {tuple(a.shape)} is not "
                          f"{tuple(b.shape)} (on meta tensors {metas})")  # fmt: skip
        limit = TOLERANCE[rule.kind] * float(a.abs().max()) if a.numel() else 0.0
        difference = float((a - b).abs().max()) if a.numel() else 0.0
        if not difference <= limit:
            raise Unsound(
                f"rule {rule.name!r} at {sample.shapes}, {sample.others}: sides differ by {difference:.3g}"
            )


def is_polynomial(sample: Sample) -> bool:
    """Whether both sides are made of linear operators, sums and products, so that they mean the same in any ring."""
    return all(
        _in_ring(operator, attributes)
        for pair in sample.pairs
        for side in pair
        for operator, attributes in side.operators()
    )


def _in_ring(operator: Operator, attributes: tuple[Any, ...]) -> bool:
    match operator.name:
        case "binary":
            return attributes[0] in RING
        case "unary":
            return attributes[0] == "neg"
        case "reduce":
            return attributes[0] == "sum"
        case "pad" | "scalar":
            return float(attributes[-1]).is_integer()
        case "zeros" | "identity_matrix":
            return True
    return operator.linear


def check_field(sample: Sample, generator: torch.Generator) -> None:
    """Both sides agree exactly over the integers modulo a prime, small enough for float64 to hold every sum."""
    values = tensors(sample, generator, integers=True)
    for left, right in sample.pairs:
        try:
            a, b = evaluate(left, values, PRIME), evaluate(right, values, PRIME)
        except REFUSED as error:
            raise Unsound(f"rule {sample.rule.name!r} at {sample.shapes}: {error}") from error
        if a.shape != b.shape or not torch.equal(a, b):
            raise Unsound(f"rule {sample.rule.name!r} at {sample.shapes}: sides differ modulo {PRIME}")


# -- guards ------------------------------------------------------------------------------------------------


def bind(rule: Rule, shapes: dict[str, tuple[int, ...]], attributes: dict[str, Any]) -> dict[str, int] | None:
    """Dimensions under which the shapes fit the rule's patterns, or None: read from the declaration, not from what
    it compiles to."""
    found: dict[str, Any] = {}
    products: list[tuple[str, int]] = []
    for name, spec in rule.tensors.items():
        tokens = spec.split()
        prefix = tokens.pop(0) if tokens and tokens[0] in ("...", "1...", "~") else ""
        if prefix == "~" or not spec.strip():
            continue
        shape = shapes[name]
        if prefix == "" and len(shape) != len(tokens):
            return None
        slots = encode(shape)[1:]
        ahead, sizes = slots[: len(slots) - len(tokens)], slots[len(slots) - len(tokens) :]
        if prefix == "1..." and any(size != 1 for size in ahead):
            return None
        products += zip(tokens, sizes, strict=True)
    for token, size in products:
        if token.isidentifier() and found.setdefault(token, size) != size:
            return None
    for token, size in products:
        match token.split("*"):
            case [factor, name] if factor.isdigit() and name not in found:
                if size % int(factor):
                    return None
                found[name] = size // int(factor)
    for token, size in products:
        try:
            if eval(token, {}, attributes | found) != size:
                return None
        except NameError:
            return None
    if any(found.get(k, v) != v for k, v in attributes.items() if k in rule.dimensions):
        return None
    return found


def perturbed(sample: Sample) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes beside those of the sample: an axis more, an axis less, or an axis of another length."""
    for name, shape in sample.shapes.items():
        beside = (
            [(1,) * (6 - len(shape)) + shape, (1, *shape), (2, *shape), shape[1:]] if shape else [(1,), (2,)]
        )
        beside += [
            (*shape[:axis], other, *shape[axis + 1 :])
            for axis, size in enumerate(shape)
            for other in (1, size + 1)
            if other != size < BATCH
        ]
        yield from (sample.shapes | {name: other} for other in beside if len(other) <= 6 and other != shape)


OTHERS = (tuple(REDUCTIONS), tuple(f for f in BINARY if f != "pow"), ("exp", "neg", "relu", "sigmoid", "sin"))


def renamed(sample: Sample) -> Iterator[dict[str, Any]]:
    """Attributes beside those of the sample: another function of the same kind. A pattern takes any that no guard
    refuses, whatever the declared samples are."""
    for name, attribute in sample.rule.attributes.items():
        if attribute.sort != "String":
            continue
        value = sample.others[name].partition("(")[0]
        kinds = [names for names in OTHERS if value in names or (names is OTHERS[-1] and value in UNARY)]
        yield from (sample.others | {name: other} for other in (kinds[0] if kinds else ()) if other != value)


def neighbours(sample: Sample) -> Iterator[tuple[bool, Sample]]:
    """(inside, sample) for shapes and functions beside a sample: whether they are in the rule's domain."""
    rule = sample.rule
    for others in renamed(sample):
        other = Sample(rule, sample.shapes, others)
        yield other.allowed, other
    attributes = {k: v for k, v in sample.others.items() if k in rule.attributes}
    for shapes in perturbed(sample):
        found = bind(rule, shapes, attributes)
        try:
            old = Sample(rule, shapes, sample.others)
            if found is None:
                if old.well_formed():
                    yield False, old
                continue
            other = Sample(rule, shapes, sample.others | found)
            if not other.well_formed():
                continue
            yield other.allowed, other
            same = [a[0].key() for a in old.pairs] == [a[0].key() for a in other.pairs]
            if not same and old.well_formed():
                yield False, old
        except REFUSED:
            continue


def _guarded(rule: Rule, relation: str) -> set[str]:
    """Tensor arguments that a guard asks to be constant (`const`) or not (`dynamic`), or `nonnegative`."""
    texts = [
        g.text for g in rule._patterns()[1] if isinstance(g, Guard) and g.text.startswith(f"({relation} ")
    ]
    return {n for n in rule.tensors for t in texts if re.search(rf"(?<![\w-]){n}(?![\w-])", t)}


def constants(rule: Rule) -> frozenset[str]:
    return frozenset(_guarded(rule, "const"))


@dataclass
class Case:
    """Trees to put into an e-graph, which of their variables are constant, and whether the rule must act there.

    `negative` is a variable that has negative elements though the rule asks for none.
    """

    sample: Sample
    held: frozenset[str]
    expected: bool
    why: str = ""
    reverse: bool = False
    negative: str = ""


def fired(rule: Rule, cases: list[Case]) -> list[bool]:
    """Whether the rule acts on the classes of each case, all of them loaded into one e-graph."""
    lowered = Lowered(cast(Any, None))
    seen: dict[Any, int] = {}

    def add(tree: Tree, held: frozenset[str], signed: frozenset[str]) -> int:
        leaf = isinstance(tree.head, str)
        known = (held, signed) if leaf else (held & _variables(tree), signed & _variables(tree))
        key = (tree.key(), *(tree.head in k if leaf else k for k in known))
        if key not in seen:
            if isinstance(tree.head, str):
                row = Row(parameter if tree.head in held else input_, (len(lowered.rows),))
            else:
                operands, attributes = tree.head.split(tree.args)
                row = Row(
                    tree.head, tree.head.join(tuple(add(o, held, signed) for o in operands), attributes)
                )
            seen[key] = len(lowered.rows)
            if leaf and tree.head in signed:
                lowered.nonnegative.add(len(lowered.rows))
            lowered.rows.append(row)
            lowered.metas.append(tree.meta)
        return seen[key]

    signs = _guarded(rule, "nonnegative")
    roots = [
        [add(pair[case.reverse], case.held, frozenset(signs - {case.negative})) for pair in case.sample.pairs]
        for case in cases
    ]
    try:
        saturation = saturate(lowered, [rule])
    except EqsatError as error:
        raise Unsound(f"rule {rule.name!r} on its own left sides: {error}") from error
    handles = {args[0]: out for args, out in saturation.frozen.rows("Node")}
    acted = {value for (_, value), _ in saturation.frozen.rows("fired")}
    return [all(handles[root] in acted for root in each) for each in roots]


def _variables(tree: Tree) -> frozenset[str]:
    if isinstance(tree.head, str):
        return frozenset({tree.head})
    return frozenset().union(*map(_variables, tree.head.split(tree.args)[0]))


def check_guards(rule: Rule, seed: int, count: int = 2) -> int:
    """The rule fires inside its domain and not beside it. Returns how many cases beside it there were.

    Beside the sample but still in the domain, both sides must agree as well: what the pattern admits, the test
    covers, also where the declared samples do not reach.
    """
    held = constants(rule)
    inside = [Case(sample, held, True) for sample in some(rule, seed, BATCH, count)]
    sample = inside[0].sample
    outside = [Case(beside, held, False) for within, beside in neighbours(sample) if not within]
    for relation, change in (("const", held.__sub__), ("dynamic", held.__or__)):
        outside += [
            Case(sample, frozenset(change({name})), False, f", where ({relation} {name}) does not hold")
            for name in sorted(_guarded(rule, relation))
        ]
    outside += [
        Case(sample, held, False, f", where {name} has negative elements", negative=name)
        for name in sorted(_guarded(rule, "nonnegative"))
    ]
    _expect(replace(rule, both=False), [*inside, *outside])
    if rule.both:
        _expect(rule, [replace(case, reverse=True) for case in inside])
    generator = torch.Generator().manual_seed(seed)
    for sample in some(rule, seed, BATCHES[0], count):
        for within, beside in neighbours(sample):
            if within:
                check_values(beside, generator)
    return len(outside)


def _expect(rule: Rule, cases: list[Case]) -> None:
    joins = len(cases[0].sample.pairs) > 1  # what joins several results would join those of different cases
    outcomes = [fired(rule, [case])[0] for case in cases] if joins else fired(rule, cases)
    for case, acted in zip(cases, outcomes, strict=True):
        if acted != case.expected:
            raise Unsound(
                f"rule {rule.name!r} {'fires outside its domain' if acted else 'does not fire'}: at "
                f"{case.sample.shapes}, {case.sample.others}{case.why}"
            )
