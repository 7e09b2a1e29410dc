"""The ONNX Runtime lane: float32, uint8 activations, residual sums quantized, no bias in a matrix product.

ONNX Runtime runs in float what deviates from that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from eqsat_deploy.engines.onnx.graph import Exported, array_of, insert, replace
from eqsat_deploy.engines.onnx.lane import Lane
from eqsat_deploy.engines.onnx.qdq import (
    Encoding,
    insert_pair,
    quantize_activations,
    quantize_weights,
    transposed,
)

if TYPE_CHECKING:
    import onnx_ir as ir

# A value that passes these has the codes it had before: quantization commutes with them.
MOVEMENT = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity", "MaxPool"}
)


def finalize(exported: Exported) -> None:
    """uint8 activations, integer sums, matrix products without bias."""
    _split_bias(exported)
    quantize_weights(exported, np.float32)
    quantize_activations(exported, _unsigned, np.float32)
    _quantize_concatenations(exported.graph)
    if edges := _quantize_residual_edges(exported.graph):
        exported.changes.append(f"{edges} convolutions were quantized where they meet a residual sum")


def _unsigned(marker: ir.Node, encoding: Encoding) -> Encoding:
    """uint8 throughout, which ONNX Runtime's x86 kernels are for.

    After a ReLU the same scale covers 0..255, so that nothing is lost and the ReLU in front goes. Elsewhere the
    codes move up by 128. Left to itself ONNX Runtime does that, too, but 1.32 then rejects its own graph where it
    also moved a DequantizeLinear over a reshape ("output_dtype INT8 does not match y_zero_point type UINT8").
    """
    if encoding.unsigned:
        return encoding
    if encoding.zero_point == 0 and _never_negative(marker.inputs[0]):
        return Encoding(encoding.scale, 0, True)
    return Encoding(encoding.scale, encoding.zero_point + 128, True)


def _never_negative(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    if producer is None:
        return False
    return producer.op_type == "Relu" or (
        producer.op_type in MOVEMENT and _never_negative(producer.inputs[0])
    )


def _split_bias(exported: Exported) -> None:
    """A quantized Gemm becomes MatMul and Add: ONNX Runtime has no integer Gemm with a float bias."""
    graph = exported.graph
    for name in [name for name in exported.weights if name in graph.initializers]:
        weight = graph.initializers[name]
        for node in [reader for reader in weight.consumers() if reader.op_type == "Gemm"]:
            # `functions` writes x @ w.T + b, with alpha and beta 1.
            stored = transposed(exported, name, [1, 0])
            result = insert(graph, node, "MatMul", [node.inputs[0], stored], f"{node.name}:MatMul")
            if len(node.inputs) > 2:
                result = insert(graph, node, "Add", [result, node.inputs[2]], f"{node.name}:Add")
            replace(node, result)


def _quantize_concatenations(graph: ir.Graph) -> None:
    """Says of concatenations of codes that their results are codes, too: ONNX Runtime has integer concatenations of
    that form alone. Parts that share a grid differ in their zero points; the lowest covers them all."""
    for node in list(graph):
        if node.op_type != "Concat" or _encoding_after(node.outputs[0]) is not None:
            continue
        encodings = [_encoding_before(value) for value in node.inputs]
        uses = [(use.node, use.idx) for use in node.outputs[0].uses()]
        if None in encodings or not uses:
            continue
        encoding = min((e for e in encodings if e is not None), key=lambda e: e.low)
        readers = {reader for reader, _ in uses}
        first = next(later for later in graph if later in readers)
        joined = insert_pair(graph, node.outputs[0], encoding, first, np.float32)
        for reader, position in uses:
            reader.replace_input_with(position, joined)


def _quantize_residual_edges(graph: ir.Graph) -> int:
    """Quantizes convolutions that add to a quantized tensor where the sum is quantized, too; how many there were.

    ONNX Runtime runs a convolution in integers only if its result is quantized. The range follows from the
    others: a term outside [low(sum) - high(other), high(sum) - low(other)] is clipped in the sum whatever it
    is.
    """
    edges = 0
    for node in list(graph):
        if node.op_type != "Add" or (total := _encoding_after(node.outputs[0])) is None:
            continue
        for position, other in ((0, 1), (1, 0)):
            term, partner = node.inputs[position], node.inputs[other]
            producer = term.producer() if term is not None else None
            if producer is None or producer.op_type != "Conv" or len(term.uses()) != 1:  # type: ignore[union-attr]
                continue
            if (known := _encoding_before(partner)) is None:
                continue
            low, high = total.low - known.high, total.high - known.low
            scale = (high - low) / 255
            encoding = Encoding(scale, round(-low / scale), True)
            node.replace_input_with(position, insert_pair(graph, term, encoding, node, np.float32))  # type: ignore[arg-type]
            edges += 1
    return edges


def _encoding_after(value: ir.Value) -> Encoding | None:
    """The encoding that `value` is stored in, at once or after a ReLU."""
    for reader in value.consumers():
        if reader.op_type == "QuantizeLinear":
            return _read_encoding(reader)
    readers = value.consumers()
    return (
        _encoding_after(readers[0].outputs[0]) if len(readers) == 1 and readers[0].op_type == "Relu" else None
    )


def _encoding_before(value: ir.Value | None) -> Encoding | None:
    """The encoding that `value` is read from, at once or moved about."""
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in MOVEMENT:
        moved = producer.inputs[0]
        producer = moved.producer() if moved is not None else None
    return (
        _read_encoding(producer) if producer is not None and producer.op_type == "DequantizeLinear" else None
    )


def _read_encoding(node: ir.Node) -> Encoding:
    scale, zero_point = (array_of(cast("ir.Value", value)) for value in node.inputs[1:3])
    return Encoding(float(scale), int(zero_point), zero_point.dtype == np.uint8)


ONNXRUNTIME = Lane("onnxruntime", finalize)
