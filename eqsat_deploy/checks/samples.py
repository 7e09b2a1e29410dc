"""Samples of a rule's domain: both its sides as trees of operators, of drawn shapes, attributes and elements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from random import Random
from typing import Any

import torch

from eqsat_deploy.errors import RuleError
from eqsat_deploy.language.operator import Operator, interpreted_by
from eqsat_deploy.rules.facts import NONNEGATIVE, Relation, Row, variables
from eqsat_deploy.rules.rule import Rule

PRIME = 8191
"""Small enough for float64 to hold every sum of products of numbers below it."""
DTYPES = {"real": torch.float64, "positive": torch.float64, "boolean": torch.bool, "index": torch.int64}
REFUSED = (RuntimeError, IndexError, ValueError, ZeroDivisionError, TypeError, KeyError, AssertionError)
"""What torch, Python and the operators' bodies raise on shapes that do not fit."""


class UnsoundRule(RuleError):
    """A rule says what is not so, acts where it does not hold, or does not act where it does."""


@dataclass(frozen=True, eq=False)
class Tree:
    """An operator applied to trees and attributes, or a variable; its shape is computed when it is asked for."""

    head: Operator | str
    args: tuple[Any, ...] = ()
    given: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float64

    @cached_property
    def meta(self) -> torch.Tensor:
        """Shape and dtype of its value; raises one of `REFUSED` where it has none."""
        if isinstance(self.head, str):
            return torch.empty(self.given, dtype=self.dtype, device="meta")
        operands, attributes = self.head.split(self.args)
        arguments = self.head.join(tuple(operand.meta for operand in operands), attributes)
        with torch.device("meta"):  # of leaves too: zeros of any size take no time
            value = self.head.body(*arguments)
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its value."""
        return tuple(self.meta.shape)

    def key(self) -> Any:
        """Equal for trees that are written alike."""
        if isinstance(self.head, str):
            return (self.head, self.given)
        return (self.head.name, *(a.key() if isinstance(a, Tree) else a for a in self.args))

    @property
    def operands(self) -> tuple[Tree, ...]:
        """The trees that its operator is applied to."""
        return self.head.split(self.args)[0] if isinstance(self.head, Operator) else ()

    def operators(self) -> Iterator[tuple[Operator, tuple[Any, ...]]]:
        """Every operator in it, with its attributes."""
        if isinstance(self.head, Operator):
            yield self.head, self.head.split(self.args)[1]
            for operand in self.operands:
                yield from operand.operators()

    def variables(self) -> frozenset[str]:
        """Names of the tensors in it."""
        if isinstance(self.head, str):
            return frozenset({self.head})
        return frozenset().union(*(operand.variables() for operand in self.operands))


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
        domains = self.rule.tensors
        leaves = {n: Tree(n, given=s, dtype=DTYPES[domains[n].values]) for n, s in self.shapes.items()}
        with interpreted_by(_Plant()):
            self.pairs, self.guards = self.rule(**self.others, **leaves)

    def __str__(self) -> str:
        return f"{self.shapes}, {self.others}"

    @property
    def allowed(self) -> bool:
        """Whether the guards hold."""
        return all(bool(g) for g in self.guards)

    def well_formed(self) -> bool:
        """Whether the operators of the left side accept the shapes."""
        try:
            return all(left.shape is not None for left, _ in self.pairs)
        except REFUSED:
            return False

    def elements(self, generator: torch.Generator, *, integers: bool = False) -> dict[str, torch.Tensor]:
        """Random tensors of the declared kinds; with `integers`, real ones hold integers below `PRIME`."""
        signed = guarded(self.rule, NONNEGATIVE)
        return {name: self._elements(name, name in signed, generator, integers) for name in self.shapes}

    def _elements(
        self, name: str, positive: bool, generator: torch.Generator, integers: bool
    ) -> torch.Tensor:
        domain, shape = self.rule.tensors[name], self.shapes[name]
        if domain.values == "index":
            return torch.randint(0, 2, shape, generator=generator)
        if domain.values == "boolean":
            often = {True: 0.6, False: 0.4, None: 0.5}[domain.somewhere]
            truth = torch.rand(shape, generator=generator) < often
            if domain.somewhere is not None:
                truth[..., :1] = domain.somewhere
            return truth
        if integers:
            return torch.randint(0, PRIME, shape, generator=generator).double()
        if domain.values == "positive" or positive:
            return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
        return torch.randn(shape, generator=generator, dtype=torch.float64)


def guarded(rule: Rule, relation: Relation) -> set[str]:
    """Tensor arguments of which a guard asks that they are in a relation: constant, or not, or not negative."""
    rows = (g for g in rule.guards if isinstance(g, Row) and g.relation is relation)
    return {v.name for row in rows for v in variables(row.terms) if v.name in rule.tensors}


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
    """`count` samples.

    Raises:
        UnsoundRule: the domain is empty.
    """
    found = list(islice(draw(rule, Random(seed), batch), count))
    if not found:
        raise UnsoundRule(
            f"rule {rule.name!r}: no draw of its domain at batch {batch} passes its guards and operators"
        )
    return found
