"""Pricing: every choice of a frozen e-graph as a kernel, and what the target charges for it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan
from typing import Any

import numpy as np
import torch

from eqsat_deploy.errors import ExtractionError
from eqsat_deploy.freeze import CONCAT, CONSTANT, QUANTIZE, EClass, ENode, Space
from eqsat_deploy.language.shapes import BATCH
from eqsat_extraction import EGraph
from eqsat_extraction.kernel import CostModel, Epilogue, Kernel, Kind, TensorSpec

# Among forms that a cost model cannot tell apart, the one with fewer steps: a folded bias before an added one, no mask
# before a mask of zeros.
TIE = 1e-6


@dataclass(frozen=True)
class Priced:
    """A frozen e-graph as an extraction problem: `costs[i]` is the price of `space.choices[i]`."""

    space: Space
    egraph: EGraph
    costs: np.ndarray
    model: CostModel
    batch: int


def price(space: Space, model: CostModel, *, batch: int = 1) -> Priced:
    """Price every choice for batches of `batch`; equal kernels are priced once.

    Raises:
        ExtractionError: the cost model answered with a negative or undefined price; the message names the kernel.
    """
    known: dict[Kernel, float] = {}
    costs = np.empty(len(space.choices))
    for index, (number, node) in enumerate(space.choices):
        if is_leaf(node):
            costs[index] = 0.0
        elif not model.int8 and _is_integer(space, number, node):
            costs[index] = inf
        else:
            kernel = kernel_of(space, number, node, model, batch)
            if kernel not in known:
                known[kernel] = _checked(model, kernel)
            costs[index] = known[kernel] * (1 + TIE * (len(node.steps) + (node.kind == "masked_attention")))
    nodes = [(number, node.children) for number, node in space.choices]
    labels = tuple(describe(node) for _, node in space.choices)
    egraph = EGraph.build(nodes, space.roots, len(space.classes), ops=labels)
    return Priced(space, egraph, costs, model, batch)


def is_leaf(node: ENode) -> bool:
    """Whether a choice is there before anything runs: an input, a parameter, a constant."""
    return node.kind == CONSTANT or (node.operator is not None and node.operator.kind is Kind.LEAF)


def is_launch(node: ENode) -> bool:
    """Whether a choice is a kernel that runs, and not a leaf or a view."""
    return not is_leaf(node) and (node.operator is None or node.operator.kind is not Kind.VIEW)


def _is_integer(space: Space, number: int, node: ENode) -> bool:
    return node.integer or node.kind == QUANTIZE or space.classes[number].quantized_of is not None


def _checked(model: CostModel, kernel: Kernel) -> float:
    cost = float(model.price(kernel))
    if isnan(cost) or cost < 0:
        raise ExtractionError(f"cost model {model.name!r} prices {kernel} at {cost}; a price is zero or more")
    return cost


def kernel_of(space: Space, number: int, node: ENode, model: CostModel, batch: int) -> Kernel:
    """What the cost model is asked to price for a choice of class `number`."""

    def spec(index: int) -> TensorSpec:
        return _spec(space.classes[index], model.float_dtype, batch)

    output = spec(number)
    steps = tuple(
        Epilogue(_function(s.function), None if s.operand is None else spec(s.operand)) for s in node.steps
    )
    inputs = tuple(spec(o) for o in node.operands)
    attributes: tuple[tuple[str, Any], ...] = ()
    if node.operator is not None and node.kind not in (CONCAT, "opaque"):
        attributes = tuple(zip(node.operator.attribute_names, node.attributes, strict=True))
    kind = Kind.CONVERSION if node.operator is None else node.operator.kind  # a `quantize` has no operator
    return Kernel(operator_name(node), kind, inputs, output, attributes, steps, _flops(node, inputs, output))


def _spec(known: EClass, float_dtype: str, batch: int) -> TensorSpec:
    shape = tuple(d // BATCH * batch if d % BATCH == 0 else d for d in known.shape or ())
    dtype = known.dtype or torch.float32
    name = float_dtype if dtype.is_floating_point else str(dtype).removeprefix("torch.")
    return TensorSpec(shape, name, known.constant)


def operator_name(node: ENode) -> str:
    """The name a cost model knows a kernel's anchor by."""
    if node.operator is None or node.kind == "opaque":
        return node.kind
    return node.operator.kernel_name(node.attributes)


def _function(function: str) -> str:
    return function.partition("(")[0]


def _flops(node: ENode, inputs: tuple[TensorSpec, ...], output: TensorSpec) -> float:
    steps = float(output.numel * len(node.steps))
    if node.operator is None or node.operator.flops is None:
        return steps
    args = node.operator.join(tuple(i.shape for i in inputs), node.attributes)
    return node.operator.flops(output.shape, *args) + steps


def describe(node: ENode) -> str:
    """A kernel in words: `conv2d + add + relu [int8]`."""
    words = [operator_name(node), *(_function(s.function) for s in node.steps)]
    return " + ".join(words) + (" [int8]" if node.integer else "")
