"""Pooling: averages over a whole map are means, and means go before the linear maps that they follow.

A network that averages its last map or its tokens computes its last Linear once instead of at every position.
"""

from typing import Any

from eqsat_deploy.language import (
    SLOTS,
    adaptive_avg_pool2d,
    add,
    avg_pool2d,
    conv2d,
    linear,
    matmul,
    max_pool2d,
    ones,
    permute,
    reduce_,
    replace,
    vec,
    zeros,
)  # fmt: skip
from eqsat_deploy.language.shapes import encode
from eqsat_deploy.rules import Equation, Term, integer, integers, name, rule, shape, window
from eqsat_deploy.rules.bundles import Window
from eqsat_rewrites.layout import CHANNELS_FIRST, CHANNELS_LAST

TRANSPOSED = (0, 1, 2, 3, 4, 6, 5)
OVER_MAP = (0, 0, 0, 0, 0, 1, 1)
MAP: dict[str, Any] = {"h": (2, 3), "w": (2, 3)}
UNPADDED, ANY = integers((0, 0)), integers((1, 1), (7, 7))


@rule("real", both=True, x="n c h w", **MAP)
def adaptive_pool_is_mean(x: Term) -> Equation:
    """An adaptive average pool to 1x1 is the mean over height and width."""
    return adaptive_avg_pool2d(x, (1, 1)), reduce_("mean", x, OVER_MAP)


@rule("real", x="n c h w", stride=ANY, padding=UNPADDED, ceil=integer(0), include_pad=integer(0, 1), **MAP)
def average_pool_of_all_is_mean(
    x: Term, h: Term, w: Term, stride: Term, padding: Term, ceil: Term, include_pad: Term
) -> Equation:
    """An average pool over the whole map is the mean."""
    return avg_pool2d(x, vec(h, w), stride, padding, ceil, include_pad), reduce_("mean", x, OVER_MAP), [
        padding[0] == 0, padding[1] == 0, ceil == 0,
    ]  # fmt: skip


@rule("real", x="~ n p k", column=integers(lambda d: [encode((d["k"], 1))]), dt=name("float64"))
def product_with_ones_is_sum(x: Term, column: Term, dt: Term) -> Equation:
    """A product with a column of ones is a sum: means are written so as well. Engines time both alike, and a reduction
    can be moved."""
    total = reduce_("sum", x, (0, 0, 0, 0, 0, 0, 1))
    return (
        matmul(x, ones(column, dt)),
        total,
        [column[0] == 2, column[6] == 1, shape(x)[0] >= 2, dt != "bool"],
    )


@rule("real", x="~ n p k", column=integers(lambda d: [encode((d["k"], 1))]), dt=name("float64"))
def linear_of_ones_is_sum(x: Term, column: Term, dt: Term) -> Equation:
    """The same as a Linear, which a product with a constant is."""
    weight, none = permute(ones(column, dt), TRANSPOSED), zeros(encode((1,)), dt)
    return linear(x, weight, none), reduce_("sum", x, (0, 0, 0, 0, 0, 0, 1)), [
        column[0] == 2, column[6] == 1, dt != "bool",
    ]  # fmt: skip


@rule("real", x="~ n p k", row=integers(lambda d: [encode((1, d["p"]))]), dt=name("float64"))
def product_of_ones_is_sum(x: Term, row: Term, dt: Term) -> Equation:
    """A product of a row of ones is a sum over the last axis but one."""
    total = reduce_("sum", x, (0, 0, 0, 0, 0, 1, 0))
    return matmul(ones(row, dt), x), total, [row[0] == 2, row[5] == 1, shape(x)[0] >= 2, dt != "bool"]


@rule("exact", x="n c h w", stride=ANY, padding=UNPADDED, ceil=integer(0), **MAP)
def max_pool_of_all_is_maximum(
    x: Term, h: Term, w: Term, stride: Term, padding: Term, ceil: Term
) -> Equation:
    """A max pool over the whole map is the maximum."""
    return max_pool2d(x, vec(h, w), stride, padding, (1, 1), ceil), reduce_("amax", x, OVER_MAP), [
        padding[0] == 0, padding[1] == 0, ceil == 0,
    ]  # fmt: skip


@rule("real", a="~ p k", b="~ p k", axes=integers((0, 0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 0, 1)))
def mean_of_sum(a: Term, b: Term, axes: Term) -> Equation:
    """The mean of a sum of two tensors of one shape is the sum of their means: a residual is averaged by itself."""
    means = add(reduce_("mean", a, axes), reduce_("mean", b, axes))
    return reduce_("mean", add(a, b), axes), means, [shape(a)[i] == shape(b)[i] for i in range(SLOTS)]


@rule("real", x="... p k", weight="o k", b="o", axes=integers((0, 0, 0, 0, 0, 1, 0)))
def mean_of_linear(x: Term, weight: Term, b: Term, axes: Term) -> Equation:
    """The mean over positions of a Linear is the Linear of the mean."""
    return (
        reduce_("mean", linear(x, weight, b), axes),
        linear(reduce_("mean", x, axes), weight, b),
        [axes[6] == 0],
    )


@rule("real", x="n i*groups h w", weight="o i 1 1", b="o", o=(2, 4),
      window=window((1, 1), UNPADDED, integers((1, 1)), integer(1, 2)), **MAP)  # fmt: skip
def mean_of_pointwise_convolution(x: Term, weight: Term, b: Term, window: Window) -> Equation:
    """The mean over height and width of a 1x1 convolution is the convolution of the mean."""
    whole = reduce_("mean", conv2d(x, weight, b, *window), OVER_MAP)
    mean = reduce_("mean", x, OVER_MAP)
    return whole, conv2d(mean, weight, b, *window), window.unpadded


@rule("real", x="~ n h w c", by=name("mean", "sum", "amax"), order=integers(CHANNELS_LAST, CHANNELS_FIRST),
      axes=integers(OVER_MAP, (0, 0, 0, 0, 1, 1, 0), (0, 0, 0, 0, 0, 1, 0)))  # fmt: skip
def reduction_of_permuted(x: Term, by: Term, order: Term, axes: Term) -> Equation:
    """A reduction of a permuted tensor is the permuted reduction along the axes it came from."""
    came_from: Term = (0, 0, 0, 0, 0, 0, 0)
    for slot in range(1, SLOTS):
        came_from = replace(came_from, order[slot], axes[slot])
    return reduce_(by, permute(x, order), axes), permute(reduce_(by, x, came_from), order)
