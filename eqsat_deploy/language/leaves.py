"""Leaves: inputs, parameters and literals. Opaque nodes stand for whatever the language does not model."""

from __future__ import annotations

from typing import Any

import torch

from eqsat_deploy.language.expressions import dims
from eqsat_deploy.language.operator import Ints, Tensors, operator, unknown
from eqsat_deploy.language.shapes import encode, sizes
from eqsat_extraction.kernel import Kind


@operator(Kind.LEAF, dtype=unknown, shape=None)
def input_(index: int) -> Any:
    """The index-th input of the model."""
    raise LookupError("an input has no value of its own")


@operator(Kind.LEAF, dtype=unknown, shape=None)
def parameter(index: int) -> Any:
    """The index-th parameter, buffer or constant of the model."""
    raise LookupError("a parameter has no value of its own")


@operator(Kind.OPAQUE, dtype=unknown, shape=None)
def opaque(index: int, operands: Tensors) -> Any:
    """The index-th call that the language does not model. Never matched by a rule."""
    raise LookupError("an opaque call has no body of its own")


@operator(Kind.LEAF, dtype=unknown, shape=None)
def result(x: torch.Tensor, index: int) -> Any:
    """One result of an opaque call that has several."""
    return x[index]


@operator(
    Kind.LEAF,
    dtype=lambda value: torch.float64,
    nonnegative=lambda value: value >= 0.0,
    shape=lambda value: dims(),
)
def scalar(value: float) -> torch.Tensor:
    """A number. It takes the precision of what it meets, as a Python number does."""
    return torch.tensor(value, dtype=torch.float64)


@operator(Kind.LEAF, dtype=lambda shape, dtype: getattr(torch, dtype), shape=lambda shape, dtype: shape)
def zeros(shape: Ints, dtype: str) -> torch.Tensor:
    """Zeros of torch's `dtype`; what a missing bias stands for, so that no rule needs a second form."""
    return torch.zeros(sizes(shape), dtype=getattr(torch, dtype))


@operator(Kind.LEAF, dtype=lambda shape, dtype: getattr(torch, dtype), shape=lambda shape, dtype: shape)
def ones(shape: Ints, dtype: str) -> torch.Tensor:
    """Ones of torch's `dtype`: as `bool`, a mask that keeps all."""
    return torch.ones(sizes(shape), dtype=getattr(torch, dtype))


def zeros_like(x: Any, *shape: int) -> Any:
    """Zeros of `shape` in the dtype of `x`."""
    return zeros(encode(shape), str(x.dtype).removeprefix("torch."))


@operator(Kind.LEAF, dtype=lambda size: torch.float32, shape=lambda size: dims(size, size))
def identity_matrix(size: int) -> torch.Tensor:
    """Ones on the diagonal of a size x size matrix."""
    return torch.eye(size)
