"""FP16: what of a float32 graph becomes half precision, and where it is cast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eqsat_deploy.engines.onnx.graph import all_values, insert

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_HALF = float(np.finfo(np.float16).max)
# These inputs stay float32 whatever the tensors are, by the operator's specification.
FLOAT32_INPUTS = {"Resize": (1, 2)}


def to_half(model: ir.Model) -> int:
    """Every float32 tensor becomes FP16, between casts at the inputs and outputs, which keep their types.

    Returns how many parameters had finite values beyond its range, which become its greatest.
    """
    import onnx_ir as ir

    graph = model.graph
    public = {id(value) for value in (*graph.inputs, *graph.outputs)}
    clipped = 0
    for value in all_values(graph):
        if value.dtype == ir.DataType.FLOAT and id(value) not in public:
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
    _cast_interface(graph)
    return clipped


def _exceeds(tensor: ir.TensorProtocol) -> bool:
    import onnx_ir as ir

    if tensor.dtype != ir.DataType.FLOAT:
        return False
    magnitudes = np.abs(tensor.numpy())
    return bool((np.isfinite(magnitudes) & (magnitudes > LARGEST_HALF)).any())


def _cast_interface(graph: ir.Graph) -> None:
    import onnx_ir as ir

    first = graph[0]
    for value in graph.inputs:
        uses = list(value.uses())
        if value.dtype != ir.DataType.FLOAT or not uses:
            continue
        narrow = insert(graph, first, "Cast", [value], f"{value.name}_half", {"to": int(ir.DataType.FLOAT16)})
        for use in uses:
            use.node.replace_input_with(use.idx, narrow)
    for index, value in enumerate(graph.outputs):
        if value.dtype != ir.DataType.FLOAT or value.is_graph_input():
            continue
        wide = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}_float")
        wide.outputs[0].name, wide.outputs[0].shape = value.name, value.shape
        wide.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        value.name, value.type = f"{value.name}_half", ir.TensorType(ir.DataType.FLOAT16)
        graph.append(wide)
        graph.outputs[index] = wide.outputs[0]


def _halved(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """`tensor` in FP16 if it is float32; finite values beyond the FP16 range (masks) become its greatest."""
    import onnx_ir as ir

    if tensor.dtype != ir.DataType.FLOAT:
        return tensor
    values = tensor.numpy()
    clipped = np.where(np.isfinite(values), np.clip(values, -LARGEST_HALF, LARGEST_HALF), values)
    return ir.Tensor(clipped.astype(np.float16), name=tensor.name)
