"""OpenVINO's operators, and tensors as what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqsat_deploy.engines.writing import FREE, Functions, Unwritten, Written

DTYPES = {
    torch.float32: "f32", torch.float64: "f64", torch.int64: "i64", torch.int32: "i32", torch.int16: "i16",
    torch.int8: "i8", torch.uint8: "u8", torch.bool: "boolean",
}  # fmt: skip


def _shape(output: Any) -> tuple[int, ...]:
    return tuple(size.get_length() if size.is_static else FREE for size in output.get_partial_shape())


def _dtype(output: Any) -> torch.dtype:
    name = output.get_element_type().get_type_name()
    found = next((dtype for dtype, known in DTYPES.items() if known == name), None)
    if found is None:
        raise Unwritten(f"tensors of {name}")
    return found


FUNCTIONS = Functions(lambda op: op.output(0), _shape, _dtype)
"""What writes a torch function in OpenVINO's operators."""


def ops() -> Any:
    """OpenVINO's operators."""
    from openvino import opset14

    return opset14


def element_type(dtype: torch.dtype) -> str:
    """OpenVINO's name of a dtype; `Unwritten` for one that it does not have."""
    if dtype not in DTYPES:
        raise Unwritten(f"tensors of {dtype}")
    return DTYPES[dtype]


def output_of(value: Any) -> Any:
    """A tensor as what operators read."""
    if isinstance(value, Written):
        return value.value
    if not isinstance(value, Tensor):
        raise Unwritten(f"a {type(value).__name__} in the place of a tensor")
    element_type(value.dtype)
    return ops().constant(value.detach().contiguous().numpy()).output(0)


def ints(*values: int) -> Any:
    """A constant of int64."""
    return ops().constant(np.array(values, np.int64))


def sizes_of(values: Sequence[Any]) -> Any:
    """Sizes as what operators read, some of which may be computed."""
    if not any(isinstance(value, Written) for value in values):
        return ints(*values)
    parts = [
        ops().reshape(value.value, ints(1), special_zero=False) if isinstance(value, Written) else ints(value)
        for value in values
    ]
    return ops().concat(parts, 0)
