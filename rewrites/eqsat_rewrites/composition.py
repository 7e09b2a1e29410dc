"""Composition: consecutive linear maps are one, where that takes no more arithmetic than the two.

An expansion through few channels (an inverted bottleneck) stays two maps: their product would be larger. The guard
also keeps chains bounded, whose products could be formed in any order.
"""

from typing import Any

from eqsat_deploy.language import add, conv2d, dims, expand, linear, matmul, mul, permute, reshape, zeros
from eqsat_deploy.rules import Equation, Term, constant, integer, integers, name, rule, window
from eqsat_deploy.rules.bundles import Window

SIZES: dict[str, Any] = {"i": (2, 3), "m": (4, 5), "o": (1, 2)}
NO_LARGER: dict[str, Any] = SIZES | {"h": (3, 4), "w": (3, 4)}
POINTWISE = ((1, 1), (0, 0), (1, 1), 1)
WINDOW_LAST, WINDOW_BACK = (0, 1, 2, 3, 5, 6, 4), (0, 1, 2, 3, 6, 4, 5)


def _pays(i: Term, m: Term, o: Term) -> Term:
    """Guard: the product of an (o, m) and an (m, i) map is no larger than the two."""
    return i * o <= m * (i + o)


@rule("real", x="... i", v="m i", b="m", u="o m", d="o", **SIZES)
def linear_of_linear(x: Term, v: Term, b: Term, u: Term, d: Term, i: Term, m: Term, o: Term) -> Equation:
    """Two Linears in a row are one."""
    composed = linear(x, matmul(u, v), linear(b, u, d))
    return linear(linear(x, v, b), u, d), composed, [constant(v), constant(u), _pays(i, m, o)]


@rule("real", x="n i h w", v="m i kh kw", b="m", u="o m 1 1", d="o", kh=(1, 3), kw=(1, 2),
      window=window(integers((1, 1), (2, 1)), integers((0, 0), (1, 1)), integers((1, 1))),
      outer=integers((1, 1), (2, 2)), none=integers((0, 0)), **NO_LARGER)  # fmt: skip
def pointwise_of_convolution(
    x: Term, v: Term, b: Term, u: Term, d: Term, i: Term, m: Term, o: Term, kh: Term, kw: Term, window: Window,
    outer: Term, none: Term,
) -> Equation:  # fmt: skip
    """A 1x1 convolution of a convolution is one convolution; its strides multiply."""
    mixed = reshape(u, dims(o, m))
    weight = reshape(matmul(mixed, reshape(v, dims(m, i * kh * kw))), dims(o, i, kh, kw))
    composed = window._replace(stride=(window.stride[0] * outer[0], window.stride[1] * outer[1]))
    whole = conv2d(conv2d(x, v, b, *window), u, d, outer, none, (1, 1), 1)
    return whole, conv2d(x, weight, linear(b, mixed, d), *composed), [
        constant(v), constant(u), none[0] == 0, none[1] == 0, _pays(i, m, o),
    ]  # fmt: skip


def _of_pointwise(v: Term, u: Term, i: Term, m: Term, o: Term, kh: Term, kw: Term) -> Term:
    """The weight of a convolution (o, m, kh, kw) over a 1x1 one (m, i, 1, 1)."""
    taps = reshape(permute(u, WINDOW_LAST), dims(o * kh * kw, m))
    return permute(reshape(matmul(taps, reshape(v, dims(m, i))), dims(o, kh, kw, i)), WINDOW_BACK)


@rule("real", x="n i h w", v="m i 1 1", b="m", u="o m kh kw", d="o", kh=(2, 3), kw=(1, 2),
      window=window(integers((1, 1), (2, 1)), integers((0, 0)), integers((1, 1))), **NO_LARGER)  # fmt: skip
def convolution_of_pointwise(
    x: Term, v: Term, b: Term, u: Term, d: Term, i: Term, m: Term, o: Term, kh: Term, kw: Term, window: Window
) -> Equation:
    """An unpadded convolution of a 1x1 convolution is one convolution."""
    image = expand(reshape(b, dims(1, m, 1, 1)), dims(1, m, kh, kw))
    bias = reshape(conv2d(image, u, d, *POINTWISE), dims(o))
    whole = conv2d(conv2d(x, v, b, *POINTWISE), u, d, *window)
    return whole, conv2d(x, _of_pointwise(v, u, i, m, o, kh, kw), bias, *window), [
        constant(v), constant(u), *window.unpadded, _pays(i, m, o),
    ]  # fmt: skip


@rule("real", x="n i h w", v="m i 1 1", u="o m kh kw", d="o", kh=(2, 3), kw=(1, 2), kept=name("float64"),
      none=integers(lambda s: [dims(s["m"])]), **NO_LARGER,
      window=window(integers((1, 1), (2, 1)), integers((0, 0), (1, 1)), integers((1, 1))))  # fmt: skip
def convolution_of_pointwise_without_bias(
    x: Term, v: Term, u: Term, d: Term, i: Term, m: Term, o: Term, kh: Term, kw: Term, kept: Term, none: Term,
    window: Window,
) -> Equation:  # fmt: skip
    """A convolution of a 1x1 convolution without bias is one convolution, also where zeros are padded."""
    whole = conv2d(conv2d(x, v, zeros(none, kept), *POINTWISE), u, d, *window)
    return whole, conv2d(x, _of_pointwise(v, u, i, m, o, kh, kw), d, *window), [
        constant(v), constant(u), _pays(i, m, o),
    ]  # fmt: skip


@rule("real", x="n c h w", v="c 1 kh kw", b="c", s="c 1 1 1", t="c", kh=(1, 3), kw=(1, 2),
      window=window(integers((1, 1), (2, 1)), integers((0, 0), (1, 1)), integers((1, 1)), integer(lambda d: [d["c"]])),
      none=integers((0, 0)), c=(2, 3), h=(3, 4), w=(3, 4))  # fmt: skip
def depthwise_pointwise_of_depthwise(
    x: Term, v: Term, b: Term, s: Term, t: Term, c: Term, window: Window, none: Term
) -> Equation:
    """A depthwise 1x1 convolution (a scale and shift per channel) of a depthwise one goes into its weights."""
    whole = conv2d(conv2d(x, v, b, *window), s, t, (1, 1), none, (1, 1), window.groups)
    composed = conv2d(x, mul(v, s), add(mul(b, reshape(s, dims(c))), t), *window)
    return whole, composed, [constant(v), constant(s), window.groups == c, none[0] == 0, none[1] == 0]
