"""Folding: per-channel scales and shifts go into the weights beside them, and normalization becomes both."""

from typing import Any

from eqsat_deploy.language import (
    add,
    batch_norm,
    binary,
    conv2d,
    conv_transpose2d,
    dims,
    linear,
    mul,
    reshape,
    scalar,
    sub,
    unary,
)  # fmt: skip
from eqsat_deploy.rules import (
    Equation,
    Term,
    constant,
    integer,
    integers,
    name,
    number,
    one_of,
    positive,
    rule,
    runtime,
    shape,
    transposed_window,
    window,
)
from eqsat_deploy.rules.bundles import TransposedWindow, Window

STRIDES = integers((1, 1), (2, 1))
PADDINGS = integers((0, 0), (1, 1))
DILATIONS = integers((1, 1))


def affine_of_batch_norm(w: Term, b: Term, mean: Term, variance: Term, eps: Term) -> Term:
    """Scale and shift of a BatchNorm with stored statistics (Ioffe and Szegedy 2015, algorithm 2)."""
    scale = mul(w, unary("rsqrt", add(variance, scalar(eps))))
    return scale, sub(b, mul(mean, scale))


@rule("real", x="n c h w", weight="c", b="c", mean="c", variance=positive("c"), eps=number(1e-5, 1e-3))
def batch_norm_is_affine(
    x: Term, weight: Term, b: Term, mean: Term, variance: Term, eps: Term, c: Term
) -> Equation:
    """A BatchNorm with stored statistics scales and shifts its channels."""
    scale, shift = affine_of_batch_norm(weight, b, mean, variance, eps)
    per_channel = dims(c, 1, 1)
    affine = add(mul(x, reshape(scale, per_channel)), reshape(shift, per_channel))
    return batch_norm(x, weight, b, mean, variance, eps), affine


@rule("real", x="n c l", weight="c", b="c", mean="c", variance=positive("c"), eps=number(1e-5, 1e-3))
def batch_norm_of_sequence_is_affine(
    x: Term, weight: Term, b: Term, mean: Term, variance: Term, eps: Term, c: Term
) -> Equation:
    """A BatchNorm over the channels of a sequence scales and shifts them."""
    scale, shift = affine_of_batch_norm(weight, b, mean, variance, eps)
    affine = add(mul(x, reshape(scale, dims(c, 1))), reshape(shift, dims(c, 1)))
    return batch_norm(x, weight, b, mean, variance, eps), affine


@rule("real", x="n c", weight="c", b="c", mean="c", variance=positive("c"), eps=number(1e-5, 1e-3))
def batch_norm_of_features_is_affine(
    x: Term, weight: Term, b: Term, mean: Term, variance: Term, eps: Term
) -> Equation:
    """A BatchNorm over features scales and shifts them."""
    scale, shift = affine_of_batch_norm(weight, b, mean, variance, eps)
    return batch_norm(x, weight, b, mean, variance, eps), add(mul(x, scale), shift)


@rule("exact", f=name("add", "mul"))
def constant_operand_last(f: Term, a: Term, b: Term) -> Equation:
    """Sums and products are commutative; constants go last, where the folding rules look for them."""
    return binary(f, a, b), binary(f, b, a), [one_of(f, "add", "mul"), constant(a), runtime(b)]


GROUPS = integer(lambda d: [g for g in (1, 2) if d["o"] % g == 0])
CONVOLUTION: dict[str, Any] = {
    "x": "n i*groups h w", "weight": "o i kh kw", "b": "o", "window": window(STRIDES, PADDINGS, DILATIONS, GROUPS),
    "o": (2, 3, 4), "i": (1, 2), "h": (3, 5), "w": (3, 4), "kh": (1, 3), "kw": (1, 3),
}  # fmt: skip


@rule("real", s="1... o 1 1", **CONVOLUTION)
def scale_after_convolution(x: Term, weight: Term, b: Term, s: Term, o: Term, window: Window) -> Equation:
    """Scaling the channels of a convolution's result scales its filters."""
    scaled = mul(weight, reshape(s, dims(o, 1, 1, 1)))
    folded = conv2d(x, scaled, mul(b, reshape(s, dims(o))), *window)
    return mul(conv2d(x, weight, b, *window), s), folded, [constant(s), shape(s)[0] <= 4]


@rule("real", t="1... o 1 1", **CONVOLUTION)
def shift_after_convolution(x: Term, weight: Term, b: Term, t: Term, o: Term, window: Window) -> Equation:
    """Shifting the channels of a convolution's result shifts its bias."""
    folded = conv2d(x, weight, add(b, reshape(t, dims(o))), *window)
    return add(conv2d(x, weight, b, *window), t), folded, [constant(t), shape(t)[0] <= 4]


TRANSPOSED: dict[str, Any] = CONVOLUTION | {
    "x": "n i h w", "weight": "i o kh kw", "b": "o*groups", "o": (1, 2), "i": (2, 4),
    "window": transposed_window(STRIDES, PADDINGS, integers((0, 0)), DILATIONS, integer(1, 2)),
}  # fmt: skip


@rule("real", s="1... o*groups 1 1", **TRANSPOSED)
def scale_after_transposed_convolution(
    x: Term, weight: Term, b: Term, s: Term, i: Term, o: Term, kh: Term, kw: Term, window: TransposedWindow
) -> Equation:
    """Scaling the channels of a transposed convolution's result scales its filters."""
    groups = window.groups
    grouped = mul(reshape(weight, dims(groups, i // groups, o, kh, kw)), reshape(s, dims(groups, 1, o, 1, 1)))
    scaled, shifted = reshape(grouped, dims(i, o, kh, kw)), mul(b, reshape(s, dims(o * groups)))
    whole = conv_transpose2d(x, weight, b, *window)
    folded = conv_transpose2d(x, scaled, shifted, *window)
    return mul(whole, s), folded, [constant(s), shape(s)[0] <= 4]


@rule("real", t="1... o*groups 1 1", **TRANSPOSED)
def shift_after_transposed_convolution(
    x: Term, weight: Term, b: Term, t: Term, o: Term, window: TransposedWindow
) -> Equation:
    """Shifting the channels of a transposed convolution's result shifts its bias."""
    shifted = add(b, reshape(t, dims(o * window.groups)))
    whole = conv_transpose2d(x, weight, b, *window)
    folded = conv_transpose2d(x, weight, shifted, *window)
    return add(whole, t), folded, [constant(t), shape(t)[0] <= 4]


@rule("real", x="... k", weight="o k", b="o", s="1... o")
def scale_after_linear(x: Term, weight: Term, b: Term, s: Term, o: Term) -> Equation:
    """Scaling the features of a Linear's result scales its rows."""
    folded = linear(x, mul(weight, reshape(s, dims(o, 1))), mul(b, reshape(s, dims(o))))
    return mul(linear(x, weight, b), s), folded, [constant(s), shape(s)[0] <= shape(x)[0]]


@rule("real", x="... k", weight="o k", b="o", t="1... o")
def shift_after_linear(x: Term, weight: Term, b: Term, t: Term, o: Term) -> Equation:
    """Shifting the features of a Linear's result shifts its bias."""
    folded = linear(x, weight, add(b, reshape(t, dims(o))))
    return add(linear(x, weight, b), t), folded, [constant(t), shape(t)[0] <= shape(x)[0]]
