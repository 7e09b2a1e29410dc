"""Tensors that OpenVINO is to compute, on which torch functions write its operators."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {torch.float32: "f32", torch.int64: "i64", torch.int32: "i32", torch.bool: "boolean"}
FREE = -1
"""A size that is not known: the batch. A reshape infers it; nothing may be computed with it."""

FUNCTIONS: dict[Any, Callable[..., Any]] = {}
"""What writes a torch function, by the function, and by the name of the tensor's method."""


class Unwritten(Exception):
    """A function, or a way to call one, that nothing writes."""


class Written:
    """A tensor that OpenVINO is to compute: torch functions on it write more of the model."""

    def __init__(self, output: Any) -> None:
        self.output = output

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, `FREE` where one is not known."""
        sizes = self.output.get_partial_shape()
        return tuple(size.get_length() if size.is_static else FREE for size in sizes)

    @property
    def dtype(self) -> torch.dtype | None:
        """Its dtype; None for one that inputs cannot have."""
        name = self.output.get_element_type().get_type_name()
        return next((dtype for dtype, known in DTYPES.items() if known == name), None)

    def dim(self) -> int:
        """How many axes it has."""
        return len(self.output.get_partial_shape())

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return write(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in FUNCTIONS:
            raise Unwritten(f"{name} of a tensor")
        return lambda *args, **kwargs: write(name, (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        return write(operator.add, (self, other), {})

    def __sub__(self, other: Any) -> Any:
        return write(operator.sub, (self, other), {})

    def __mul__(self, other: Any) -> Any:
        return write(operator.mul, (self, other), {})


def write(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of a torch function, or of the method of that name, on what is written."""
    known = FUNCTIONS.get(function)
    if known is None:
        raise Unwritten(f"{function}")
    try:
        return known(*args, **kwargs)
    except TypeError as error:  # other arguments than it knows
        raise Unwritten(f"{function}: {error}") from error


def is_written(value: Any) -> bool:
    """Whether it is, or holds, a tensor that is to be computed."""
    return isinstance(value, Written) or (isinstance(value, list | tuple) and any(map(is_written, value)))


def ops() -> Any:
    """OpenVINO's operators."""
    from openvino import opset14

    return opset14


def element_type(dtype: torch.dtype) -> str:
    """OpenVINO's name of a dtype; `Unwritten` for one that inputs cannot have."""
    if dtype not in DTYPES:
        raise Unwritten(f"tensors of {dtype}")
    return DTYPES[dtype]


def output_of(value: Any) -> Any:
    """A tensor as what operators read."""
    if isinstance(value, Written):
        return value.output
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
        ops().reshape(value.output, ints(1), special_zero=False)
        if isinstance(value, Written)
        else ints(value)
        for value in values
    ]
    return ops().concat(parts, 0)


def listed(values: Sequence[Any]) -> Sequence[Any]:
    """What may be given as one sequence or one by one."""
    return values[0] if len(values) == 1 and isinstance(values[0], list | tuple | torch.Size) else values


def pair(value: Any) -> list[int]:
    """A window's size along both axes."""
    return [value, value] if isinstance(value, int) else list(value) * (3 - len(value))


def axis_of(x: Written, dim: int) -> int:
    """`dim` from the front."""
    return dim % x.dim()


def refuse(*unusual: Any) -> None:
    """Only for calls in which these are absent, 0 or False."""
    if any(unusual):
        raise Unwritten(f"an argument {unusual}")


def writes(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what writes these functions, or methods by their names, with their own parameters."""

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        def returning(*args: Any, **kwargs: Any) -> Any:
            result = body(*args, **kwargs)
            if isinstance(result, list):
                return tuple(map(Written, result))
            return result if isinstance(result, Written | int) else Written(result.output(0))

        FUNCTIONS.update(dict.fromkeys(functions, returning))
        return returning

    return register
