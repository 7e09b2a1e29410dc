"""What a choice of extraction is, and what it computes: an anchor operator and the steps that its launch applies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from eqsat_deploy.language import Operator, binary, unary
from eqsat_deploy.language.pointwise import base_name
from eqsat_extraction.kernel import Kind

QUANTIZE = Operator(
    "quantize", "Quant", (("x", "T"),), lambda x: x, None, Kind.CONVERSION, lambda x: torch.int8,
    doc="The INT8 codes of a tensor. In float they stand for the tensor itself.",
)  # fmt: skip
CONSTANT = Operator(
    "constant", "Constant", (), lambda: None, None, Kind.LEAF, lambda: None,
    doc="A tensor that is computed once, before anything runs.",
)  # fmt: skip


class Step(NamedTuple):
    """One step of an epilogue: a function, and for a binary one what it reads and on which side (0: value first)."""

    function: str
    operand: int | None = None
    side: int = 0
    quantized: bool = False


def operands_of(steps: tuple[Step, ...]) -> tuple[int, ...]:
    """E-classes that an epilogue reads."""
    return tuple(step.operand for step in steps if step.operand is not None)


@dataclass(frozen=True)
class ENode:
    """An operator application: operands are e-class numbers, in declaration order among the attributes.

    `steps` is the epilogue of a kernel. `integer` marks a kernel that reads its first operand as INT8.
    """

    operator: Operator
    args: tuple[Any, ...] = ()
    steps: tuple[Step, ...] = ()
    integer: bool = False

    @cached_property
    def operands(self) -> tuple[int, ...]:
        """E-classes the anchor reads."""
        return self.operator.split(self.args)[0]

    @cached_property
    def attributes(self) -> tuple[Any, ...]:
        """The anchor's attributes."""
        return self.operator.split(self.args)[1]

    @cached_property
    def children(self) -> tuple[int, ...]:
        """E-classes the kernel reads: the anchor's operands, then the epilogue's."""
        return self.operands + operands_of(self.steps)

    @property
    def is_leaf(self) -> bool:
        """Whether it is there before anything runs: an input, a parameter, a constant."""
        return self.operator.kind is Kind.LEAF

    @property
    def is_launch(self) -> bool:
        """Whether it is a kernel that runs, and not a leaf or a view."""
        return self.operator.kind not in (Kind.LEAF, Kind.VIEW)

    @property
    def name(self) -> str:
        """What cost models and people call its anchor."""
        return self.operator.kernel_name(self.attributes)

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """A stable order among e-nodes."""
        return (self.operator.name, self.integer, repr(self.args), self.steps)

    def then(self, steps: tuple[Step, ...]) -> ENode:
        """The kernel that applies `steps`, and nothing else, to what this one's anchor computes."""
        if steps == self.steps:
            return self
        kernel = ENode(self.operator, self.args, steps, self.integer)
        kernel.__dict__.update(
            operands=self.operands, attributes=self.attributes
        )  # read once for all epilogues
        return kernel

    def __str__(self) -> str:
        """In words: `conv2d + add + relu [int8]`."""
        words = [self.name, *(base_name(s.function) for s in self.steps)]
        return " + ".join(words) + (" [int8]" if self.integer else "")


def realized(
    node: ENode, read: Callable[[int], Any], anchor: Callable[[ENode], Any] | None = None
) -> Iterator[tuple[Step | None, Any]]:
    """What a chosen e-node computes under the current interpreter, step by step: first its anchor's value (with
    None), then the value after each step; the last is the kernel's.

    `read` gives the value of an e-class; `anchor` computes the anchor where applying its operator is not all there
    is to it.
    """
    value = applied(node, read) if anchor is None else anchor(node)
    yield None, value
    for step in node.steps:
        if step.operand is None:
            value = unary(step.function, value)
        else:
            pair = (value, read(step.operand))
            value = binary(step.function, *(pair if step.side == 0 else pair[::-1]))
        yield step, value


def applied(node: ENode, read: Callable[[int], Any]) -> Any:
    """The anchor's operator on the values of its operands."""
    return node.operator(*node.operator.join(tuple(map(read, node.operands)), node.attributes))


def value_of(node: ENode, read: Callable[[int], Any], anchor: Callable[[ENode], Any] | None = None) -> Any:
    """What a chosen e-node computes under the current interpreter."""
    *_, (_, value) = realized(node, read, anchor)
    return value
