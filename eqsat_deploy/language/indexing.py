"""Operators that read elements at places that are data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from eqsat_deploy.language.expressions import replace
from eqsat_deploy.language.movement import to_shape
from eqsat_deploy.language.operator import Unsupported, aten, operator
from eqsat_deploy.language.shapes import BATCH, axis, slot
from eqsat_extraction.kernel import Kind


@operator(Kind.LOOKUP, shape=lambda x, index, slot: index, flops=lambda *_: 0.0)
def take_along(x: torch.Tensor, index: torch.Tensor, slot: int) -> torch.Tensor:
    """For each element of `index` (integers, of the rank of `x`), the one at it along the axis in `slot`."""
    return torch.gather(x, axis(slot, x.dim()), index)


@operator(
    Kind.LOOKUP, shape=lambda x, index, slot: replace(x, slot, index[6]), linear=True, flops=lambda *_: 0.0
)
def take(x: torch.Tensor, index: torch.Tensor, slot: int) -> torch.Tensor:
    """The elements of `x` at `index` (integers, one axis) along the axis in `slot`, negative ones from the end."""
    return x[(slice(None),) * axis(slot, x.dim()) + (index,)]


@aten("index.Tensor")
def _index(x: Any, indices: Sequence[Any]) -> Any:
    """One tensor of integers along one axis; its own axes take that axis' place."""
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0][1].dtype not in (torch.int64, torch.int32):
        raise Unsupported("an index of several axes, or of booleans")
    dim, index = given[0]
    if x.shape[dim] % BATCH == 0:
        raise Unsupported("an index of the batch")
    flat = to_shape(index, [math.prod(index.shape)])
    taken = take(x, flat, slot(dim, len(x.shape)))
    return to_shape(taken, [*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]])


@aten("index_select.default")
def _index_select(x: Any, dim: int, index: Any) -> Any:
    return _index(x, [None] * (dim % len(x.shape)) + [index])


@aten("gather.default")
def _gather(x: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
    rank = len(x.shape)
    if not rank or len(index.shape) != rank or x.shape[dim] % BATCH == 0:
        raise Unsupported("elements of several samples")
    return take_along(x, index, slot(dim, rank))
