"""Volumes: convolutions of three axes, and pools of them, which are pools of images one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from eqsat_deploy.language.expressions import vec
from eqsat_deploy.language.leaves import zeros_like
from eqsat_deploy.language.linear import (
    conv2d,
    conv_flops,
    conv_size,
    conv_transpose_flops,
    same_padding,
    set_parameters,
    transposed_size,
)  # fmt: skip
from eqsat_deploy.language.movement import to_order, to_shape
from eqsat_deploy.language.operator import Ints, Unsupported, aten, operator
from eqsat_deploy.language.pooling import avg_pool2d, max_pool2d
from eqsat_extraction.kernel import Kind

AXES = range(3)


def _conv3d_module(
    w: Tensor, b: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> nn.Module:
    out, per_group, *kernel = w.shape
    conv = nn.Conv3d(per_group * groups, out, tuple(kernel), stride, padding, dilation, groups, device="meta")  # type: ignore[arg-type]
    return set_parameters(conv, w, b)


@operator(
    Kind.CONVOLUTION, bias="b", channels=0,
    shape=lambda x, w, b, stride, padding, dilation, groups: vec(
        5, 1, x[2], w[2],
        *(conv_size(x[4 + i], w[4 + i], stride[i], padding[i], dilation[i]) for i in AXES),
    ),
    epilogue=True, linear=True, flops=conv_flops, module=_conv3d_module,
)  # fmt: skip
def conv3d(
    x: Tensor, w: Tensor, b: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """3-D convolution, NCDHW, weight (out, in / groups, depth, height, width), bias (out); in float alone."""
    return F.conv3d(x, w, b, stride, padding, dilation, groups)


def _conv_transpose3d_module(
    w: Tensor, b: Tensor, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints, groups: int
) -> nn.Module:
    inner, per_group, *kernel = w.shape
    conv = nn.ConvTranspose3d(
        inner, per_group * groups, tuple(kernel), stride, padding, output_padding, groups, True, dilation,  # type: ignore[arg-type]
        device="meta",
    )  # fmt: skip
    return set_parameters(conv, w, b)


@operator(
    Kind.CONVOLUTION, bias="b", channels=1,
    shape=lambda x, w, b, stride, padding, output_padding, dilation, groups: vec(
        5, 1, x[2], w[3] * groups,
        *(transposed_size(x[4 + i], w[4 + i], stride[i], padding[i], output_padding[i], dilation[i]) for i in AXES),
    ),
    epilogue=True, linear=True, flops=conv_transpose_flops, module=_conv_transpose3d_module,
)  # fmt: skip
def conv_transpose3d(
    x: Tensor, w: Tensor, b: Tensor, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints,
    groups: int,
) -> Tensor:  # fmt: skip
    """Transposed 3-D convolution, weight (in, out / groups, depth, height, width); in float alone."""
    return F.conv_transpose3d(x, w, b, stride, padding, output_padding, groups, dilation)


def _triple(value: int | Sequence[int]) -> Ints:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * 3 if len(values) == 1 else values


def _batched(x: Any) -> None:
    if len(x.shape) != 5:
        raise Unsupported("a volume without batch dimension")


@aten("conv3d.default", "conv3d.padding")
def _conv3d(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """A kernel with an axis of size one convolves images, as many as that axis is long."""
    _batched(x)
    stride, dilation = _triple(stride), _triple(dilation)
    padding = same_padding(padding, w, dilation) if isinstance(padding, str) else _triple(padding)
    bias = zeros_like(w, w.shape[0]) if b is None else b
    single = [i for i in AXES if (w.shape[2 + i], stride[i], padding[i]) == (1, 1, 0)]
    if not single:
        return conv3d(x, w, bias, stride, padding, dilation, groups)
    apart = single[-1]
    kept = [i for i in AXES if i != apart]
    n, c = x.shape[:2]
    depth, rows, columns = (x.shape[2 + i] for i in (apart, *kept))
    images = to_shape(to_order(x, (0, 2 + apart, 1, *(2 + i for i in kept))), [n * depth, c, rows, columns])
    kernel = to_shape(w, [*w.shape[:2], *(w.shape[2 + i] for i in kept)])
    pairs = [tuple(v[i] for i in kept) for v in (stride, padding, dilation)]
    convolved = conv2d(images, kernel, bias, *pairs, groups)
    split = to_shape(convolved, [n, depth, *convolved.shape[1:]])  # batch, depth, channels, rows, columns
    at = {apart: 1} | dict(zip(kept, (3, 4), strict=True))
    return to_order(split, (0, 2, *(at[i] for i in AXES)))


@aten("conv_transpose3d.input")
def _conv_transpose3d(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    _batched(x)
    bias = zeros_like(w, w.shape[1] * groups) if b is None else b
    triples = [_triple(v) for v in (stride, padding, output_padding, dilation)]
    return conv_transpose3d(x, w, bias, *triples, groups)


def _pooled(x: Any, kernel: Ints, stride: Ints, padding: Ints, pool: Any) -> Any:
    """Planes, then along the depth: the maximum, or the mean, of maxima, or means, over windows of one size."""
    n, c, depth, height, width = x.shape
    planes = pool(to_shape(x, [n, c * depth, height, width]), kernel[1:], stride[1:], padding[1:])
    rows, columns = planes.shape[2:]
    stacked = to_shape(planes, [n, c, depth, rows * columns])
    along = pool(stacked, (kernel[0], 1), (stride[0], 1), (padding[0], 0))
    return to_shape(along, [n, c, along.shape[2], rows, columns])


@aten("avg_pool3d.default")
def _avg_pool3d(
    x: Any, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, include_pad: bool = True,
    divisor: int | None = None,
) -> Any:  # fmt: skip
    _batched(x)
    padding = _triple(padding)
    if ceil or divisor is not None or (any(padding) and not include_pad):
        raise Unsupported("means over windows of several sizes")
    return _pooled(
        x, _triple(kernel), _triple(stride or kernel), padding, lambda *window: avg_pool2d(*window, 0, 1)
    )


@aten("max_pool3d.default")
def _max_pool3d(
    x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Any:
    _batched(x)
    if set(_triple(dilation)) != {1}:
        raise Unsupported("a dilated maximum over a volume")
    return _pooled(
        x, _triple(kernel), _triple(stride or kernel), _triple(padding),
        lambda *window: max_pool2d(*window, (1, 1), int(ceil)),
    )  # fmt: skip


@aten("max_pool3d_with_indices.default")
def _max_pool3d_with_indices(x: Any, *args: Any, **kwargs: Any) -> Any:
    return _max_pool3d(x, *args, **kwargs), None
