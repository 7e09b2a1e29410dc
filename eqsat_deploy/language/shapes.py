"""Shapes inside the e-graph: seven right-aligned integers, so that one rule serves every rank.

A shape of rank r is `(rank, d5, d4, d3, d2, d1, d0)`, padded with ones on the left; d0 (slot 6) is the last
axis. Axes are slot numbers and permutations are seven-vectors of slots, so neither depends on the rank, and
broadcasting is a slot-wise maximum. The symbolic batch is a large prime: a dimension that it divides is a
multiple of the batch (lowering refuses a model with such a size of its own). Ranks above six have no encoding;
such tensors stay inside opaque operators.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any

BATCH = 67_108_859
"""The largest prime below 2**26: larger than the sizes that models have, and small enough that a tensor with 2**27
elements a sample still has an exact number of them in a float, and one with 2**34 is still counted by torch."""
SLOTS = 7
MAX_RANK = SLOTS - 1

_batch_size: ContextVar[Any] = ContextVar("batch_size", default=BATCH)


@contextmanager
def batch_size(value: Any) -> Iterator[None]:
    """Inside, `sizes` reads the symbolic batch as `value` (an int, or a proxy while rebuilding)."""
    token = _batch_size.set(value)
    try:
        yield
    finally:
        _batch_size.reset(token)


def encode(shape: Sequence[int]) -> tuple[int, ...]:
    """The seven-slot form of a shape; ValueError above rank six."""
    if len(shape) > MAX_RANK:
        raise ValueError(f"rank {len(shape)} exceeds {MAX_RANK}: {tuple(shape)}")
    return (len(shape), *[1] * (MAX_RANK - len(shape)), *(int(d) for d in shape))


def decode(encoded: Sequence[int]) -> tuple[int, ...]:
    """The shape behind a seven-slot form, batch still symbolic."""
    return tuple(encoded[SLOTS - encoded[0] :]) if encoded[0] else ()


def slot(axis: int, rank: int) -> int:
    """The slot of a (possibly negative) axis of a tensor of `rank`."""
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is outside a tensor of rank {rank}")
    return SLOTS - rank + axis % rank


def axis(slot_number: int, rank: int) -> int:
    """The axis of a tensor of `rank` that stands in a slot; ValueError where the tensor has no such axis."""
    if not SLOTS - rank <= slot_number < SLOTS:
        raise ValueError(f"slot {slot_number} is outside a tensor of rank {rank}")
    return slot_number - (SLOTS - rank)


def permutation(order: Sequence[int]) -> tuple[int, ...]:
    """The seven-slot form of a torch permutation."""
    rank = len(order)
    return (*range(SLOTS - rank), *(slot(a, rank) for a in order))


def axes(encoded: Sequence[int], rank: int) -> tuple[int, ...]:
    """The torch permutation behind a seven-slot form, for a tensor of `rank`."""
    return tuple(axis(s, rank) for s in encoded[SLOTS - rank :])


def scale_batch(dimension: int) -> Any:
    """`dimension` with the symbolic batch replaced by the current batch size."""
    if dimension % BATCH or not dimension:
        return dimension
    factor = dimension // BATCH
    return _batch_size.get() if factor == 1 else factor * _batch_size.get()


def sizes(encoded: Sequence[int]) -> list[Any]:
    """Dimensions for torch, the batch as the current batch size."""
    return [scale_batch(d) for d in decode(encoded)]


def reshape_sizes(encoded: Sequence[int]) -> list[int]:
    """Dimensions for `torch.reshape`, a single batch dimension as -1 so that no size is asked for at run time."""
    dims = decode(encoded)
    if sum(d % BATCH == 0 for d in dims) == 1:
        return [-1 if d % BATCH == 0 else d for d in dims]
    return sizes(encoded)


def elements(shape: Sequence[int]) -> float:
    """How many elements a tensor of a torch shape has; as a float, as counts of operations are."""
    return prod(shape, start=1.0)
