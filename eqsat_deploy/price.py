"""Pricing: every choice of a frozen e-graph as a kernel, and what the target charges for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from eqsat_deploy.errors import ExtractionError
from eqsat_deploy.freeze import EClass, Space
from eqsat_deploy.kernels import QUANTIZE, ENode
from eqsat_deploy.language import masked_attention
from eqsat_deploy.language.pointwise import base_name
from eqsat_deploy.language.shapes import BATCH
from eqsat_deploy.lower import Lowered
from eqsat_deploy.stages import no_collection
from eqsat_extraction import EGraph
from eqsat_extraction.kernel import CostModel, Epilogue, Kernel, TensorSpec

# Among forms that a cost model cannot tell apart, the one with fewer steps: a folded bias before an added one, no mask
# before a mask of zeros.
TIE = 1e-6


@dataclass(frozen=True)
class Priced:
    """A frozen e-graph as an extraction problem: `costs[i]` is the price of the space's `choices[i]`, in batches of
    `batch`."""

    egraph: EGraph
    costs: np.ndarray
    model: CostModel
    batch: int

    def without(self, choices: Iterable[int]) -> Priced:
        """The same with these choices, as indices, ruled out."""
        costs = self.costs.copy()
        costs[list(choices)] = inf
        return replace(self, costs=costs)


@runtime_checkable
class Measuring(Protocol):
    """A cost model that measures what it is going to be asked for."""

    def measure(self, lowered: Lowered, space: Space, priced: Priced) -> None:
        """Learn prices of what `priced` has priced so far, as far as is worth it."""
        ...


class Floating:
    """A cost model without its integer kernels: of forms in float."""

    def __init__(self, of: CostModel) -> None:
        self.name, self.unit, self.float_dtype, self.int8 = of.name, of.unit, of.float_dtype, False
        self.price = of.price


@no_collection()
def price(space: Space, model: CostModel, *, batch: int = 1) -> Priced:
    """Price every choice for batches of `batch`; equal kernels are priced once.

    Raises:
        ExtractionError: the cost model answered with a negative or undefined price; the message names the kernel.
    """
    specs = specs_of(space, model, batch)
    choices = space.choices
    alike = _numbered(
        (spec, known.quantized_of is None) for spec, known in zip(specs, space.classes, strict=True)
    )
    anchors = _numbered(
        (node.operator, node.attributes, node.integer, *(alike[o] for o in node.operands))
        for node in choices.anchors
    )
    epilogues = _numbered(
        tuple((s.function, None if s.operand is None else alike[s.operand]) for s in steps)
        for steps in choices.epilogues
    )
    parts = alike[choices.owner], anchors[choices.head], epilogues[choices.tail]
    kinds = np.ravel_multi_index(parts, (len(alike), len(anchors), len(epilogues)))
    _, first, of = np.unique(kinds, return_index=True, return_inverse=True)
    distinct = [choices[i] for i in first]
    costs = np.array([_price_of(space, model, specs, *member) for member in distinct])
    labels = [str(node) for _, node in distinct]
    offsets, children = choices.children
    egraph = EGraph(
        node_class=choices.owner.astype(np.int32),
        child_ptr=offsets,
        children=children.astype(np.int32),
        roots=np.array(space.roots, dtype=np.int32),
        n_classes=len(space.classes),
        ops=tuple(map(labels.__getitem__, of.tolist())),
    )
    return Priced(egraph, costs[of], model, batch)


def _numbered(descriptions: Iterable[Any]) -> np.ndarray:
    """A number for each, the same where they are equal."""
    numbers: dict[Any, int] = {}
    return np.array(
        [numbers.setdefault(described, len(numbers)) for described in descriptions], dtype=np.int64
    )


def _price_of(space: Space, model: CostModel, specs: Sequence[TensorSpec], number: int, node: ENode) -> float:
    if _is_integer(space, number, node) and not model.int8:
        return inf
    if node.is_leaf:
        return 0.0
    ties = len(node.steps) + (node.operator is masked_attention)
    return _checked(model, kernel_of(specs, number, node)) * (1 + TIE * ties)


def _is_integer(space: Space, number: int, node: ENode) -> bool:
    return node.integer or node.operator is QUANTIZE or space.classes[number].quantized_of is not None


def _checked(model: CostModel, kernel: Kernel) -> float:
    cost = float(model.price(kernel))
    if isnan(cost) or cost < 0:
        raise ExtractionError(f"cost model {model.name!r} prices {kernel} at {cost}; a price is zero or more")
    return cost


def specs_of(space: Space, model: CostModel, batch: int) -> list[TensorSpec]:
    """What the cost model is told of every e-class, in batches of `batch`."""
    return [_spec(known, model.float_dtype, batch) for known in space.classes]


def kernel_of(specs: Sequence[TensorSpec], number: int, node: ENode) -> Kernel:
    """What the cost model is asked to price for a choice of class `number`."""
    output, inputs = specs[number], tuple(specs[o] for o in node.operands)
    steps = tuple(
        Epilogue(base_name(s.function), None if s.operand is None else specs[s.operand]) for s in node.steps
    )
    attributes = tuple(zip(node.operator.attribute_names, node.attributes, strict=True))
    return Kernel(
        node.name, node.operator.kind, inputs, output, attributes, steps, _flops(node, inputs, output)
    )


def _spec(known: EClass, float_dtype: str, batch: int) -> TensorSpec:
    shape = tuple(d // BATCH * batch if d % BATCH == 0 else d for d in known.shape or ())
    dtype = known.dtype or torch.float32
    name = float_dtype if dtype.is_floating_point else str(dtype).removeprefix("torch.")
    return TensorSpec(shape, name, known.constant)


def _flops(node: ENode, inputs: tuple[TensorSpec, ...], output: TensorSpec) -> float:
    steps = float(output.numel * len(node.steps))
    if node.operator.flops is None:
        return steps
    args: tuple[Any, ...] = node.operator.join(tuple(i.shape for i in inputs), node.attributes)
    return node.operator.flops(output.shape, *args) + steps
