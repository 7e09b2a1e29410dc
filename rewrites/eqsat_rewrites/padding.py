"""Padding: pads compose, move towards the convolutions and pools that read them, and are absorbed there."""

from math import inf
from typing import Any

from eqsat_deploy.language import (
    avg_pool2d,
    conv2d,
    max_pool2d,
    mul,
    pad,
    replace,
    slice_,
    unary,
    vec,
)  # fmt: skip
from eqsat_deploy.language.pooling import pool_size
from eqsat_deploy.language.shapes import SLOTS
from eqsat_deploy.rules import (
    Equation,
    Term,
    average_pool,
    constant,
    integer,
    integers,
    max_pool,
    name,
    number,
    one_of,
    rule,
    shape,
)
from eqsat_deploy.rules.bundles import AveragePool, MaxPool, Window
from eqsat_rewrites.folding import CONVOLUTION

NONE = (0,) * SLOTS
LOW = integers((0, 0, 0, 0, 0, 1, 1), (0, 0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 1, 0))
HIGH = integers((0, 0, 0, 0, 0, 1, 2), (0, 0, 0, 0, 0, 1, 1))
ONE = integers((1, 1))
# Functions with f(0) = 0, and functions that are never negative.
KEEPING_ZERO = (
    "relu",
    "gelu",
    "gelu_tanh",
    "hardswish",
    "silu",
    "mish",
    "tanh",
    "clamp(0.0,6.0)",
    "abs",
    "sqrt",
)
NOT_NEGATIVE = ("relu", "clamp(0.0,6.0)", "sigmoid", "hardsigmoid", "softplus(1.0,20.0)", "abs")


def _spatial(*widths: Term) -> list[Any]:
    """Guards: neither the batch nor the channels of an NCHW tensor are padded."""
    return [w[slot] == 0 for w in widths for slot in (3, 4)]


def _wider(window: Any, by: Term) -> Any:
    """A window, or a pool, that pads as much more."""
    return window._replace(padding=vec(window.padding[0] + by[5], window.padding[1] + by[6]))


@rule("exact", x="~ n a b", low=LOW, high=HIGH, first=LOW, last=HIGH, value=number(0.0, 1.5))
def pad_of_pad(x: Term, low: Term, high: Term, first: Term, last: Term, value: Term) -> Equation:
    """Two pads with one value are one."""
    widths = (vec(*(a[i] + b[i] for i in range(SLOTS))) for a, b in ((low, first), (high, last)))
    return pad(pad(x, low, high, value), first, last, value), pad(x, *widths, value)


@rule("exact", x="~ a b", value=number(0.0, 1.5))
def pad_by_nothing(x: Term, value: Term) -> Equation:
    """A pad by nothing is the tensor."""
    return pad(x, NONE, NONE, value), x


@rule("exact", x="~ n a b", low=LOW, high=HIGH, value=number(0.0, 1.5), slot=integer(5, 6), start=integer(1),
      stop=integer(3), a=(4,), b=(4,))  # fmt: skip
def slice_of_pad(
    x: Term, low: Term, high: Term, value: Term, slot: Term, start: Term, stop: Term
) -> Equation:
    """What is cut out of the middle of a padded tensor was never padded along that axis."""
    part = slice_(x, slot, start - low[slot], stop - low[slot], 1)
    kept = pad(part, replace(low, slot, 0), replace(high, slot, 0), value)
    return slice_(pad(x, low, high, value), slot, start, stop, 1), kept, [
        start >= low[slot], stop <= low[slot] + shape(x)[slot],
    ]  # fmt: skip


@rule("exact", x="~ n a b", low=LOW, high=HIGH, f=name("relu", "gelu", "hardswish"))
def unary_of_pad(x: Term, low: Term, high: Term, f: Term) -> Equation:
    """A function that keeps zero keeps the zeros around a tensor."""
    return unary(f, pad(x, low, high, 0.0)), pad(unary(f, x), low, high, 0.0), [one_of(f, *KEEPING_ZERO)]


@rule("exact", x="n c h w", s="1... c 1 1", low=LOW, high=HIGH)
def scale_of_pad(x: Term, s: Term, low: Term, high: Term) -> Equation:
    """Scaling channels keeps the zeros around them."""
    return mul(pad(x, low, high, 0.0), s), pad(mul(x, s), low, high, 0.0), [
        *_spatial(low, high), constant(s), shape(s)[0] <= 4,
    ]  # fmt: skip


@rule("real", low=LOW, **CONVOLUTION | {"x": "~ n i*groups h w"})
def pad_in_convolution(x: Term, weight: Term, b: Term, low: Term, window: Window) -> Equation:
    """A convolution pads by itself what is padded alike on both sides."""
    padded = conv2d(pad(x, low, low, 0.0), weight, b, *window)
    return padded, conv2d(x, weight, b, *_wider(window, low)), _spatial(low)


@rule("real", low=LOW, high=HIGH, **CONVOLUTION | {"x": "~ n i*groups h w"})
def uneven_pad_in_convolution(
    x: Term, weight: Term, b: Term, low: Term, high: Term, window: Window
) -> Equation:
    """A convolution that pads more on one side pads both alike under a kernel that starts with zeros."""
    padded = conv2d(pad(x, low, high, 0.0), weight, b, *window)
    zeros = replace(replace(NONE, 5, high[5] - low[5]), 6, high[6] - low[6])
    even = conv2d(x, pad(weight, zeros, NONE, 0.0), b, *_wider(window, high))
    return padded, even, [
        *_spatial(low, high), constant(weight), *window.dense, low != high, low[5] <= high[5],
        low[6] <= high[6],
    ]  # fmt: skip


MAP: dict[str, Any] = {"x": "n c h w", "h": (4, 6), "w": (5, 6)}
KERNELS, STRIDES, UNPADDED = integers((3, 3), (4, 5)), integers((1, 1), (2, 2), (2, 3)), integers((0, 0))


def _allowed(pool: MaxPool | AveragePool) -> list[Any]:
    """Guards: torch allows a pool to pad half a window."""
    return [pool.padding[0] * 2 <= pool.kernel[0], pool.padding[1] * 2 <= pool.kernel[1]]


@rule("exact", low=LOW, pool=max_pool(KERNELS, STRIDES, integers((0, 0), (0, 1)), ONE, integer(0, 1)), **MAP)
def pad_in_max_pool(x: Term, low: Term, pool: MaxPool) -> Equation:
    """A max pool pads with minus infinity by itself."""
    wider = _wider(pool, low)
    padded = max_pool2d(pad(x, low, low, -inf), *pool)
    return padded, max_pool2d(x, *wider), [*_spatial(low), *_allowed(wider), pool.ceil == 0]


@rule("exact", low=LOW, high=HIGH, pool=max_pool(KERNELS, STRIDES, UNPADDED, ONE, 0), **MAP)
def uneven_pad_in_max_pool(x: Term, low: Term, high: Term, pool: MaxPool, h: Term, w: Term) -> Equation:
    """A max pool that pads more at the end is one that counts its windows rounding up, where the counts agree."""
    wider = _wider(pool, low)._replace(ceil=1)
    equal = [
        pool_size(size + low[i + 5] + high[i + 5], pool.kernel[i], pool.stride[i], pool.padding[i], pool.dilation[i], 0)
        - pool_size(size, pool.kernel[i], pool.stride[i], wider.padding[i], pool.dilation[i], 1) == 0
        for i, size in enumerate((h, w))
    ]  # fmt: skip
    return max_pool2d(pad(x, low, high, -inf), *pool), max_pool2d(x, *wider), [
        *_spatial(low, high), *equal, *_allowed(wider), low != high,
    ]  # fmt: skip


@rule(
    "exact", low=LOW, high=HIGH, f=name("relu", "sigmoid"), pool=max_pool(KERNELS, STRIDES, UNPADDED), **MAP
)
def zeros_under_max_pool(x: Term, f: Term, low: Term, high: Term, pool: MaxPool) -> Equation:
    """Zeros around what is never negative are no maximum, where every window reads some of the tensor."""
    zeros, nothing = (max_pool2d(pad(unary(f, x), low, high, value), *pool) for value in (0.0, -inf))
    return zeros, nothing, [
        *_spatial(low, high), one_of(f, *NOT_NEGATIVE),
        *(pool.padding[i] + side[i + 5] < pool.kernel[i] for side in (low, high) for i in (0, 1)),
    ]  # fmt: skip


@rule("real", low=LOW, pool=average_pool(KERNELS, STRIDES, (0, 0), 0, integer(0, 1)), **MAP)
def pad_in_average_pool(x: Term, low: Term, pool: AveragePool) -> Equation:
    """An average pool pads with zeros by itself, and counts them."""
    wider = _wider(pool, low)._replace(include_pad=1)
    return avg_pool2d(pad(x, low, low, 0.0), *pool), avg_pool2d(x, *wider), [*_spatial(low), *_allowed(wider)]
