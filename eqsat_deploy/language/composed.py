"""ATen calls that are several operators of the language: einsum, norms, variances, one-dimensional operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from eqsat_deploy.language.casting import cast_to, number_of
from eqsat_deploy.language.leaves import identity_matrix, scalar, zeros, zeros_like
from eqsat_deploy.language.linear import conv2d, conv_transpose2d, embedding, matmul, product
from eqsat_deploy.language.movement import cut, expand, expand_to, to_order, to_shape
from eqsat_deploy.language.normalization import group_norm, ones_like, reduced
from eqsat_deploy.language.operator import IMPORTERS, Unsupported, aten
from eqsat_deploy.language.pointwise import add, mul, unary
from eqsat_deploy.language.pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from eqsat_deploy.language.shapes import BATCH, MAX_RANK, encode


def _floating(x: Any) -> None:
    if not x.dtype.is_floating_point:
        raise Unsupported(f"arithmetic on {x.dtype}")


# -- einsum ------------------------------------------------------------------------------------------------------


@aten("einsum.default")
def _einsum(equation: str, tensors: Sequence[Any], path: Any = None) -> Any:
    """One or two operands: axes of one of them are summed first, and what is left is one matrix product."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    labels = inputs.split(",")
    if (
        "." in equation
        or "->" not in equation
        or len(tensors) > 2
        or any(len(set(s)) < len(s) for s in labels)
    ):
        raise Unsupported(f"einsum {equation!r}")
    reduced = []
    for i, (x, own) in enumerate(zip(tensors, labels, strict=True)):
        _floating(x)
        kept = set(output).union(*(labels[:i] + labels[i + 1 :]))
        reduced.append(_sum_out(x, own, [label for label in own if label not in kept]))
    if len(reduced) == 1:
        ((x, own),) = reduced
        return to_order(x, [own.index(label) for label in output])
    left, right = reduced
    if left[0].constant:  # a constant matrix on the right makes it a Linear
        left, right = right, left
    return _product(left, right, output)


def _sum_out(x: Any, labels: str, gone: list[str]) -> tuple[Any, str]:
    if not gone:
        return x, labels
    kept = "".join(label for label in labels if label not in gone)
    summed = _reduced("sum", x, [labels.index(label) for label in gone], keepdim=False)
    return summed, kept


def _product(left: tuple[Any, str], right: tuple[Any, str], output: str) -> Any:
    (a, a_labels), (b, b_labels) = left, right
    sizes = dict(zip(a_labels, a.shape, strict=True)) | dict(zip(b_labels, b.shape, strict=True))
    both = [label for label in a_labels if label in b_labels and label in output]
    summed = [label for label in a_labels if label in b_labels and label not in output]
    rows = [label for label in a_labels if label not in b_labels]
    columns = [label for label in b_labels if label not in a_labels]

    def joined(labels: Sequence[str]) -> int:
        return math.prod(sizes[label] for label in labels)

    def operand(x: Any, own: str, first: list[str], second: list[str]) -> Any:
        ordered = to_order(x, [own.index(label) for label in (*both, *first, *second)])
        return to_shape(ordered, [*(sizes[label] for label in both), joined(first), joined(second)])

    joint = product(operand(a, a_labels, rows, summed), operand(b, b_labels, summed, columns))
    found = [*both, *rows, *columns]
    split = to_shape(joint, [sizes[label] for label in found])
    return to_order(split, [found.index(label) for label in output])


@aten("baddbmm.default")
def _baddbmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    _floating(x)
    product = matmul(a, b) if alpha == 1 else mul(matmul(a, b), scalar(float(alpha)))
    if beta == 0:
        return product
    return add(product, x if beta == 1 else mul(x, scalar(float(beta))))


# -- reductions --------------------------------------------------------------------------------------------------


def _reduced(kind: str, x: Any, dims: int | Sequence[int] | None, keepdim: bool) -> Any:
    _floating(x)
    return reduced(kind, x, dims, keepdim)


@aten("linalg_vector_norm.default", "norm.ScalarOpt_dim")
def _vector_norm(
    x: Any, order: float | None = 2, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:  # fmt: skip
    if dtype not in (None, x.dtype):
        raise Unsupported(f"a norm of {x.dtype} into {dtype}")
    match order:
        case None | 2:
            return unary("sqrt", _reduced("sum", unary("pow(2.0)", x), dim, keepdim))
        case 1:
            return _reduced("sum", unary("abs", x), dim, keepdim)
        case math.inf:
            return _reduced("amax", unary("abs", x), dim, keepdim)
    raise Unsupported(f"a norm of order {order}")


@aten("std.correction", "std.dim")
def _std(x: Any, *args: Any, **kwargs: Any) -> Any:
    return unary("sqrt", IMPORTERS["var.dim" if len(args) > 1 else "var.correction"](x, *args, **kwargs))


@aten("std_mean.correction")
def _std_mean(x: Any, *args: Any, **kwargs: Any) -> Any:
    variance, mean = IMPORTERS["var_mean.correction"](x, *args, **kwargs)
    return unary("sqrt", variance), mean


@aten("var_mean.dim")
def _var_mean(x: Any, dim: Any, unbiased: bool = True, keepdim: bool = False) -> Any:
    return IMPORTERS["var_mean.correction"](x, dim, correction=int(unbiased), keepdim=keepdim)


@aten("std_mean.dim")
def _std_mean_of_axes(x: Any, dim: Any, unbiased: bool = True, keepdim: bool = False) -> Any:
    return _std_mean(x, dim, correction=int(unbiased), keepdim=keepdim)


# -- normalization -----------------------------------------------------------------------------------------------


@aten("instance_norm.default")
def _instance_norm(
    x: Any, w: Any, b: Any, mean: Any, variance: Any, use_input_stats: bool, momentum: float, eps: float, cudnn: bool
) -> Any:  # fmt: skip
    if not use_input_stats:
        return IMPORTERS["batch_norm.default"](x, w, b, mean, variance, False, momentum, eps, cudnn)
    channels = x.shape[1]
    w = ones_like(x, channels) if w is None else w
    return group_norm(x, w, zeros_like(x, channels) if b is None else b, channels, eps)


# -- one-dimensional operators: images of height one -------------------------------------------------------------


def _as_image(x: Any) -> Any:
    if len(x.shape) != 3:
        raise Unsupported("a sequence without batch dimension")
    return to_shape(x, [*x.shape[:2], 1, x.shape[2]])


def _as_sequence(x: Any) -> Any:
    return to_shape(x, [*x.shape[:2], x.shape[3]])


def _single(value: Any) -> int:
    return value if isinstance(value, int) else int(value[0])


@aten("conv1d.default", "conv1d.padding")
def _conv1d(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    dilation = _single(dilation)
    if isinstance(padding, str):
        total = 0 if padding == "valid" else dilation * (w.shape[2] - 1)
        if total % 2:
            raise Unsupported("asymmetric 'same' padding")
        padding = total // 2
    bias = zeros_like(w, w.shape[0]) if b is None else b
    image = conv2d(
        _as_image(x), _as_image(w), bias, (1, _single(stride)), (0, _single(padding)), (1, dilation), groups
    )
    return _as_sequence(image)


@aten("conv_transpose1d.default")
def _conv_transpose1d(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    bias = zeros_like(w, w.shape[1] * groups) if b is None else b
    pairs = (
        (1, _single(stride)),
        *((0, _single(v)) for v in (padding, output_padding)),
        (1, _single(dilation)),
    )
    return _as_sequence(conv_transpose2d(_as_image(x), _as_image(w), bias, *pairs, groups))


@aten("avg_pool1d.default")
def _avg_pool1d(
    x: Any, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, include_pad: bool = True
) -> Any:
    kernel, stride, padding = _single(kernel), _single(stride or kernel), _single(padding)
    return _as_sequence(
        avg_pool2d(_as_image(x), (1, kernel), (1, stride), (0, padding), int(ceil), int(include_pad))
    )


@aten("max_pool1d.default")
def _max_pool1d(
    x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Any:
    kernel, stride, padding = _single(kernel), _single(stride or kernel), _single(padding)
    return _as_sequence(
        max_pool2d(_as_image(x), (1, kernel), (1, stride), (0, padding), (1, _single(dilation)), int(ceil))
    )


@aten("adaptive_avg_pool1d.default")
def _adaptive_avg_pool1d(x: Any, size: Any) -> Any:
    return _as_sequence(adaptive_avg_pool2d(_as_image(x), (1, _single(size))))


@aten("adaptive_max_pool2d.default")
def _adaptive_max_pool2d(x: Any, size: Any) -> Any:
    """Only where its windows are those of a plain pool: sizes that divide the input's."""
    size = (size, size) if isinstance(size, int) else tuple(size) * (3 - len(size))
    if len(x.shape) != 4 or any(d % s for d, s in zip(x.shape[2:], size, strict=True)):
        raise Unsupported("an adaptive maximum over windows of several sizes")
    kernel = tuple(d // s for d, s in zip(x.shape[2:], size, strict=True))
    if size == (1, 1):
        return _reduced("amax", x, (2, 3), keepdim=True), None
    return max_pool2d(x, kernel, kernel, (0, 0), (1, 1), 0), None


@aten("max_pool2d_with_indices.default")
def _max_pool2d_with_indices(x: Any, *args: Any, **kwargs: Any) -> Any:
    return IMPORTERS["max_pool2d.default"](x, *args, **kwargs), None


# -- movement ----------------------------------------------------------------------------------------------------


@aten("pixel_shuffle.default")
def _pixel_shuffle(x: Any, factor: int) -> Any:
    if len(x.shape) != 4:
        raise Unsupported("a pixel shuffle without batch dimension")
    n, c, h, w = x.shape
    parts = to_shape(x, [n, c // factor**2, factor, factor, h, w])
    return to_shape(to_order(parts, (0, 1, 4, 2, 5, 3)), [n, c // factor**2, h * factor, w * factor])


@aten("pixel_unshuffle.default")
def _pixel_unshuffle(x: Any, factor: int) -> Any:
    if len(x.shape) != 4:
        raise Unsupported("a pixel unshuffle without batch dimension")
    n, c, h, w = x.shape
    parts = to_shape(x, [n, c, h // factor, factor, w // factor, factor])
    return to_shape(to_order(parts, (0, 1, 3, 5, 2, 4)), [n, c * factor**2, h // factor, w // factor])


@aten("channel_shuffle.default", "native_channel_shuffle.default")
def _channel_shuffle(x: Any, groups: int) -> Any:
    n, c, *rest = x.shape
    parts = to_shape(x, [n, groups, c // groups, *rest])
    return to_shape(to_order(parts, (0, 2, 1, *range(3, len(rest) + 3))), x.shape)


@aten("repeat.default", "tile.default")
def _repeat(x: Any, repeats: Sequence[int]) -> Any:
    rank = max(len(repeats), len(x.shape))
    repeats = [1] * (rank - len(repeats)) + [int(r) for r in repeats]
    x = to_shape(x, [1] * (rank - len(x.shape)) + list(x.shape))
    target = tuple(r if d == 1 else d for d, r in zip(x.shape, repeats, strict=True))
    remaining = [1 if d == 1 else r for d, r in zip(x.shape, repeats, strict=True)]
    x = x if target == tuple(x.shape) else expand(x, encode(target))
    for dim, times in enumerate(remaining):
        if times > MAX_REPEATS:
            x = _repeated(x, dim, times, before=True)
        elif times > 1:
            x = _joined([x] * times, dim)
    return x


def _joined(parts: list[Any], dim: int) -> Any:
    return IMPORTERS["cat.default"](parts, dim)


MAX_REPEATS = 16  # as a concatenation; above, as a new axis that is expanded


def _repeated(x: Any, dim: int, times: int, *, before: bool) -> Any:
    """`x` `times` times along an axis: whole after whole where the new axis comes `before`, else each element."""
    if len(x.shape) == MAX_RANK:
        raise Unsupported(f"{times} repetitions in a tensor of rank {MAX_RANK}")
    at = dim if before else dim + 1
    apart = to_shape(x, [*x.shape[:at], 1, *x.shape[at:]])
    repeated = expand(apart, encode((*x.shape[:at], times, *x.shape[at:])))
    return to_shape(repeated, [*x.shape[:dim], x.shape[dim] * times, *x.shape[dim + 1 :]])


@aten("repeat_interleave.self_int")
def _repeat_interleave(
    x: Any, repeats: int, dim: int | None = None, *, output_size: int | None = None
) -> Any:
    if dim is None:
        raise Unsupported("an interleaved repetition of the flattened tensor")
    return _repeated(x, dim % len(x.shape), repeats, before=False)


@aten("diff.default")
def _diff(x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    if x.dtype == torch.bool:
        raise Unsupported("differences of booleans")
    x = IMPORTERS["cat.default"]([part for part in (prepend, x, append) if part is not None], dim)
    for _ in range(n):
        size = x.shape[dim]
        x = IMPORTERS["sub.Tensor"](cut(x, dim, 1, size), cut(x, dim, 0, size - 1))
    return x


@aten("one_hot.default")
def _one_hot(index: Any, classes: int = -1) -> Any:
    """Rows of the identity matrix."""
    if classes < 1:
        raise Unsupported("as many classes as the values say")
    return cast_to(embedding(index, identity_matrix(classes)), torch.int64)


def _filled(sizes: Sequence[int], value: float, dtype: torch.dtype | None) -> Any:
    """A constant repeated to a shape with the batch; any other is evaluated once."""
    if not any(d % BATCH == 0 for d in sizes) or len(sizes) > MAX_RANK or 0 in sizes:
        raise Unsupported("a constant")
    dtype = dtype or torch.get_default_dtype()
    single = (1,) * len(sizes)
    if value and not dtype.is_floating_point:
        return expand(to_shape(number_of(dtype, value), single), encode(tuple(sizes)))
    one = zeros(encode(single), str(dtype).removeprefix("torch."))
    return expand(one if value == 0 else add(one, scalar(float(value))), encode(tuple(sizes)))


def _import_filled(base: str, value: float | None) -> None:
    @aten(f"{base}.default")
    def _at_size(size: Any, *given: Any, dtype: Any = None, **_: Any) -> Any:
        return _filled(size, given[0] if value is None else value, dtype)

    @aten(f"{base}_like.default")
    def _like(x: Any, *given: Any, dtype: Any = None, **_: Any) -> Any:
        return _filled(x.shape, given[0] if value is None else value, dtype or x.dtype)

    @aten(f"new_{base}.default")
    def _new(x: Any, size: Any, *given: Any, dtype: Any = None, **_: Any) -> Any:
        return _filled(size, given[0] if value is None else value, dtype or x.dtype)


_import_filled("zeros", 0.0)
_import_filled("ones", 1.0)
_import_filled("full", None)


@aten("fill.Scalar", "fill.Tensor")
def _fill(x: Any, value: Any) -> Any:
    filler = number_of(x.dtype, value) if isinstance(value, int | float) else cast_to(value, x.dtype)
    return expand_to(to_shape(filler, [1] * len(x.shape)), x.shape)


# -- pointwise ---------------------------------------------------------------------------------------------------


@aten("clamp_min.default")
def _clamp_min(x: Any, low: float) -> Any:
    return IMPORTERS["clamp.default"](x, low, None)


@aten("clamp_max.default")
def _clamp_max(x: Any, high: float) -> Any:
    return IMPORTERS["clamp.default"](x, None, high)


@aten("glu.default")
def _glu(x: Any, dim: int = -1) -> Any:
    _floating(x)
    value, gate = IMPORTERS["chunk.default"](x, 2, dim)
    return mul(value, unary("sigmoid", gate))


@aten("addcmul.default")
def _addcmul(x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    _floating(x)
    product = mul(a, b)
    return add(x, product if value == 1 else mul(product, scalar(float(value))))
