"""Pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from eqsat_deploy.language.expressions import minimum, vec
from eqsat_deploy.language.linear import conv_size
from eqsat_deploy.language.operator import Ints, Unsupported, aten, operator
from eqsat_extraction.kernel import Kind


def pool_size(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: Any) -> Any:
    """Output length of a pool; with `ceil` the last window must start inside the padded input (torch's rule)."""
    rounded = conv_size(size + ceil * (stride - 1), kernel, stride, padding, dilation)
    return minimum(rounded, (size + padding - 1) // stride + 1)


def _window(out: Ints, x: Ints, kernel: Ints, *_: Any) -> float:
    total = float(kernel[0] * kernel[1])
    for dimension in out:
        total *= dimension
    return total


@operator(
    Kind.POOL,
    shape=lambda x, kernel, stride, padding, dilation, ceil: vec(
        4, 1, 1, x[3], x[4],
        pool_size(x[5], kernel[0], stride[0], padding[0], dilation[0], ceil),
        pool_size(x[6], kernel[1], stride[1], padding[1], dilation[1], ceil),
    ),
    integer="commute", flops=_window,
)  # fmt: skip
def max_pool2d(x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil: int) -> Tensor:
    """Maximum over windows of an NCHW tensor."""
    return F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode=bool(ceil))


@operator(
    Kind.POOL,
    shape=lambda x, kernel, stride, padding, ceil, include_pad: vec(
        4, 1, 1, x[3], x[4],
        pool_size(x[5], kernel[0], stride[0], padding[0], 1, ceil),
        pool_size(x[6], kernel[1], stride[1], padding[1], 1, ceil),
    ),
    integer="pointwise", flops=_window,
)  # fmt: skip
def avg_pool2d(x: Tensor, kernel: Ints, stride: Ints, padding: Ints, ceil: int, include_pad: int) -> Tensor:
    """Average over windows of an NCHW tensor."""
    return F.avg_pool2d(x, kernel, stride, padding, bool(ceil), bool(include_pad))


@operator(
    Kind.REDUCTION,
    shape=lambda x, size: vec(4, 1, 1, x[3], x[4], size[0], size[1]),
    integer="pointwise",
    flops=lambda out, x, size: float(x[0] * x[1] * x[2] * x[3]),
)
def adaptive_avg_pool2d(x: Tensor, size: Ints) -> Tensor:
    """Average over a grid of `size` windows that cover an NCHW tensor."""
    return F.adaptive_avg_pool2d(x, (size[0], size[1]))


def _pair(value: int | Sequence[int]) -> Ints:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * 2 if len(values) == 1 else values


def _image(x: Any) -> None:
    if len(x.shape) != 4:
        raise Unsupported("a pool without batch dimension")


def _rounds_up(x: Any, window: Sequence[Ints], ceil: bool) -> int:
    """Whether rounding sizes up makes a difference: engines have faster pools, and INT8 ones, that round down."""
    kernel, stride, padding, dilation = window
    axes = list(zip(x.shape[2:], kernel, stride, padding, dilation, strict=True))
    return int(
        ceil and any(pool_size(n, k, s, p, d, 0) != pool_size(n, k, s, p, d, 1) for n, k, s, p, d in axes)
    )


@aten("max_pool2d.default")
def _max_pool2d(
    x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Any:
    _image(x)
    window = (_pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation))
    return max_pool2d(x, *window, _rounds_up(x, window, ceil))


@aten("avg_pool2d.default")
def _avg_pool2d(
    x: Any, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, include_pad: bool = True,
    divisor: int | None = None,
) -> Any:  # fmt: skip
    _image(x)
    if divisor is not None:
        raise Unsupported("an average pool with its own divisor")
    window = (_pair(kernel), _pair(stride or kernel), _pair(padding))
    return avg_pool2d(x, *window, _rounds_up(x, (*window, (1, 1)), ceil), int(include_pad))


@aten("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
def _adaptive_avg_pool2d(x: Any, size: Sequence[int | None]) -> Any:
    _image(x)
    return adaptive_avg_pool2d(x, tuple(s or d for s, d in zip(_pair(size), x.shape[2:], strict=True)))  # type: ignore[arg-type]
