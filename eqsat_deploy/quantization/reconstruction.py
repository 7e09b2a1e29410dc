"""What repairs rounding, kernel by kernel: ranges and biases.

They are chosen in graph order on a bounded sample of real inputs, each by the error at a kernel's output, with
everything before it rounded already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization.biases import corrected
from eqsat_deploy.quantization.fake_quantize import (
    FakeQuantize,
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLinear,
)
from eqsat_deploy.quantization.observers import Extremes
from eqsat_deploy.quantization.ranges import candidates

SEARCHED = 8
"""Samples that ranges are compared on; biases take the whole sample."""

ANCHORS = (QuantizedConv2d, QuantizedConvTranspose2d, QuantizedLinear)


class _Float(fx.Interpreter):
    """Computes nodes of the quantized module as they were in float."""

    def __init__(self, module: fx.GraphModule, originals: Mapping[str, nn.Module]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.originals = originals

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        child = self.originals.get(target) or self.fetch_attr(target)
        return args[0] if isinstance(child, FakeQuantize) else child(*args, **kwargs)


def reconstruct(
    module: fx.GraphModule,
    originals: Mapping[str, nn.Module],
    seen: Mapping[str, Extremes],
    inputs: Sequence[Tensor],
    grid: IntegerGrid,
) -> None:
    """Choose ranges and biases of `module`, in graph order, in place.

    Args:
        module: quantized, with first ranges.
        originals: the float layer of every quantized one, by name.
        seen: the extremes in calibration of every quantizer whose range may be chosen, by its name.
        inputs: the sample, in the order of the module's placeholders.
        grid: the codes that the target reads.
    """
    exact, rounded = _Float(module, originals), fx.Interpreter(module, garbage_collect_values=False)
    left = Counter({node: len(node.users) for node in module.graph.nodes})
    values = iter(inputs)
    open_ranges = dict(seen)
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                exact.env[node] = rounded.env[node] = next(values)
                continue
            child = module.get_submodule(str(node.target)) if node.op == "call_module" else None
            exact.env[node] = exact.run_node(node)
            if isinstance(child, FakeQuantize) and (extremes := open_ranges.pop(str(node.target), None)):
                _choose_range(module, node, extremes, grid, exact, rounded)
            if isinstance(child, ANCHORS) and _called_once(module, child):
                source = rounded.env[node.all_input_nodes[0]]
                corrected(child, exact.env[node], child(source))
            rounded.env[node] = rounded.run_node(node)
            for operand in node.all_input_nodes:
                left[operand] -= 1
                if not left[operand]:
                    del exact.env[operand], rounded.env[operand]


def _choose_range(
    module: fx.GraphModule,
    node: fx.Node,
    extremes: Extremes,
    grid: IntegerGrid,
    exact: _Float,
    rounded: fx.Interpreter,
) -> None:
    """Give the quantizer `node`, where products of matrices alone read it, the range of least error at their outputs.

    Other readers keep the range observed: convolutions lose more by values clipped in what calibration has not shown
    than they gain by finer steps.
    """
    source = node.all_input_nodes[0]
    layers = [module.get_submodule(str(reader.target)) for reader in node.users if reader.op == "call_module"]
    products = [layer for layer in layers if isinstance(layer, QuantizedLinear)]
    if not products or len(products) < len(node.users):
        return
    wanted, given = exact.env[source][:SEARCHED], rounded.env[source][:SEARCHED]
    # Squares leave the range of half precision.
    expected = [F.linear(wanted, layer.weight, layer.bias).float() for layer in products]

    def error(fake: FakeQuantize) -> float:
        """The squared error at the outputs, each as a part of its output's square."""
        outputs = [layer(fake(given)).float() for layer in products]
        return sum(
            float((o - e).square().sum() / e.square().sum()) for o, e in zip(outputs, expected, strict=True)
        )

    fakes = [FakeQuantize.of_grid(g).to(given.device) for g in candidates(extremes, grid)]
    setattr(module, str(node.target), min(fakes, key=error))


def _called_once(module: fx.GraphModule, layer: nn.Module) -> bool:
    calls = [module.get_submodule(str(n.target)) for n in module.graph.nodes if n.op == "call_module"]
    return sum(called is layer for called in calls) == 1
