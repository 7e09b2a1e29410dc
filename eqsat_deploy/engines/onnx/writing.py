"""ONNX operators, and tensors as what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from eqsat_deploy.engines.writing import Functions, Unwritten, Written

if TYPE_CHECKING:
    import onnx_ir as ir

FUNCTIONS = Functions(lambda value: value)
"""What writes a torch function in ONNX operators, of opset 21."""


def made(op_type: str, *operands: Any, **attributes: Any) -> Any:
    """The result of an operator that no graph has yet. Operands are tensors, None, and integers, which become a tensor
    of one axis."""
    import onnx_ir as ir

    inputs = [None if operand is None else value_of(operand) for operand in operands]
    while inputs and inputs[-1] is None:
        inputs.pop()
    given = {name: value for name, value in attributes.items() if value is not None}
    return ir.node(op_type, inputs, given).outputs[0]


def value_of(operand: Any) -> ir.Value:
    """A tensor, written or not, or integers, as what operators read."""
    import onnx_ir as ir

    match operand:
        case ir.Value():
            return operand
        case Written():
            return cast("ir.Value", operand.value)
        case Tensor():
            return held(operand)
        case np.ndarray() | np.generic():
            return ir.Value(const_value=ir.Tensor(np.asarray(operand)))
        case [*sizes] if any(isinstance(size, Written) for size in sizes):
            parts = (size if isinstance(size, Written) else [size] for size in sizes)
            return cast("ir.Value", made("Concat", *parts, axis=0))
        case [*sizes] if all(isinstance(size, int) for size in sizes):
            return value_of(np.array(sizes, np.int64))
    raise Unwritten(f"a {type(operand).__name__} in the place of a tensor")


def held(tensor: Tensor) -> ir.Value:
    """An initializer with the values of `tensor`, which is remembered for its name."""
    import onnx_ir as ir

    value = ir.Value(const_value=ir.Tensor(tensor.detach().cpu().contiguous().numpy()))
    value.meta["tensor"] = tensor
    return value


def permuted(value: ir.Value, order: Sequence[int]) -> ir.Value:
    """Its axes in another order: of a weight, stored so, that nothing stands between it and its reader."""
    import onnx_ir as ir

    if value.const_value is None:
        return cast("ir.Value", made("Transpose", value, perm=list(order)))
    array = np.ascontiguousarray(value.const_value.numpy().transpose(order))
    stored = ir.Value(const_value=ir.Tensor(array))
    stored.meta.update(value.meta)
    stored.meta["order"] = [value.meta.get("order", list(range(array.ndim)))[axis] for axis in order]
    return stored


def type_of(dtype: torch.dtype) -> ir.DataType:
    """ONNX's name of a dtype."""
    import onnx_ir as ir

    return ir.DataType.from_numpy(torch.empty(0, dtype=dtype).numpy().dtype)
