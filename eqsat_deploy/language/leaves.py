"""Leaves: inputs, parameters and literals. Opaque nodes stand for whatever the language does not model."""

from __future__ import annotations

from typing import Any

import torch

from eqsat_deploy.language.expressions import dims
from eqsat_deploy.language.operator import Ints, operator
from eqsat_deploy.language.shapes import encode, sizes


@operator(shape=None, role="leaf")
def input_(index: int) -> Any:
    """The index-th input of the model."""
    raise LookupError("an input has no value of its own")


@operator(shape=None, role="leaf")
def parameter(index: int) -> Any:
    """The index-th parameter, buffer or constant of the model."""
    raise LookupError("a parameter has no value of its own")


@operator(shape=None)
def opaque(index: int, operands: Ints) -> Any:
    """The index-th call that the language does not model. Never matched by a rule."""
    raise LookupError("an opaque call has no body of its own")


@operator(shape=None, role="view")
def result(x: torch.Tensor, index: int) -> Any:
    """One result of an opaque call that has several."""
    return x[index]


@operator(shape=lambda value: dims(), role="leaf")
def scalar(value: float) -> torch.Tensor:
    """A number. It takes the precision of what it meets, as a Python number does."""
    return torch.tensor(value, dtype=torch.float64)


@operator(shape=lambda shape, dtype: shape, role="leaf")
def zeros(shape: Ints, dtype: str) -> torch.Tensor:
    """Zeros of torch's `dtype`; what a missing bias stands for, so that no rule needs a second form."""
    return torch.zeros(sizes(shape), dtype=getattr(torch, dtype))


@operator(shape=lambda shape, dtype: shape, role="leaf")
def ones(shape: Ints, dtype: str) -> torch.Tensor:
    """Ones of torch's `dtype`: as `bool`, a mask that keeps all."""
    return torch.ones(sizes(shape), dtype=getattr(torch, dtype))


def zeros_like(x: Any, *shape: int) -> Any:
    """Zeros of `shape` in the dtype of `x`."""
    return zeros(encode(shape), str(x.dtype).removeprefix("torch."))


@operator(shape=lambda size: dims(size, size), role="leaf")
def identity_matrix(size: int) -> torch.Tensor:
    """Ones on the diagonal of a size x size matrix."""
    return torch.eye(size)
