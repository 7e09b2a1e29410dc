"""Operators that move data: reshape, permute, expand, slice, concat, pad, roll."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from eqsat_deploy.language.expressions import gather, replace, vec
from eqsat_deploy.language.leaves import zeros_like
from eqsat_deploy.language.operator import Ints, Tensors, Unsupported, aten, operator
from eqsat_deploy.language.shapes import (
    BATCH,
    MAX_RANK,
    SLOTS,
    axes,
    axis,
    encode,
    permutation,
    reshape_sizes,
    sizes,
    slot,
)  # fmt: skip
from eqsat_extraction.kernel import Kind

MAX_WINDOWS = 32  # each is a slice


@operator(
    Kind.VIEW, nonnegative=lambda shape: True, shape=lambda x, shape: shape, integer="commute", linear=True
)
def reshape(x: torch.Tensor, shape: Ints) -> torch.Tensor:
    """Another shape over the same elements in row-major order."""
    return torch.reshape(x, reshape_sizes(shape))


@operator(
    Kind.MOVEMENT,
    nonnegative=lambda order: True,
    shape=lambda x, order: gather(x, order),
    integer="commute",
    linear=True,
)
def permute(x: torch.Tensor, order: Ints) -> torch.Tensor:
    """Axes in another order: slot i of the result is slot `order[i]` of `x`."""
    return torch.permute(x, axes(order, x.dim()))


@operator(Kind.MOVEMENT, nonnegative=lambda shape: True, shape=lambda x, shape: shape, linear=True)
def expand(x: torch.Tensor, shape: Ints) -> torch.Tensor:
    """`x` repeated along axes of size one, up to `shape`."""
    return x.expand(sizes(shape))


@operator(
    Kind.MOVEMENT,
    nonnegative=lambda *_: True,
    numbered=False,
    shape=lambda x, slot, start, stop, step: replace(x, slot, (stop - start + step - 1) // step),
    integer="commute",
    linear=True,
)
def slice_(x: torch.Tensor, slot: int, start: int, stop: int, step: int) -> torch.Tensor:
    """Elements start, start + step, ... before `stop` along the axis in `slot`."""
    if step == 1:
        return torch.narrow(x, axis(slot, x.dim()), start, stop - start)
    return torch.ops.aten.slice.Tensor(x, axis(slot, x.dim()), start, stop, step)  # type: ignore[no-any-return]


@operator(
    Kind.CONCAT,
    launched=False,
    shape=lambda slot, a, b: replace(a, slot, a[slot] + b[slot]),
    integer="commute",
    linear=True,
)
def concat(slot: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a` then `b` along the axis in `slot`. Longer lists nest to the left."""
    return torch.cat([a, b], dim=axis(slot, a.dim()))


@operator(Kind.CONCAT, shape=None, integer="commute", linear=True, called=lambda slot: "concat")
def concat_all(slot: int, parts: Tensors) -> torch.Tensor:
    """`parts` one after another along the axis in `slot`: nested concatenations as the one launch that they are."""
    return torch.cat(list(parts), dim=axis(slot, parts[0].dim()))


@operator(
    Kind.MOVEMENT,
    shape=lambda x, low, high, value: vec(x[0], *(x[i] + low[i] + high[i] for i in range(1, SLOTS))),
)
def pad(x: torch.Tensor, low: Ints, high: Ints, value: float) -> torch.Tensor:
    """`value` around `x`: `low[i]` elements before and `high[i]` after, along the axis in slot i."""
    widths: list[int] = []
    for index in reversed(range(1, SLOTS)):
        widths += [low[index], high[index]]
    while len(widths) > 2 and widths[-2:] == [0, 0]:
        del widths[-2:]
    return F.pad(x, widths, value=value)


@operator(Kind.MOVEMENT, shape=lambda x, slot, shift: x, linear=True)
def roll(x: torch.Tensor, slot: int, shift: int) -> torch.Tensor:
    """`x` shifted cyclically along the axis in `slot`."""
    return torch.roll(x, shift, axis(slot, x.dim()))


@operator(Kind.MOVEMENT, nonnegative=lambda slot: True, shape=lambda x, slot: x, linear=True)
def flip(x: torch.Tensor, slot: int) -> torch.Tensor:
    """`x` from its end to its start along the axis in `slot`."""
    return torch.flip(x, (axis(slot, x.dim()),))


@operator(
    Kind.MOVEMENT,
    shape=lambda x, mode, low, high: vec(
        4, 1, 1, x[3], x[4], x[5] + low[0] + high[0], x[6] + low[1] + high[1]
    ),
)  # fmt: skip
def pad_edges(x: torch.Tensor, mode: str, low: Ints, high: Ints) -> torch.Tensor:
    """Its own edges around an NCHW tensor, before and after (height, width): `reflect`, `replicate`, `circular`."""
    return F.pad(x, (low[1], high[1], low[0], high[0]), mode=mode)


def to_shape(x: Any, shape: Sequence[int]) -> Any:
    """`x` reshaped to a torch shape, one entry of which may be -1; `x` itself when nothing changes."""
    shape = [int(d) for d in shape]
    total = 1
    for dimension in x.shape:
        total *= int(dimension)
    if -1 in shape:
        known = 1
        for dimension in shape:
            known *= 1 if dimension == -1 else dimension
        if known == 0 or total % known:
            raise Unsupported(f"reshape of {tuple(x.shape)} to {tuple(shape)}")
        shape[shape.index(-1)] = total // known
    if 0 in shape:
        raise Unsupported("a tensor without elements")
    if len(shape) > MAX_RANK:
        raise Unsupported(f"rank above {MAX_RANK}")
    if sum(d % BATCH == 0 for d in shape) > 1:
        raise Unsupported("two dimensions that are multiples of the batch")
    return x if tuple(shape) == tuple(x.shape) else reshape(x, encode(shape))


@aten("view.default", "_unsafe_view.default", "reshape.default", "view_copy.default")
def _view(x: Any, size: Sequence[int]) -> Any:
    return to_shape(x, size)


@aten("view_as.default", "reshape_as.default")
def _view_as(x: Any, other: Any) -> Any:
    return to_shape(x, other.shape)


@aten("flatten.using_ints")
def _flatten(x: Any, start: int = 0, end: int = -1) -> Any:
    rank = len(x.shape)
    if rank == 0:
        return to_shape(x, [1])
    start, end = start % rank, end % rank
    joined = 1
    for dimension in x.shape[start : end + 1]:
        joined *= dimension
    return to_shape(x, [*x.shape[:start], joined, *x.shape[end + 1 :]])


@aten("unflatten.int")
def _unflatten(x: Any, dim: int, sizes: Sequence[int]) -> Any:
    dim %= len(x.shape)
    known, parts = 1, [int(s) for s in sizes]
    for size in parts:
        known *= 1 if size == -1 else size
    parts = [x.shape[dim] // known if s == -1 else s for s in parts]
    return to_shape(x, [*x.shape[:dim], *parts, *x.shape[dim + 1 :]])


@aten("unsqueeze.default")
def _unsqueeze(x: Any, dim: int) -> Any:
    dim %= len(x.shape) + 1
    return to_shape(x, [*x.shape[:dim], 1, *x.shape[dim:]])


@aten("squeeze.dim", "squeeze.dims", "squeeze.default")
def _squeeze(x: Any, dim: int | Sequence[int] | None = None) -> Any:
    rank = len(x.shape)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    dropped = {d % rank for d in dims}
    return to_shape(x, [s for i, s in enumerate(x.shape) if i not in dropped or s != 1])


def to_order(x: Any, dims: Sequence[int]) -> Any:
    """`x` with its axes in the order `dims`; `x` itself when that is the order it has."""
    rank = len(x.shape)
    if rank > MAX_RANK:
        raise Unsupported(f"rank above {MAX_RANK}")
    dims = [d % rank for d in dims]
    return x if dims == list(range(rank)) else permute(x, permutation(dims))


@aten("permute.default")
def _permute(x: Any, dims: Sequence[int]) -> Any:
    return to_order(x, dims)


@aten("transpose.int", "swapaxes.default")
def _transpose(x: Any, a: int, b: int) -> Any:
    dims = list(range(len(x.shape)))
    dims[a], dims[b] = dims[b], dims[a]
    return to_order(x, dims)


@aten("mT.default")
def _matrix_t(x: Any) -> Any:
    return _transpose(x, -2, -1)


@aten("t.default", "numpy_T.default", "adjoint.default")
def _t(x: Any) -> Any:
    if len(x.shape) != 2:
        raise Unsupported("transposition of a tensor that is no matrix")
    return to_order(x, (1, 0))


@aten("movedim.int", "movedim.intlist")
def _movedim(x: Any, source: int | Sequence[int], destination: int | Sequence[int]) -> Any:
    rank = len(x.shape)
    sources = [s % rank for s in ([source] if isinstance(source, int) else source)]
    targets = [d % rank for d in ([destination] if isinstance(destination, int) else destination)]
    rest = [d for d in range(rank) if d not in sources]
    placed = dict(zip(targets, sources, strict=True))
    remaining = iter(rest)
    return to_order(x, [placed[i] if i in placed else next(remaining) for i in range(rank)])


def expand_to(x: Any, size: Sequence[int]) -> Any:
    """`x` expanded to a torch shape, -1 for an axis that stays; `x` itself when nothing changes."""
    rank = len(size)
    aligned = (1,) * (rank - len(x.shape)) + tuple(x.shape)
    target = tuple(a if s == -1 else int(s) for s, a in zip(size, aligned, strict=True))
    if target == tuple(x.shape):
        return x
    if rank > MAX_RANK:
        raise Unsupported(f"rank above {MAX_RANK}")
    return expand(x, encode(target))


@aten("expand.default")
def _expand(x: Any, size: Sequence[int], implicit: bool = False) -> Any:
    return expand_to(x, size)


@aten("expand_as.default")
def _expand_as(x: Any, other: Any) -> Any:
    return expand_to(x, other.shape)


def cut(x: Any, dim: int, start: int, stop: int, step: int = 1) -> Any:
    """The slice of `x` along torch axis `dim`, bounds clamped as torch does; `x` itself when it is all of it."""
    rank = len(x.shape)
    dim %= rank
    size = x.shape[dim]
    start, stop, _ = slice(start, stop).indices(size)
    if start == 0 and stop == size and step == 1:
        return x
    if stop <= start:
        nothing = zeros_like(x, *(int(i != dim) for i in range(rank)))
        return expand_to(nothing, [*x.shape[:dim], 0, *x.shape[dim + 1 :]])
    if size % BATCH == 0:
        raise Unsupported("a slice of the batch")
    stop = start + (stop - start + step - 1) // step * step if step == 1 else stop
    return slice_(x, slot(dim, rank), start, stop, step)


@aten("slice.Tensor")
def _slice(x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    size = x.shape[dim]
    end = size if end is None or end >= 2**62 else end
    return cut(x, dim, start or 0, end, step)


@aten("narrow.default")
def _narrow(x: Any, dim: int, start: int, length: int) -> Any:
    return cut(x, dim, start, start + length)


@aten("select.int")
def _select(x: Any, dim: int, index: int) -> Any:
    dim %= len(x.shape)
    index = index % x.shape[dim]
    return to_shape(cut(x, dim, index, index + 1), [*x.shape[:dim], *x.shape[dim + 1 :]])


@aten("unbind.int")
def _unbind(x: Any, dim: int = 0) -> Any:
    return tuple(_select(x, dim, i) for i in range(x.shape[dim]))


@aten("split.Tensor")
def _split(x: Any, size: int, dim: int = 0) -> Any:
    total = x.shape[dim]
    return tuple(cut(x, dim, at, min(at + size, total)) for at in range(0, total, size))


@aten("split_with_sizes.default", "split.sizes")
def _split_with_sizes(x: Any, sizes: Sequence[int], dim: int = 0) -> Any:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(cut(x, dim, at, at + size) for at, size in zip(starts, sizes, strict=True))


@aten("chunk.default")
def _chunk(x: Any, chunks: int, dim: int = 0) -> Any:
    return _split(x, -(-x.shape[dim] // chunks), dim)


@aten("cat.default", "concat.default")
def _cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    parts = [t for t in tensors if 0 not in t.shape] or [t for t in tensors if tuple(t.shape) != (0,)]
    rank = len(parts[0].shape)
    where = slot(dim, rank)
    if any(t.dtype != parts[0].dtype for t in parts):
        raise Unsupported("concatenation of different dtypes")
    joined = parts[0]
    for part in parts[1:]:
        joined = concat(where, joined, part)
    return joined


@aten("stack.default")
def _stack(tensors: Sequence[Any], dim: int = 0) -> Any:
    return _cat([_unsqueeze(t, dim) for t in tensors], dim)


@aten("pad.default", "constant_pad_nd.default")
def _pad(x: Any, widths: Sequence[int], *rest: Any) -> Any:
    mode, value = (rest[0], rest[1] if len(rest) > 1 else None) if rest and isinstance(rest[0], str) else (
        "constant", rest[0] if rest else 0.0)  # fmt: skip
    if mode != "constant":
        return _pad_edges(x, widths, str(mode))
    for index in range(len(widths) // 2):
        if widths[2 * index] < 0 or widths[2 * index + 1] < 0:  # what is negative is cut off
            axis = len(x.shape) - 1 - index
            start, stop = max(0, -widths[2 * index]), x.shape[axis] - max(0, -widths[2 * index + 1])
            x = cut(x, axis, start, stop)
    widths = [max(0, w) for w in widths]
    if not any(widths):
        return x
    low, high = [0] * SLOTS, [0] * SLOTS
    for index in range(len(widths) // 2):
        low[SLOTS - 1 - index], high[SLOTS - 1 - index] = widths[2 * index], widths[2 * index + 1]
    return pad(x, tuple(low), tuple(high), float(value or 0.0))


def _pad_edges(x: Any, widths: Sequence[int], mode: str) -> Any:
    """Edges of the last one or two axes; a sequence is an image of height one."""
    if any(w < 0 for w in widths):
        raise Unsupported(f"negative padding of mode {mode!r}")
    if not any(widths):
        return x
    if len(widths) == 2 and len(x.shape) == 3:
        image = to_shape(x, [*x.shape[:2], 1, x.shape[2]])
        padded = _pad_edges(image, [*widths, 0, 0], mode)
        return to_shape(padded, [*x.shape[:2], padded.shape[3]])
    if len(widths) != 4 or len(x.shape) != 4:
        raise Unsupported(f"padding mode {mode!r} of {len(widths) // 2} axes of {len(x.shape)}")
    return pad_edges(x, mode, (widths[2], widths[0]), (widths[3], widths[1]))


@aten("reflection_pad1d.default", "reflection_pad2d.default")
def _reflect(x: Any, widths: Sequence[int]) -> Any:
    return _pad_edges(x, widths, "reflect")


@aten("replication_pad1d.default", "replication_pad2d.default")
def _replicate(x: Any, widths: Sequence[int]) -> Any:
    return _pad_edges(x, widths, "replicate")


@aten("flip.default")
def _flip(x: Any, dims: Sequence[int]) -> Any:
    for dim in dims:
        if x.shape[dim] % BATCH == 0:
            raise Unsupported("a flip of the batch")
        x = flip(x, slot(dim, len(x.shape)))
    return x


@aten("slice_scatter.default")
def _slice_scatter(
    x: Any, part: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    """`x` with `part` in the place of a slice: what is before it, the part, and what is after it."""
    size = x.shape[dim]
    start, stop, _ = slice(start, size if end is None or end >= 2**62 else end).indices(size)
    if step != 1:
        raise Unsupported("a strided slice that is assigned to")
    pieces = [cut(x, dim, 0, start)] if start else []
    pieces += [part, *([cut(x, dim, stop, size)] if stop < size else [])]
    return _cat(pieces, dim)


@aten("select_scatter.default")
def _select_scatter(x: Any, part: Any, dim: int, index: int) -> Any:
    index %= x.shape[dim]
    return _slice_scatter(x, _unsqueeze(part, dim % len(x.shape)), dim, index, index + 1)


@aten("copy.default")
def _copy(x: Any, source: Any, non_blocking: bool = False) -> Any:
    if source.dtype != x.dtype:
        raise Unsupported(f"a copy of {source.dtype} into {x.dtype}")
    return _expand(source, x.shape)


@aten("unfold.default")
def _windows(x: Any, dim: int, size: int, step: int) -> Any:
    """Windows of `size` every `step` along an axis, their elements along a new last axis: slices put together."""
    rank = len(x.shape)
    dim %= rank
    starts = range(0, x.shape[dim] - size + 1, step)
    if len(starts) > MAX_WINDOWS or x.shape[dim] % BATCH == 0:
        raise Unsupported(f"{len(starts)} windows along an axis")
    windows = _stack([cut(x, dim, start, start + size) for start in starts], dim)
    return to_order(windows, [*(i for i in range(rank + 1) if i != dim + 1), dim + 1])


@aten("roll.default")
def _roll(x: Any, shifts: Sequence[int], dims: Sequence[int] = ()) -> Any:
    if not dims:
        raise Unsupported("a roll of the flattened tensor")
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        if size % BATCH == 0:
            raise Unsupported("a roll of the batch")
        if shift % size:
            x = roll(x, slot(dim, len(x.shape)), shift % size)
    return x
