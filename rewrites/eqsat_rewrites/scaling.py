"""Scaling: scales and shifts before linear operators go into their weights, and pass through pools and reshapes.

What precedes a convolution or Linear is folded as exactly as what follows it: a scale into the input channels of the
weights, a shift into the bias. Around zero padding a shift does not reach the border, so there it becomes a constant
map that is added to the result.
"""

from typing import Any

from eqsat_deploy.language import (
    adaptive_avg_pool2d,
    add,
    avg_pool2d,
    binary,
    channel_norm,
    conv2d,
    conv_transpose2d,
    dims,
    expand,
    layer_norm,
    linear,
    max_pool2d,
    mul,
    reduce_,
    reshape,
    scalar,
    standardize,
    sub,
    unary,
)  # fmt: skip
from eqsat_deploy.rules import (
    Equation,
    Term,
    average_pool,
    constant,
    integer,
    integers,
    max_pool,
    name,
    nonnegative,
    number,
    one_of,
    rule,
    runtime,
    shape,
    starts_with,
    transposed_window,
    window,
)
from eqsat_deploy.rules.bundles import AveragePool, MaxPool, TransposedWindow, Window

STRIDES, DILATIONS, GROUPS = integers((1, 1), (2, 1)), integers((1, 1), (1, 2)), integer(1, 2)
PADDED, UNPADDED, EITHER = integers((1, 1), (0, 1), (1, 0)), integers((0, 0)), integers((0, 0), (1, 1))
CONVOLUTION: dict[str, Any] = {
    "x": "n i*groups h w", "weight": "o i kh kw", "b": "o", "window": window(STRIDES, EITHER, DILATIONS, GROUPS),
    "kh": (1, 3), "kw": (1, 2), "h": (3, 5), "w": (3, 4), "o": (2, 4), "i": (1, 2),
}  # fmt: skip


@rule("exact", x="~ a b")
def sum_with_zero(x: Term) -> Equation:
    """Adding the number zero changes nothing (a missing branch, written as 0)."""
    return add(x, scalar(0.0)), x


@rule("exact", x="~ a b")
def product_with_one(x: Term) -> Equation:
    """Multiplying by the number one changes nothing (a dropped path, scaled by its probability of 1)."""
    return mul(x, scalar(1.0)), x


@rule("real")
def subtracted_constant_is_added(x: Term, t: Term) -> Equation:
    """Subtracting a constant adds its negative, so that one set of rules folds both."""
    return sub(x, t), add(x, unary("neg", t)), [constant(t), runtime(x)]


@rule("real")
def division_by_constant_is_product(x: Term, s: Term) -> Equation:
    """Dividing by a constant multiplies by its reciprocal."""
    return binary("div", x, s), mul(x, unary("reciprocal", s)), [constant(s), runtime(x)]


@rule("real", s="1...", **CONVOLUTION)
def number_after_convolution(x: Term, weight: Term, b: Term, s: Term, window: Window) -> Equation:
    """Scaling a convolution's result by a number scales its weights."""
    k = reshape(s, dims())
    folded = conv2d(x, mul(weight, k), mul(b, k), *window)
    return mul(conv2d(x, weight, b, *window), s), folded, [constant(s), shape(s)[0] <= 4]


@rule("real", s="1...", **CONVOLUTION)
def number_before_convolution(x: Term, weight: Term, b: Term, s: Term, window: Window) -> Equation:
    """Scaling what a convolution reads by a number scales its filters."""
    scaled = mul(weight, reshape(s, dims()))
    whole = conv2d(mul(x, s), weight, b, *window)
    return whole, conv2d(x, scaled, b, *window), [constant(s)]


@rule("real", x="... k", weight="o k", b="o", s="1...")
def number_after_linear(x: Term, weight: Term, b: Term, s: Term) -> Equation:
    """Scaling a Linear's result by a number (attention's 1 / sqrt(d) on the query) scales its weight and bias."""
    k = reshape(s, dims())
    return mul(linear(x, weight, b), s), linear(x, mul(weight, k), mul(b, k)), [
        constant(s), shape(s)[0] <= shape(x)[0],
    ]  # fmt: skip


@rule("real", x="... k", weight="o k", b="o", s="1...")
def number_before_linear(x: Term, weight: Term, b: Term, s: Term) -> Equation:
    """Scaling what a Linear reads by a number scales its weight."""
    return linear(mul(x, s), weight, b), linear(x, mul(weight, reshape(s, dims())), b), [
        constant(s), shape(s)[0] <= shape(x)[0],
    ]  # fmt: skip


@rule("real", s="1... i*groups 1 1", **CONVOLUTION)
def scale_before_convolution(
    x: Term, weight: Term, b: Term, s: Term, o: Term, i: Term, kh: Term, kw: Term, window: Window
) -> Equation:
    """Scaling the channels that a convolution reads scales the input channels of its filters."""
    groups = window.groups
    by_group = reshape(weight, dims(groups, o // groups, i, kh, kw))
    scaled = reshape(mul(by_group, reshape(s, dims(groups, 1, i, 1, 1))), dims(o, i, kh, kw))
    whole = conv2d(mul(x, s), weight, b, *window)
    return whole, conv2d(x, scaled, b, *window), [constant(s)]


@rule("real", t="1... i*groups 1 1", **CONVOLUTION | {"window": window(STRIDES, UNPADDED, DILATIONS, GROUPS)})
def shift_before_convolution(
    x: Term, weight: Term, b: Term, t: Term, o: Term, i: Term, kh: Term, kw: Term, window: Window
) -> Equation:
    """Shifting the channels that an unpadded convolution reads shifts its bias by what it makes of the shift."""
    rows, columns = window.dilation[0] * (kh - 1) + 1, window.dilation[1] * (kw - 1) + 1
    image = expand(reshape(t, dims(1, i * window.groups, 1, 1)), dims(1, i * window.groups, rows, columns))
    bias = reshape(conv2d(image, weight, b, (1, 1), (0, 0), window.dilation, window.groups), dims(o))
    whole = conv2d(add(x, t), weight, b, *window)
    return whole, conv2d(x, weight, bias, *window), [
        constant(t), constant(weight), shape(t)[0] > 0, *window.unpadded,
    ]  # fmt: skip


@rule("real", t="1... i*groups 1 1", **CONVOLUTION | {"window": window(STRIDES, PADDED, DILATIONS, GROUPS)})
def shift_before_padded_convolution(
    x: Term, weight: Term, b: Term, t: Term, i: Term, h: Term, w: Term, window: Window
) -> Equation:
    """Where zeros are padded, a shift before a convolution is a constant map after it, smaller at the border."""
    image = expand(reshape(t, dims(1, i * window.groups, 1, 1)), dims(1, i * window.groups, h, w))
    shift = conv2d(image, weight, mul(b, scalar(0.0)), *window)
    whole = conv2d(add(x, t), weight, b, *window)
    return whole, add(conv2d(x, weight, b, *window), shift), [
        constant(t), constant(weight), constant(b), shape(t)[0] > 0, window.padding[0] + window.padding[1] > 0,
    ]  # fmt: skip


TRANSPOSED: dict[str, Any] = CONVOLUTION | {
    "x": "n i h w", "weight": "i o kh kw", "b": "o*groups", "o": (1, 2), "i": (2, 4),
    "window": transposed_window(STRIDES, integers((0, 0), (1, 0)), integers((0, 0)), integers((1, 1)), GROUPS),
}  # fmt: skip


@rule("real", s="1... i 1 1", **TRANSPOSED)
def scale_before_transposed_convolution(
    x: Term, weight: Term, b: Term, s: Term, i: Term, window: TransposedWindow
) -> Equation:
    """Scaling the channels that a transposed convolution reads scales the input channels of its filters."""
    scaled = mul(weight, reshape(s, dims(i, 1, 1, 1)))
    whole = conv_transpose2d(mul(x, s), weight, b, *window)
    return whole, conv_transpose2d(x, scaled, b, *window), [constant(s)]


@rule("real", x="... k", weight="o k", b="o", s="1... k")
def scale_before_linear(x: Term, weight: Term, b: Term, s: Term, k: Term) -> Equation:
    """Scaling the features that a Linear reads scales the columns of its weight."""
    return linear(mul(x, s), weight, b), linear(x, mul(weight, reshape(s, dims(1, k))), b), [
        constant(s), shape(s)[0] <= shape(x)[0],
    ]  # fmt: skip


@rule("real", x="... k", weight="o k", b="o", t="1... k")
def shift_before_linear(x: Term, weight: Term, b: Term, t: Term, k: Term) -> Equation:
    """Shifting the features that a Linear reads shifts its bias by what it makes of the shift."""
    return linear(add(x, t), weight, b), linear(x, weight, linear(reshape(t, dims(k)), weight, b)), [
        constant(t), constant(weight), shape(t)[0] > 0, shape(t)[0] <= shape(x)[0],
    ]  # fmt: skip


@rule("real", x="... k", g="k", t="k", weight="o k", b="o", k=(2, 3, 5), eps=number(1e-5))
def affine_of_layer_norm_in_linear(
    x: Term, g: Term, t: Term, weight: Term, b: Term, k: Term, eps: Term
) -> Equation:
    """The affine part of a LayerNorm goes into the Linear that reads it (Ba et al. 2016, equation 4)."""
    scaled, shifted = mul(weight, reshape(g, dims(1, k))), linear(t, weight, b)
    return linear(layer_norm(x, g, t, eps), weight, b), linear(standardize(x, 6, eps), scaled, shifted), [
        constant(g), constant(t), constant(weight),
    ]  # fmt: skip


@rule("real", x="n c h w", g="c", t="c", weight="o c kh kw", b="o", c=(2, 3, 5), h=(3, 4), w=(3, 4), kh=(1, 2),
      kw=(1, 2), eps=number(1e-5), window=window(integers((1, 1), (2, 2)), UNPADDED))  # fmt: skip
def affine_of_channel_norm_in_convolution(
    x: Term, g: Term, t: Term, weight: Term, b: Term, o: Term, c: Term, kh: Term, kw: Term, eps: Term, window: Window,
) -> Equation:  # fmt: skip
    """The affine part of a normalization over channels goes into the unpadded convolution that reads it."""
    image = expand(reshape(t, dims(1, c, 1, 1)), dims(1, c, kh, kw))
    bias = reshape(conv2d(image, weight, b, (1, 1), (0, 0), (1, 1), 1), dims(o))
    scaled = mul(weight, reshape(g, dims(1, c, 1, 1)))
    whole = conv2d(channel_norm(x, g, t, eps), weight, b, *window)
    return whole, conv2d(standardize(x, 4, eps), scaled, bias, *window), [
        constant(g), constant(t), constant(weight), *window.unpadded,
    ]  # fmt: skip


SCALE, SHIFT = "mul", "add"
SCALE_OR_SHIFT = name(SCALE, SHIFT)


@rule(
    "real", both=True, x="n c h w", t="1... c 1 1", f=SCALE_OR_SHIFT, size=integers((1, 1), (2, 1)), h=(2, 3)
)
def per_channel_through_adaptive_pool(x: Term, t: Term, f: Term, size: Term) -> Equation:
    """Averages of scaled or shifted channels are scaled or shifted averages."""
    return binary(f, adaptive_avg_pool2d(x, size), t), adaptive_avg_pool2d(binary(f, x, t), size), [
        constant(t), shape(t)[0] <= 4, one_of(f, SCALE, SHIFT),
    ]  # fmt: skip


KERNELS, FLAG = integers((2, 2), (3, 2)), integer(0, 1)
POOLED: dict[str, Any] = {"x": "n c h w", "h": (4, 5), "w": (4, 5)}
MAX_POOL: dict[str, Any] = POOLED | {"pool": max_pool(KERNELS, STRIDES, EITHER, integers((1, 1)), FLAG)}


@rule("real", both=True, s="1... c 1 1", pool=average_pool(KERNELS, STRIDES, EITHER, FLAG, FLAG), **POOLED)
def scale_through_average_pool(x: Term, s: Term, pool: AveragePool) -> Equation:
    """Averages of scaled channels are scaled averages."""
    pooled, scaled = (avg_pool2d(y, *pool) for y in (x, mul(x, s)))
    return mul(pooled, s), scaled, [constant(s), shape(s)[0] <= 4]


@rule("real", both=True, t="1... c 1 1", pool=average_pool(KERNELS, STRIDES, UNPADDED, FLAG, FLAG), **POOLED)
def shift_through_average_pool(x: Term, t: Term, pool: AveragePool) -> Equation:
    """Averages of shifted channels are shifted averages, where no zeros are counted."""
    pooled, shifted = (avg_pool2d(y, *pool) for y in (x, add(x, t)))
    return (
        add(pooled, t),
        shifted,
        [constant(t), shape(t)[0] <= 4, pool.padding[0] == 0, pool.padding[1] == 0],
    )


@rule("real", s="1... c 1 1", **MAX_POOL)
def scale_after_max_pool(x: Term, s: Term, pool: MaxPool) -> Equation:
    """A scale that is not negative keeps the order, so maxima of scaled values are scaled maxima."""
    scaled = max_pool2d(mul(x, s), *pool)
    return mul(max_pool2d(x, *pool), s), scaled, [constant(s), nonnegative(s), shape(s)[0] <= 4]


@rule("real", k=number(0.5, 3.0), **MAX_POOL)
def positive_factor_after_max_pool(x: Term, k: Term, pool: MaxPool) -> Equation:
    """A positive factor keeps the order, so maxima of scaled values are scaled maxima."""
    scaled = max_pool2d(mul(x, scalar(k)), *pool)
    return mul(max_pool2d(x, *pool), scalar(k)), scaled, [k > 0.0]


@rule("exact", t="1... c 1 1", **MAX_POOL)
def shift_after_max_pool(x: Term, t: Term, pool: MaxPool) -> Equation:
    """Maxima of shifted channels are shifted maxima: a max pool pads with minus infinity."""
    shifted = max_pool2d(add(x, t), *pool)
    return add(max_pool2d(x, *pool), t), shifted, [constant(t), shape(t)[0] <= 4]


@rule("real", x="~ a b", s="~ b")
def scale_after_relu(x: Term, s: Term) -> Equation:
    """A scale that is not negative passes through ReLU, towards the weights before it."""
    return mul(unary("relu", x), s), unary("relu", mul(x, s)), [constant(s), nonnegative(s)]


@rule("real", x="~ a b", s="~ b", f=name("leaky_relu(0.1)", "leaky_relu(0.01)"))
def scale_after_leaky_relu(x: Term, f: Term, s: Term) -> Equation:
    """A scale that is not negative passes through a leaky ReLU of any slope."""
    return (
        mul(unary(f, x), s),
        unary(f, mul(x, s)),
        [constant(s), nonnegative(s), starts_with(f, "leaky_relu(")],
    )


MEANS = integers((0, 0, 0, 0, 0, 1, 1), (0, 0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 1, 0))


@rule("real", both=True, x="n c h w", t="1... c 1 1", f=SCALE_OR_SHIFT, axes=MEANS)
def per_channel_through_mean(x: Term, t: Term, f: Term, axes: Term) -> Equation:
    """Means over height and width of scaled or shifted channels are scaled or shifted means."""
    return binary(f, reduce_("mean", x, axes), t), reduce_("mean", binary(f, x, t), axes), [
        constant(t), shape(t)[0] <= 4, axes[3] == 0, axes[4] == 0, one_of(f, SCALE, SHIFT),
    ]  # fmt: skip


@rule("exact", x="... o", t="o", f=SCALE_OR_SHIFT, target=integers(lambda d: [dims(1, 2, 3, d["o"])]))
def per_feature_through_reshape(x: Term, t: Term, f: Term, target: Term, o: Term) -> Equation:
    """Scaling or shifting features does not depend on how positions are arranged."""
    return binary(f, reshape(x, target), t), reshape(binary(f, x, t), target), [
        constant(t), target[6] == o, target[0] > 0, one_of(f, SCALE, SHIFT),
    ]  # fmt: skip
