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
from eqsat_deploy.rules import Equation, Term, constant, integer, integers, name, number, one_of, rule, shape
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


def _wider(padding: Term, by: Term) -> Term:
    return vec(padding[0] + by[5], padding[1] + by[6])


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


@rule("real", x="~ n i*groups h w", weight="o i kh kw", b="o", kh=(1, 3), kw=(1, 3), low=LOW, **CONVOLUTION)
def pad_in_convolution(
    x: Term, weight: Term, b: Term, low: Term, stride: Term, padding: Term, dilation: Term, groups: Term
) -> Equation:
    """A convolution pads by itself what is padded alike on both sides."""
    padded = conv2d(pad(x, low, low, 0.0), weight, b, stride, padding, dilation, groups)
    return padded, conv2d(x, weight, b, stride, _wider(padding, low), dilation, groups), _spatial(low)


@rule("real", x="~ n i*groups h w", weight="o i kh kw", b="o", kh=(1, 3), kw=(1, 3), low=LOW, high=HIGH,
      **CONVOLUTION)  # fmt: skip
def uneven_pad_in_convolution(
    x: Term,
    weight: Term,
    b: Term,
    low: Term,
    high: Term,
    stride: Term,
    padding: Term,
    dilation: Term,
    groups: Term,
) -> Equation:
    """A convolution that pads more on one side pads both alike under a kernel that starts with zeros."""
    padded = conv2d(pad(x, low, high, 0.0), weight, b, stride, padding, dilation, groups)
    zeros = replace(replace(NONE, 5, high[5] - low[5]), 6, high[6] - low[6])
    even = conv2d(x, pad(weight, zeros, NONE, 0.0), b, stride, _wider(padding, high), dilation, groups)
    return padded, even, [
        *_spatial(low, high), constant(weight), dilation[0] == 1, dilation[1] == 1, low != high, low[5] <= high[5],
        low[6] <= high[6],
    ]  # fmt: skip


POOL: dict[str, Any] = {
    "x": "n c h w", "h": (4, 6), "w": (5, 6), "kernel": integers((3, 3), (4, 5)),
    "stride": integers((1, 1), (2, 2), (2, 3)),
}  # fmt: skip


@rule("exact", low=LOW, padding=integers((0, 0), (0, 1)), dilation=ONE, ceil=integer(0, 1), **POOL)
def pad_in_max_pool(
    x: Term, low: Term, kernel: Term, stride: Term, padding: Term, dilation: Term, ceil: Term
) -> Equation:
    """A max pool pads with minus infinity by itself; torch allows it half a window."""
    wider = _wider(padding, low)
    padded = max_pool2d(pad(x, low, low, -inf), kernel, stride, padding, dilation, ceil)
    return padded, max_pool2d(x, kernel, stride, wider, dilation, ceil), [
        *_spatial(low), wider[0] * 2 <= kernel[0], wider[1] * 2 <= kernel[1], ceil == 0,
    ]  # fmt: skip


@rule("exact", low=LOW, high=HIGH, padding=integers((0, 0)), dilation=ONE, **POOL)
def uneven_pad_in_max_pool(
    x: Term,
    low: Term,
    high: Term,
    kernel: Term,
    stride: Term,
    padding: Term,
    dilation: Term,
    h: Term,
    w: Term,
) -> Equation:
    """A max pool that pads more at the end is one that counts its windows rounding up, where the counts agree."""
    wider = _wider(padding, low)
    padded = max_pool2d(pad(x, low, high, -inf), kernel, stride, padding, dilation, 0)
    equal = [
        pool_size(size + low[i + 5] + high[i + 5], kernel[i], stride[i], padding[i], dilation[i], 0)
        - pool_size(size, kernel[i], stride[i], wider[i], dilation[i], 1) == 0
        for i, size in enumerate((h, w))
    ]  # fmt: skip
    return padded, max_pool2d(x, kernel, stride, wider, dilation, 1), [
        *_spatial(low, high), *equal, wider[0] * 2 <= kernel[0], wider[1] * 2 <= kernel[1], low != high,
    ]  # fmt: skip


@rule("exact", low=LOW, high=HIGH, f=name("relu", "sigmoid"), padding=integers((0, 0)), **POOL)
def zeros_under_max_pool(
    x: Term, f: Term, low: Term, high: Term, kernel: Term, stride: Term, padding: Term
) -> Equation:
    """Zeros around what is never negative are no maximum, where every window reads some of the tensor."""
    y = unary(f, x)
    zeros, nothing = (
        max_pool2d(pad(y, low, high, v), kernel, stride, padding, (1, 1), 0) for v in (0.0, -inf)
    )
    return zeros, nothing, [
        *_spatial(low, high), one_of(f, *NOT_NEGATIVE),
        *(padding[i] + side[i + 5] < kernel[i] for side in (low, high) for i in (0, 1)),
    ]  # fmt: skip


@rule("real", low=LOW, include_pad=integer(0, 1), **POOL)
def pad_in_average_pool(x: Term, low: Term, kernel: Term, stride: Term, include_pad: Term) -> Equation:
    """An average pool pads with zeros by itself, and counts them."""
    padding = _wider((0, 0), low)
    padded = avg_pool2d(pad(x, low, low, 0.0), kernel, stride, (0, 0), 0, include_pad)
    return padded, avg_pool2d(x, kernel, stride, padding, 0, 1), [
        *_spatial(low), low[5] * 2 <= kernel[0], low[6] * 2 <= kernel[1],
    ]  # fmt: skip
