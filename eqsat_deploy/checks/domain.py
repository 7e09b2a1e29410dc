"""Whether a rule acts on its own left side inside its domain, and nowhere beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from eqsat_deploy.checks.agreement import check_values
from eqsat_deploy.checks.samples import REFUSED, Sample, Tree, UnsoundRule, guarded, some
from eqsat_deploy.errors import EqsatError
from eqsat_deploy.language import BATCH, encode, input_, parameter
from eqsat_deploy.language.normalization import REDUCTIONS
from eqsat_deploy.language.pointwise import BINARY, UNARY
from eqsat_deploy.language.shapes import MAX_RANK
from eqsat_deploy.lower import Lowered
from eqsat_deploy.lower import Row as LoweredRow
from eqsat_deploy.rules.domains import Extent
from eqsat_deploy.rules.facts import CONSTANT, NONNEGATIVE, RUNTIME
from eqsat_deploy.rules.rule import Rule
from eqsat_deploy.saturate import saturate

FUNCTIONS = (
    tuple(REDUCTIONS),
    tuple(f for f in BINARY if f != "pow"),
    ("exp", "neg", "relu", "sigmoid", "sin"),
)
"""Functions of one kind: a pattern that takes one by its name takes the others as well, unless a guard refuses them."""


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


def check_domain(rule: Rule, seed: int, batch: int, count: int = 2) -> int:
    """The rule fires inside its domain and not beside it. Returns how many cases beside it there were.

    Beside a sample but still in the domain, both sides must agree as well, with `batch` for the batch: what the
    pattern admits, the check covers, also where the declared samples do not reach.

    Raises:
        UnsoundRule: it fires outside, does not inside, or its sides differ beside a sample.
    """
    held = frozenset(guarded(rule, CONSTANT))
    inside = [Case(sample, held, True) for sample in some(rule, seed, BATCH, count)]
    sample = inside[0].sample
    outside = [Case(beside, held, False) for within, beside in _neighbours(sample) if not within]
    outside += [
        Case(sample, changed, False, f", where {relation.words.format(name)} does not hold")
        for relation, change in ((CONSTANT, held.__sub__), (RUNTIME, held.__or__))
        for name in sorted(guarded(rule, relation))
        for changed in [frozenset(change({name}))]
    ]
    outside += [
        Case(sample, held, False, f", where {name} has negative elements", negative=name)
        for name in sorted(guarded(rule, NONNEGATIVE))
    ]
    _expect(replace(rule, both=False), [*inside, *outside])
    if rule.both:
        _expect(rule, [replace(case, reverse=True) for case in inside])
    generator = torch.Generator().manual_seed(seed)
    for sample in some(rule, seed, batch, count):
        for within, beside in _neighbours(sample):
            if within:
                check_values(beside, generator)
    return len(outside)


def _expect(rule: Rule, cases: list[Case]) -> None:
    joins = len(cases[0].sample.pairs) > 1  # what joins several results would join those of different cases
    outcomes = [_fired(rule, [case])[0] for case in cases] if joins else _fired(rule, cases)
    for case, acted in zip(cases, outcomes, strict=True):
        if acted != case.expected:
            what = "fires outside its domain" if acted else "does not fire"
            raise UnsoundRule(f"rule {rule.name!r} {what}: at {case.sample}{case.why}")


def _fired(rule: Rule, cases: list[Case]) -> list[bool]:
    """Whether the rule acts on the classes of each case, all of them loaded into one e-graph."""
    lowered = Lowered(cast(Any, None))
    signs = guarded(rule, NONNEGATIVE)
    seen: dict[Any, int] = {}

    def add(tree: Tree, held: frozenset[str], signed: frozenset[str]) -> int:
        leaf = isinstance(tree.head, str)
        known = (held, signed) if leaf else (held & tree.variables(), signed & tree.variables())
        key = (tree.key(), *(tree.head in k if leaf else k for k in known))
        if key not in seen:
            if isinstance(tree.head, str):
                row = LoweredRow(parameter if tree.head in held else input_, (len(lowered.rows),))
            else:
                operands, attributes = tree.head.split(tree.args)
                rows = tuple(add(o, held, signed) for o in operands)
                row = LoweredRow(tree.head, tree.head.join(rows, attributes))
            seen[key] = len(lowered.rows)
            if leaf and tree.head in signed:
                lowered.nonnegative.add(len(lowered.rows))
            lowered.rows.append(row)
            lowered.metas.append(tree.meta)
        return seen[key]

    roots = [
        [add(pair[case.reverse], case.held, frozenset(signs - {case.negative})) for pair in case.sample.pairs]
        for case in cases
    ]
    try:
        # torch takes shapes that an operator of the language does not: its results are not to be believed
        frozen = saturate(lowered, [rule], shapes=False).frozen
    except EqsatError as error:
        raise UnsoundRule(f"rule {rule.name!r} on its own left sides: {error}") from error
    handles = {args[0]: out for args, out in frozen.rows("Node")}
    acted = {value for (_, value), _ in frozen.rows("fired")}
    return [all(handles[root] in acted for root in each) for each in roots]


# -- beside a sample ---------------------------------------------------------------------------------------


def _neighbours(sample: Sample) -> Iterator[tuple[bool, Sample]]:
    """(inside, sample) for shapes and functions beside a sample: whether they are in the rule's domain."""
    rule = sample.rule
    for others in _renamed(sample):
        other = Sample(rule, sample.shapes, others)
        yield other.allowed, other
    attributes = {k: v for k, v in sample.others.items() if k in rule.attributes}
    for shapes in _perturbed(sample):
        found = _bind(rule, shapes, attributes)
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


def _perturbed(sample: Sample) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes beside those of the sample: an axis more, an axis less, or an axis of another length."""
    for name, shape in sample.shapes.items():
        longest = (1,) * (MAX_RANK - len(shape)) + shape
        beside = [longest, (1, *shape), (2, *shape), shape[1:]] if shape else [(1,), (2,)]
        beside += [
            (*shape[:axis], other, *shape[axis + 1 :])
            for axis, size in enumerate(shape)
            for other in (1, size + 1)
            if other != size < BATCH
        ]
        yield from (
            sample.shapes | {name: other} for other in beside if len(other) <= MAX_RANK and other != shape
        )


def _renamed(sample: Sample) -> Iterator[dict[str, Any]]:
    """Attributes beside those of the sample: another function of the same kind. A pattern takes any that no guard
    refuses, whatever the declared samples are."""
    for name, attribute in sample.rule.attributes.items():
        if attribute.sort != "String":
            continue
        value = sample.others[name].partition("(")[0]
        kinds = [
            names for names in FUNCTIONS if value in names or (names is FUNCTIONS[-1] and value in UNARY)
        ]
        yield from (sample.others | {name: other} for other in (kinds[0] if kinds else ()) if other != value)


def _bind(
    rule: Rule, shapes: Mapping[str, tuple[int, ...]], attributes: Mapping[str, Any]
) -> dict[str, int] | None:
    """Dimensions under which the shapes fit the rule's patterns, or None: read from the declaration, not from what
    it compiles to."""
    found: dict[str, int] = {}
    lengths: list[tuple[Extent, int]] = []
    for name, domain in rule.tensors.items():
        if not domain.matched:
            continue
        extents = domain.extents or ()
        if not domain.prefix and len(shapes[name]) != len(extents):
            return None
        slots = encode(shapes[name])[1:]
        ahead, sizes = slots[: len(slots) - len(extents)], slots[len(slots) - len(extents) :]
        if domain.prefix == "1..." and any(size != 1 for size in ahead):
            return None
        lengths += zip(extents, sizes, strict=True)
    for extent, size in lengths:
        if extent.name is not None and found.setdefault(extent.name, size) != size:
            return None
    for extent, size in lengths:
        if extent.multiple is not None and extent.multiple[1] not in found:
            if size % extent.multiple[0]:
                return None
            found[extent.multiple[1]] = size // extent.multiple[0]
    for extent, size in lengths:
        scope = {**attributes, **found}
        if any(name not in scope for name in extent.names) or extent.value(scope) != size:
            return None
    return found
