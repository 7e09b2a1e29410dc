"""Q/DQ: markers and quantized weights become QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from eqsat_deploy.engines.onnx.graph import DOMAIN, Array, Exported, array_of, constant, insert, replace
from eqsat_deploy.quantization import FakeQuantize

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Encoding:
    """Codes of an activation: `value = (code - zero_point) * scale`, stored as int8 or uint8."""

    scale: float
    zero_point: int
    unsigned: bool

    @property
    def low(self) -> float:
        """The value of the lowest code."""
        return ((0 if self.unsigned else -128) - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The value of the highest code."""
        return ((255 if self.unsigned else 127) - self.zero_point) * self.scale


def encoding_of(quantizer: FakeQuantize) -> Encoding:
    """The codes that an activation's quantizer rounds to."""
    return Encoding(float(quantizer.step), int(quantizer.zero_point), quantizer.unsigned)


def symmetric(encoding: Encoding) -> Encoding:
    """The narrowest int8 encoding with zero point 0 that covers `encoding`."""
    if encoding.zero_point == 0 and not encoding.unsigned:
        return encoding
    return Encoding(max(-encoding.low, encoding.high) / 127, 0, False)


def transposed(exported: Exported, name: str, permutation: list[int]) -> ir.Value:
    """The quantized weight `name` with its axes permuted, as an initializer of its own."""
    quantizer = copy.copy(exported.weights[name])
    quantizer.axis = permutation.index(cast(int, quantizer.axis))
    exported.weights[f"{name}_transposed"] = quantizer
    array = array_of(exported.graph.initializers[name]).transpose(permutation)
    return constant(exported.graph, f"{name}_transposed", array)


def quantize_activations(
    exported: Exported, encode: Callable[[ir.Node, Encoding], Encoding], scale: type
) -> None:
    """Replaces markers by QuantizeLinear and DequantizeLinear; `scale` is the NumPy type of scales."""
    for node in list(exported.graph):
        if node.domain != DOMAIN:
            continue
        source, quantizer = node.inputs[0], exported.activations[node.attributes["index"].as_int()]
        assert source is not None
        replace(node, insert_pair(exported.graph, source, encode(node, encoding_of(quantizer)), node, scale))
    exported.graph.opset_imports.pop(DOMAIN, None)


def quantize_weights(exported: Exported, scale: type) -> None:
    """Stores weights as int8, each with a DequantizeLinear; `scale` is the NumPy type of scales."""
    graph = exported.graph
    for name, quantizer in exported.weights.items():
        weight = graph.initializers.get(name)
        if weight is None or not weight.uses():  # replaced by its transpose
            continue
        uses = [(use.node, use.idx) for use in weight.uses()]
        stored = _dequantized(graph, name, array_of(weight), quantizer, uses[0][0], scale)
        for reader, position in uses:
            reader.replace_input_with(position, stored)


def _dequantized(
    graph: ir.Graph, name: str, weight: Array, quantizer: FakeQuantize, reader: ir.Node, scale: type
) -> ir.Value:
    """An int8 initializer and its DequantizeLinear, before `reader`."""
    assert quantizer.axis is not None
    axis = quantizer.axis % weight.ndim
    step = _positive(quantizer.step.cpu().numpy().astype(np.float64), scale, up=True)
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    codes = np.clip(np.rint(weight / step.astype(np.float64).reshape(shape)), -128, 127).astype(np.int8)
    inputs = [
        constant(graph, f"{name}_int8", codes),
        constant(graph, f"{name}_scale", step),
        constant(graph, f"{name}_zero_point", np.zeros(step.shape, np.int8)),
    ]
    return insert(graph, reader, "DequantizeLinear", inputs, f"{name}_dequantize", {"axis": axis})


def insert_pair(
    graph: ir.Graph, source: ir.Value, encoding: Encoding, before: ir.Node, scale: type
) -> ir.Value:
    """`source` through a QuantizeLinear and a DequantizeLinear in front of `before`."""
    name = str(source.name)
    step = constant(graph, f"{name}_scale", _positive(np.array(encoding.scale), scale))
    zero = np.array(encoding.zero_point, np.uint8 if encoding.unsigned else np.int8)
    zero_point = constant(graph, f"{name}_zero_point", zero)
    codes = insert(graph, before, "QuantizeLinear", [source, step, zero_point], f"{name}_quantize")
    return insert(graph, before, "DequantizeLinear", [codes, step, zero_point], f"{name}_dequantize")


def _positive(scale: Array, dtype: type, *, up: bool = False) -> Array:
    """`scale` in `dtype`, never 0, which runtimes refuse; `up` rounds up, so that no code is clipped."""
    rounded: Array = scale.astype(dtype)
    if up:
        rounded = np.where(rounded < scale, np.nextafter(rounded, dtype(np.inf)), rounded).astype(dtype)
    return np.asarray(np.maximum(rounded, np.finfo(dtype).smallest_subnormal), dtype=dtype)
