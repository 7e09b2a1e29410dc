"""Where the channels of quantized tensors may be scaled at no cost when the model runs: found by the rules.

A scale is one more parameter. A quantized tensor is multiplied by it, what reads the tensor reads it multiplied, and
the rules that move constant factors saturate, whatever its values are, as long as none is negative. Where the result
has a form that is the chosen one but for its parameters, these take the scale in, and the rules that acted on the way
are why it may (cross-layer equalization: Nagel et al., "Data-Free Quantization", 2019; SmoothQuant: Xiao et al., 2023).

Calibration chooses the values (`quantization.rounding`). The way back from a tensor ends at what has another reader,
which would see the scale, at what is rounded itself, and at weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch

from eqsat_deploy.deployment import Formula, FreeScale, Taking
from eqsat_deploy.freeze import Space, freeze
from eqsat_deploy.kernels import ENode
from eqsat_deploy.language import (
    SLOTS,
    Operator,
    binary,
    decode,
    encode,
    input_,
    layer_norm,
    mul,
    parameter,
    standardize,
    unary,
)
from eqsat_deploy.language.expressions import Variable
from eqsat_deploy.language.operator import interpreted_by
from eqsat_deploy.language.pointwise import clipped, upper_bound
from eqsat_deploy.lower import Row, Rows, Term
from eqsat_deploy.rules import Rule
from eqsat_deploy.rules.facts import CONSTANT, Pattern
from eqsat_deploy.rules.facts import Row as Condition
from eqsat_deploy.saturate import saturate
from eqsat_deploy.selection import registered_rules

PARAMETERS = {"w": "weight", "b": "bias"}
"""What modules call the operands that they hold."""
SCALE = "scale"
LAST = SLOTS - 1


@dataclass(frozen=True)
class Read:
    """An operand: the graph node that computes it, None where it is a constant, and what is known of it."""

    node: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Applied:
    """What a graph node computes: an operator on `Read` operands and on attributes, in the order of its declaration."""

    operator: Operator
    args: tuple[Any, ...]

    @classmethod
    def of(cls, operator: Operator, args: tuple[Any, ...]) -> Applied:
        """An operator applied; a LayerNorm without weight and bias as one that has them, whose kernel is the same."""
        if operator is not standardize or args[1] != LAST:
            return cls(operator, args)
        x, _, eps = args
        held = Read(None, x.shape[-1:], x.dtype)
        return cls(layer_norm, (x, held, held, eps))

    @property
    def operands(self) -> tuple[Read, ...]:
        """What it reads."""
        return self.operator.split(self.args)[0]

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the operands that its module holds, of those that a scale may change."""
        known = self.operator
        names = known.operand_names[known.module_operands :] if known.module is not None else ()
        return tuple(name for name in names if name in PARAMETERS)

    @property
    def bound(self) -> float | None:
        """What it clips at from above, where it clips at 0 from below."""
        return upper_bound(self.args[0]) if self.operator is unary else None

    def on(self, operands: Sequence[Any]) -> Any:
        """The same of other operands, under the current interpreter; clipping as the two steps that it is."""
        if self.bound is not None:
            return clipped(operands[0], self.bound)
        attributes = self.operator.split(self.args)[1]
        return self.operator(*self.operator.join(tuple(operands), attributes))


@cache
def scale_rules() -> tuple[Rule, ...]:
    """The registered rules that move constant factors: those that look for a product with one."""
    found = (rule for rule in registered_rules() if isinstance(rule, Rule) and rule.phase == "rewrites")
    return tuple(rule for rule in found if _finds_factor(rule))


def _finds_factor(rule: Rule) -> bool:
    conditions = (g for g in rule.guards if isinstance(g, Condition) and g.relation is CONSTANT)
    constants = {term.name for condition in conditions for term in condition.terms}
    sides = (side for left, right in rule.pairs for side in (left, right)[: 1 + rule.both])
    products = (product for side in sides for product in _products(side))
    return any(getattr(operand, "name", None) in constants for product in products for operand in product)


def _products(form: Any) -> Iterator[tuple[Any, Any]]:
    """The operands of every product in a pattern."""
    if not isinstance(form, Pattern):
        return
    if form.head is binary and (isinstance(form.args[0], Variable) or form.args[0] == "mul"):
        yield form.args[1], form.args[2]
    for arg in form.args:
        yield from _products(arg)


def free_scales(
    applied: Mapping[str, Applied], users: Mapping[str, int], readers: Mapping[str, Collection[str]]
) -> tuple[FreeScale, ...]:
    """What takes in a scale of the channels of tensors, for every tensor of which a reader does.

    Args:
        applied: what graph nodes compute, by their names.
        users: how many nodes read each.
        readers: the nodes that read the codes of each quantized tensor.
    """
    asked = _Asked(applied, users, readers)
    with interpreted_by(asked):
        questions = [question for tensor in readers if (question := asked.question(tensor)) is not None]
    if not questions:
        return ()
    lowered = asked.rows.lowered(cast(Any, None), [], nodes=0)
    answers = _Answers(asked, freeze(lowered, saturate(lowered, scale_rules())))
    return tuple(scale for question in questions if (scale := answers.scale(question)) is not None)


@dataclass(frozen=True)
class _Question:
    """Rows of a tensor and of what reads it, each as it is, and where a scale of `shape` multiplies the tensor."""

    tensor: str
    shape: tuple[int, ...]
    written: tuple[int, int]
    read: tuple[tuple[int, int], ...]
    bound: float | None


class _Asked:
    """The rows to saturate. `parameters` are all constants, each by the node that reads it, None for scales, and by its
    name there; `held` has the rows of those that modules hold."""

    def __init__(
        self, applied: Mapping[str, Applied], users: Mapping[str, int], readers: Mapping[str, Collection[str]]
    ) -> None:
        self.applied, self.users, self.readers = applied, users, readers
        self.rows = Rows()
        self.parameters: list[tuple[str | None, str]] = []
        self.held: dict[int, tuple[str, str]] = {}
        self.leaves: dict[Any, Term] = {}

    def apply(self, operator: Operator, args: tuple[Any, ...]) -> Term:
        """The row of what an operator computes of rows; its shape and dtype are as it declares them."""
        operands, attributes = operator.split(args)
        assert operator.shape is not None
        shape = operator.shape(*operator.join(tuple(encode(o.shape) for o in operands), attributes))
        row = Row(operator, operator.join(tuple(o.row for o in operands), attributes))
        return self._added(row, decode(shape), operator.dtype(*args))

    def question(self, tensor: str) -> _Question | None:
        """What is asked of a tensor: None where nothing that holds weights reads it."""
        reads = [(name, place) for name in self.readers[tensor] for place in self._places(name, tensor)]
        weighted = [self.applied[name] for name, _ in reads if self.applied[name].held]
        if not weighted:
            return None
        (name, place), *_ = reads
        read = self.applied[name].operands[place]
        leaf, written = self._leaf(read), self._written(read)
        # Channels lie along the last axis for what acts along that alone, and along the third from there for maps.
        shape = read.shape[-1:] if weighted[0].operator.along == (LAST,) else (*read.shape[-3:-2], 1, 1)
        scale = self._parameter(SCALE, Read(None, shape, read.dtype))
        self.rows.nonnegative.add(scale.row)
        pairs = [(self._of(*at, leaf).row, self._of(*at, mul(leaf, scale)).row) for at in reads]
        bound = self.applied[tensor].bound if tensor in self.applied else None
        return _Question(tensor, shape, (written.row, mul(written, scale).row), tuple(pairs), bound)

    def _places(self, reader: str, tensor: str) -> list[int]:
        """Which operands of a node a tensor is."""
        operands = self.applied[reader].operands if reader in self.applied else ()
        return [i for i, read in enumerate(operands) if read.node == tensor]

    def _of(self, name: str, place: int, given: Term) -> Term:
        """What a node computes of an operand that it is given."""
        known = self.applied[name]
        operands = [given if i == place else self._operand(name, i) for i in range(len(known.operands))]
        return known.on(operands)  # type: ignore[no-any-return]

    def _written(self, read: Read) -> Term:
        """A tensor as it is computed from what ends the way back."""
        if read.node is None or read.node not in self.applied:
            return self._leaf(read)
        known = self.applied[read.node]
        operands = [
            self._operand(read.node, place) if known.held or self._ends(operand) else self._written(operand)
            for place, operand in enumerate(known.operands)
        ]
        return known.on(operands)  # type: ignore[no-any-return]

    def _ends(self, read: Read) -> bool:
        return read.node is None or read.node in self.readers or self.users.get(read.node, 0) > 1

    def _operand(self, name: str, place: int) -> Term:
        known = self.applied[name]
        read = known.operands[place]
        if read.node is not None:
            return self._leaf(read)
        operand = known.operator.operand_names[place]
        called = PARAMETERS.get(operand, operand)
        term = self._parameter(called, read, name)
        if operand in known.held:
            self.held[term.row] = name, called
        return term

    def _leaf(self, read: Read) -> Term:
        if read.node not in self.leaves:
            self.leaves[read.node] = self._added(Row(input_, (len(self.leaves),)), read.shape, read.dtype)
        return self.leaves[read.node]

    def _parameter(self, name: str, read: Read, node: str | None = None) -> Term:
        key = name, node, read
        if key not in self.leaves:
            self.leaves[key] = self._added(Row(parameter, (len(self.parameters),)), read.shape, read.dtype)
            self.parameters.append((node, name))
        return self.leaves[key]

    def _added(self, row: Row, shape: Sequence[int], dtype: torch.dtype | None) -> Term:
        return self.rows.add(row, torch.empty(shape, dtype=dtype, device="meta"), row.operator is parameter)


class _Answers:
    """The saturated rows, asked for forms that differ from those asked about in parameters alone."""

    def __init__(self, asked: _Asked, space: Space) -> None:
        self.asked, self.space = asked, space
        self.rules = [rule.name for rule in scale_rules()]
        self.nodes: dict[int, list[ENode]] = {}
        for number, node in space.nodes:
            self.nodes.setdefault(number, []).append(node)

    def scale(self, question: _Question) -> FreeScale | None:
        """What takes the scale in, where a reader does."""
        readers = [self._takings(row, self.space.row_class[scaled]) for row, scaled in question.read]
        if not any(readers):
            return None
        row, scaled = question.written
        number = self.space.row_class[scaled]
        taken = self._takings if question.bound is None else self._before_clipping
        writers = taken(row, number)
        taking = tuple(taking for takings in readers for taking in takings)
        return FreeScale(
            question.tensor, question.shape, taking, writers, question.bound if writers else None
        )

    def _before_clipping(self, row: int, number: int) -> tuple[Taking, ...]:
        """What takes the scale in of a row that clips last, where it clips at a bound for each channel instead."""
        clips = (
            node for node in self.nodes[number] if node.operator is binary and node.attributes == ("minimum",)
        )
        (unclipped, _), _ = binary.split(self.asked.rows.rows[row].args)
        found = (self._takings(unclipped, node.operands[0], number) for node in clips)
        return next(filter(None, found), ())

    def _takings(self, row: int, number: int, *on_the_way: int) -> tuple[Taking, ...]:
        """What makes an e-class of a row with other parameters; nothing where it takes more than that."""
        changed = self._changed(row, number) or {}
        rules = [self.rules[i] for n in (*on_the_way, *changed.values()) for i in self.space.fired.get(n, ())]
        parameters: dict[str, dict[str, Formula]] = {}
        for held, value in changed.items():
            if held in self.asked.held:
                node, name = self.asked.held[held]
                parameters.setdefault(node, {})[name] = self._formula(value)
        return tuple(
            Taking(node, formulas, tuple(dict.fromkeys(rules))) for node, formulas in parameters.items()
        )

    def _changed(self, row: int, number: int) -> dict[int, int] | None:
        """The e-classes that stand for a row and those below it which are others in an e-class: for parameters, values;
        for what is computed, the same of other operands. None where there is no such form."""
        if number == self.space.row_class[row]:
            return {}
        if row in self.asked.held:
            own = {None, self.asked.held[row][0]}
            return {row: number} if self.space.classes[number].constant and self._of(number) <= own else None
        given = self.asked.rows.rows[row]
        operands, attributes = given.operator.split(given.args)
        for node in self.nodes[number]:
            if node.operator is given.operator and node.attributes == attributes:
                parts = [self._changed(*pair) for pair in zip(operands, node.operands, strict=True)]
                if all(part is not None for part in parts):
                    return {row: number} | {k: v for part in parts for k, v in (part or {}).items()}
        return None

    def _of(self, number: int) -> set[str | None]:
        """The nodes whose parameters a constant e-class is made of, and None for the scale."""
        term = self.space.terms[number]
        if term.operator is parameter:
            return {self.asked.parameters[term.attributes[0]][0]}
        return set().union(*map(self._of, term.operands))

    def _formula(self, number: int) -> Formula:
        """A constant e-class in terms of the parameters as they are and of the scale."""
        term = self.space.terms[number]
        if term.operator is parameter:
            return Formula(self.asked.parameters[term.attributes[0]][1])
        return Formula(
            term.operator.name, term.operator.join(tuple(map(self._formula, term.operands)), term.attributes)
        )
