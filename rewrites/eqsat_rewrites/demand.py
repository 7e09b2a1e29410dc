"""Demand: what is read is all that is computed. Slices move up towards what they select from.

A vision transformer that reads only its class token computes its last block for one token.
"""

from typing import Any

from eqsat_deploy.language import (
    attention,
    binary,
    concat,
    conv2d,
    dims,
    expand,
    layer_norm,
    linear,
    permute,
    replace,
    reshape,
    slice_,
    softmax,
    unary,
)  # fmt: skip
from eqsat_deploy.rules import Equation, Term, integer, integers, name, number, rule, shape, window
from eqsat_deploy.rules.bundles import Window
from eqsat_rewrites.layout import CHANNELS_FIRST, TRANSPOSED

FUNCTIONS = name("relu", "gelu", "hardswish")
SLOT = integer(4, 5)
SLICE: dict[str, Any] = {"slot": SLOT, "start": integer(0, 1), "stop": integer(2, 3), "step": integer(1)}
LONG = (3, 4)


@rule("exact", phase="demand", x="~ a b c d", b=LONG, c=LONG, f=FUNCTIONS, **SLICE)
def slice_of_unary(x: Term, f: Term, slot: Term, start: Term, stop: Term, step: Term) -> Equation:
    """Part of a pointwise function's result needs that part of its input."""
    return slice_(unary(f, x), slot, start, stop, step), unary(f, slice_(x, slot, start, stop, step))


@rule("exact", phase="demand", x="~ a b c d", y="~ a b c d", b=LONG, c=LONG, f=name("add", "mul"), **SLICE)
def slice_of_binary(x: Term, y: Term, f: Term, slot: Term, start: Term, stop: Term, step: Term) -> Equation:
    """Part of a sum needs that part of both operands."""
    parts = slice_(x, slot, start, stop, step), slice_(y, slot, start, stop, step)
    return (
        slice_(binary(f, x, y), slot, start, stop, step),
        binary(f, *parts),
        [shape(x)[slot] == shape(y)[slot], shape(x)[slot] != 1],  # an axis of one may be missing
    )


@rule("exact", phase="demand", x="~ a b c d", y="~ d", b=LONG, c=LONG, f=name("add", "mul"), **SLICE)
def slice_of_binary_right(
    x: Term, y: Term, f: Term, slot: Term, start: Term, stop: Term, step: Term
) -> Equation:
    """Part of a sum needs that part of the left operand alone where the right one is broadcast."""
    part = slice_(x, slot, start, stop, step)
    return slice_(binary(f, x, y), slot, start, stop, step), binary(f, part, y), [
        shape(y)[slot] == 1, shape(x)[slot] != 1,
    ]  # fmt: skip


@rule("exact", phase="demand", x="~ d", y="~ a b c d", b=LONG, c=LONG, f=name("add", "mul"), **SLICE)
def slice_of_binary_left(
    x: Term, y: Term, f: Term, slot: Term, start: Term, stop: Term, step: Term
) -> Equation:
    """Part of a sum needs that part of the right operand alone where the left one is broadcast."""
    part = slice_(y, slot, start, stop, step)
    return slice_(binary(f, x, y), slot, start, stop, step), binary(f, x, part), [
        shape(x)[slot] == 1, shape(y)[slot] != 1,
    ]  # fmt: skip


@rule("real", phase="demand", x="... b c k", weight="o k", bias="o", b=LONG, c=LONG, **SLICE)
def slice_of_linear(
    x: Term, weight: Term, bias: Term, slot: Term, start: Term, stop: Term, step: Term
) -> Equation:
    """A Linear for some positions needs those positions."""
    part = linear(slice_(x, slot, start, stop, step), weight, bias)
    return slice_(linear(x, weight, bias), slot, start, stop, step), part, [slot != 6]


@rule("real", phase="demand", x="... b k", weight="o k", bias="o", o=(3, 4), start=integer(0, 1), stop=integer(2, 3),
      step=integer(1))  # fmt: skip
def features_of_linear(x: Term, weight: Term, bias: Term, start: Term, stop: Term, step: Term) -> Equation:
    """Some features of a Linear need those rows of its weight."""
    rows, part = slice_(weight, 5, start, stop, step), slice_(bias, 6, start, stop, step)
    return slice_(linear(x, weight, bias), 6, start, stop, step), linear(x, rows, part)


@rule(
    "real",
    phase="demand",
    x="... b c k",
    weight="k",
    bias="k",
    eps=number(1e-5),
    b=LONG,
    c=LONG,
    k=(3, 4),
    **SLICE,
)
def slice_of_layer_norm(
    x: Term, weight: Term, bias: Term, eps: Term, slot: Term, start: Term, stop: Term, step: Term
) -> Equation:
    """LayerNorm of some positions needs those positions."""
    part = layer_norm(slice_(x, slot, start, stop, step), weight, bias, eps)
    return slice_(layer_norm(x, weight, bias, eps), slot, start, stop, step), part, [slot != 6]


@rule("exact", phase="demand", x="~ a b c", a=LONG, b=LONG, c=LONG,
      order=integers(TRANSPOSED, CHANNELS_FIRST), slot=integer(4, 5, 6), start=integer(0, 1),
      stop=integer(2, 3), step=integer(1))  # fmt: skip
def slice_of_permute(x: Term, order: Term, slot: Term, start: Term, stop: Term, step: Term) -> Equation:
    """Part of a permuted tensor is the permuted part."""
    part = slice_(x, order[slot], start, stop, step)
    return slice_(permute(x, order), slot, start, stop, step), permute(part, order)


@rule("exact", phase="demand", x="n s k", k=(12,), heads=integers(lambda d: [(4, 1, 1, d["n"], d["s"], 3, 4)]), s=LONG,
      start=integer(0, 1), stop=integer(2, 3), step=integer(1))  # fmt: skip
def positions_of_split_heads(
    x: Term, heads: Term, start: Term, stop: Term, step: Term, n: Term, s: Term
) -> Equation:
    """Positions of features split into heads are positions of the features."""
    part = slice_(x, 5, start, stop, step)
    taken = dims(n, (stop - start + step - 1) // step, heads[5], heads[6])
    return slice_(reshape(x, heads), 4, start, stop, step), reshape(part, taken), [
        heads[0] == 4, heads[3] == n, heads[4] == s,
    ]  # fmt: skip


@rule("exact", phase="demand", x="n s h e", s=LONG, start=integer(0, 1), stop=integer(2, 3), step=integer(1))
def positions_of_joined_heads(
    x: Term, start: Term, stop: Term, step: Term, n: Term, s: Term, h: Term, e: Term
) -> Equation:
    """Positions of joined heads are the joined heads of those positions."""
    joined = reshape(x, dims(n, s, h * e))
    part = slice_(x, 4, start, stop, step)
    taken = (stop - start + step - 1) // step
    return slice_(joined, 5, start, stop, step), reshape(part, dims(n, taken, h * e))


@rule("real", phase="demand", q="... s e", k="... t e", v="... t f", s=LONG, scale=number(0.5), start=integer(0, 1),
      stop=integer(2, 3), step=integer(1))  # fmt: skip
def queries_of_attention(
    q: Term, k: Term, v: Term, scale: Term, start: Term, stop: Term, step: Term
) -> Equation:
    """Attention at some positions needs the queries of those positions."""
    part = attention(slice_(q, 5, start, stop, step), k, v, scale)
    return slice_(attention(q, k, v, scale), 5, start, stop, step), part


@rule("exact", phase="demand", x="~ a 9", first=integer(0, 1), last=integer(7, 9), start=integer(0, 2),
      stop=integer(3, 5), step=integer(1), slot=integer(6))  # fmt: skip
def slice_of_slice(
    x: Term, slot: Term, first: Term, last: Term, start: Term, stop: Term, step: Term
) -> Equation:
    """Part of a part is a part."""
    outer = slice_(slice_(x, slot, first, last, 1), slot, start, stop, step)
    return outer, slice_(x, slot, first + start, first + stop, step)


@rule("exact", phase="demand", x="~ a b", y="~ c b", a=LONG, c=LONG, start=integer(0, 1), stop=integer(2, 3),
      step=integer(1), slot=integer(5))  # fmt: skip
def slice_of_concat_left(x: Term, y: Term, slot: Term, start: Term, stop: Term, step: Term) -> Equation:
    """Part of a concatenation that ends within its first tensor is part of that."""
    whole = slice_(concat(slot, x, y), slot, start, stop, step)
    return whole, slice_(x, slot, start, stop, step), [stop <= shape(x)[slot]]


@rule("exact", phase="demand", x="~ n s 1 e", shape_to=integers(lambda d: [(4, 1, 1, d["n"], d["s"], 3, d["e"])]),
      s=LONG, start=integer(0, 1), stop=integer(2, 3), step=integer(1), slot=integer(4))  # fmt: skip
def slice_of_expand(x: Term, shape_to: Term, slot: Term, start: Term, stop: Term, step: Term) -> Equation:
    """Part of an expanded tensor, along an axis that was not expanded, is the part expanded."""
    part = slice_(x, slot, start, stop, step)
    narrowed = replace(shape_to, slot, (stop - start + step - 1) // step)
    return (
        slice_(expand(x, shape_to), slot, start, stop, step),
        expand(part, narrowed),
        [shape(x)[slot] == shape_to[slot], shape(x)[slot] != 1],  # an axis of one may be missing
    )


@rule("real", phase="demand", x="n c h w", weight="o c 1 1", b="o", o=(3, 4), start=integer(0, 1), stop=integer(2, 3),
      step=integer(1), window=window(integers((1, 1)), integers((0, 0)), integers((1, 1))))  # fmt: skip
def channels_of_convolution(
    x: Term,
    weight: Term,
    b: Term,
    window: Window,
    start: Term,
    stop: Term,
    step: Term,
) -> Equation:
    """Some channels of a convolution need those of its filters."""
    filters, bias = slice_(weight, 3, start, stop, step), slice_(b, 6, start, stop, step)
    whole = conv2d(x, weight, b, *window)
    return slice_(whole, 4, start, stop, step), conv2d(x, filters, bias, *window)


@rule("real", phase="demand", x="~ a b c d", b=LONG, along=integer(6), slot=integer(4), start=integer(0, 1),
      stop=integer(2, 3), step=integer(1))  # fmt: skip
def slice_of_softmax(x: Term, along: Term, slot: Term, start: Term, stop: Term, step: Term) -> Equation:
    """Part of a softmax along another axis needs that part of its input."""
    part = softmax(slice_(x, slot, start, stop, step), along)
    return slice_(softmax(x, along), slot, start, stop, step), part, [along != slot]
