"""FP16: what of a float32 graph becomes half precision, and where it is cast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from eqsat_deploy.engines.onnx.graph import all_values, insert

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_HALF = float(np.finfo(np.float16).max)
# FP16 ends at the square of 256 and at the exponential of 11, and has no 1e-12: norms are float32, from the squares to
# the division by their root.
OVERFLOWING = ("ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
OF_SQUARES = (
    *("ReduceMean", "ReduceSum", "Add", "Clip", "Max", "Sqrt"),
    *("Reshape", "Squeeze", "Unsqueeze", "Transpose"),
)
DIVIDED = ("Div", "Reciprocal")
# These inputs stay float32 whatever the tensors are, by the operator's specification.
FLOAT32_INPUTS = {"Resize": (1, 2)}


def to_half(model: ir.Model) -> int:
    """Every float32 tensor becomes FP16, between casts at the inputs and outputs, which keep their types, and at norms.

    Returns how many parameters had finite values beyond its range, which become its greatest.
    """
    import onnx_ir as ir

    graph = model.graph
    norms = _norms(graph)
    wide = _wide(norms)
    public = {*graph.inputs, *graph.outputs}
    clipped = 0
    for value in all_values(graph):
        if value in wide:
            continue
        if value.dtype == ir.DataType.FLOAT and value not in public:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
        if value.is_initializer() and value.const_value is not None:
            clipped += _exceeds(value.const_value)
            value.const_value = _halved(value.const_value)
    for node in list(ir.traversal.RecursiveGraphIterator(graph)):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, _halved(attribute.as_tensor()))
            elif name == "value_float" or name == "value_floats":
                floats = np.asarray(attribute.value, np.float32)
                node.attributes["value"] = ir.AttrTensor("value", _halved(ir.Tensor(floats)))
                del node.attributes[name]
            elif name in ("to", "dtype") and attribute.as_int() == int(ir.DataType.FLOAT):
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT16))
        for position in FLOAT32_INPUTS.get(node.op_type, ()):
            operand = node.inputs[position] if position < len(node.inputs) else None
            if operand is not None and operand.name:
                cast_name = f"{node.name}:float{position}"
                node.replace_input_with(
                    position, insert(graph, node, "Cast", [operand], cast_name, {"to": 1})
                )
    _cast_norms(graph, norms, wide)
    _cast_interface(graph, wide)
    return clipped


def _norms(graph: ir.Graph) -> dict[ir.Node, None]:
    """What is computed of sums of squares up to the division by their root, the squares included."""
    found: dict[ir.Node, None] = {}
    for node in graph:
        above = [value.producer() for value in node.inputs if value is not None]
        of_squares = any(each in found and each.op_type not in DIVIDED for each in above if each is not None)
        goes_on = of_squares and node.op_type in OF_SQUARES + DIVIDED
        if node.op_type in OVERFLOWING or _is_square(node) or goes_on:
            found[node] = None
    return found


def _is_square(node: ir.Node) -> bool:
    """Whether it is a square that is summed."""
    summed = (use.node.op_type in ("ReduceMean", "ReduceSum") for use in node.outputs[0].uses())
    if node.op_type not in ("Mul", "Pow") or not any(summed):
        return False
    base, other = node.inputs
    exponent = None if other is None else other.const_value
    if node.op_type == "Mul":
        return base is other
    return exponent is not None and bool((exponent.numpy() > 1).all())


def _wide(norms: Mapping[ir.Node, None]) -> set[ir.Value]:
    """What stays float32: the results of norms, and parameters that nothing else reads."""
    parameters = {
        value for node in norms for value in node.inputs if value is not None and value.is_initializer()
    }
    own = (value for value in parameters if all(use.node in norms for use in value.uses()))
    return {*(node.outputs[0] for node in norms), *own}


def _cast_norms(graph: ir.Graph, norms: Mapping[ir.Node, None], wide: set[ir.Value]) -> None:
    import onnx_ir as ir

    for node in norms:
        for operand in dict.fromkeys(node.inputs):
            if operand is None or operand in wide or operand.dtype not in (None, ir.DataType.FLOAT16):
                continue
            widened = insert(graph, node, "Cast", [operand], f"{node.name}:{operand.name}:float", {"to": 1})
            for position, value in enumerate(node.inputs):
                if value is operand:
                    node.replace_input_with(position, widened)
        result = node.outputs[0]
        outside = [use for use in result.uses() if use.node not in norms]
        if outside:
            cast = ir.node("Cast", [result], {"to": int(ir.DataType.FLOAT16)}, name=f"{node.name}:half")
            cast.outputs[0].name = cast.name
            graph.insert_after(node, cast)
            for use in outside:
                use.node.replace_input_with(use.idx, cast.outputs[0])


def _exceeds(tensor: ir.TensorProtocol) -> bool:
    import onnx_ir as ir

    if tensor.dtype != ir.DataType.FLOAT:
        return False
    magnitudes = np.abs(tensor.numpy())
    return bool((np.isfinite(magnitudes) & (magnitudes > LARGEST_HALF)).any())


def _cast_interface(graph: ir.Graph, wide: set[ir.Value]) -> None:
    import onnx_ir as ir

    first = graph[0]
    for value in graph.inputs:
        uses = [use for use in value.uses() if use.node.outputs[0] not in wide]
        if value.dtype != ir.DataType.FLOAT or not uses:
            continue
        narrow = insert(graph, first, "Cast", [value], f"{value.name}_half", {"to": int(ir.DataType.FLOAT16)})
        for use in uses:
            use.node.replace_input_with(use.idx, narrow)
    for index, value in enumerate(graph.outputs):
        if value.dtype != ir.DataType.FLOAT or value.is_graph_input() or value in wide:
            continue
        cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}_float")
        cast.outputs[0].name, cast.outputs[0].shape = value.name, value.shape
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        value.name, value.type = f"{value.name}_half", ir.TensorType(ir.DataType.FLOAT16)
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]


def _halved(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """`tensor` in FP16 if it is float32; finite values beyond the FP16 range (masks) become its greatest."""
    import onnx_ir as ir

    if tensor.dtype != ir.DataType.FLOAT:
        return tensor
    values = tensor.numpy()
    clipped = np.where(np.isfinite(values), np.clip(values, -LARGEST_HALF, LARGEST_HALF), values)
    return ir.Tensor(clipped.astype(np.float16), name=tensor.name)
