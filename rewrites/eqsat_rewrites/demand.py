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
    linear,
    permute,
    replace,
    reshape,
    slice_,
    softmax,
    unary,
)  # fmt: skip
from eqsat_deploy.rules import (
    Equation,
    Term,
    Variants,
    commutative,
    function,
    integer,
    integers,
    name,
    number,
    rule,
    rules,
    shape,
    window,
)
from eqsat_deploy.rules.bundles import Window
from eqsat_rewrites.layout import CHANNELS_FIRST, TRANSPOSED
from eqsat_rewrites.movement import LAYER_NORM, LINEAR

FUNCTIONS = name("relu", "gelu", "hardswish")
SLOT = integer(4, 5)
STEPS: dict[str, Any] = {"start": integer(0, 1), "stop": integer(2, 3), "step": integer(1)}
CUT = function(slice_, **STEPS)
"""From `start` to before `stop`, along an axis: `cut(x, slot)`."""
LONG = (3, 4)
LAST_AXIS = Variants({"-linear": LINEAR, "-layer-norm": LAYER_NORM})
MAP: dict[str, Any] = {"x": "~ a b c d", "b": LONG, "c": LONG, "slot": SLOT, "cut": CUT}


@rule("exact", phase="demand", f=FUNCTIONS, **MAP)
def slice_of_unary(x: Term, f: Term, slot: Term, cut: Any) -> Equation:
    """Part of a pointwise function's result needs that part of its input."""
    return cut(unary(f, x), slot), unary(f, cut(x, slot))


@rule("exact", phase="demand", y="~ a b c d", f=name("add", "mul"), **MAP)
def slice_of_binary(x: Term, y: Term, f: Term, slot: Term, cut: Any) -> Equation:
    """Part of a sum needs that part of both operands."""
    # an axis of one may be missing
    return cut(binary(f, x, y), slot), binary(f, cut(x, slot), cut(y, slot)), [
        shape(x)[slot] == shape(y)[slot], shape(x)[slot] != 1,
    ]  # fmt: skip


@rules("exact", phase="demand", y="~ d", f=name("add", "mul"), order=commutative("-right", "-left"), **MAP)
def slice_of_binary_(x: Term, y: Term, f: Term, slot: Term, cut: Any, order: Any) -> Equation:
    """Part of a sum needs that part of one operand alone where the other is broadcast."""
    return cut(binary(f, *order(x, y)), slot), binary(f, *order(cut(x, slot), y)), [
        shape(y)[slot] == 1, shape(x)[slot] != 1,
    ]  # fmt: skip


@rules("real", phase="demand", apply=LAST_AXIS, k=(3, 4), **MAP | {"x": "... b c k"})
def slice_of(x: Term, apply: Any, slot: Term, cut: Any) -> Equation:
    """What acts along the last axis needs, for some positions, those positions."""
    return cut(apply(x), slot), apply(cut(x, slot)), [slot != 6]


@rule("real", phase="demand", x="... b k", weight="o k", bias="o", o=(3, 4), cut=CUT)
def features_of_linear(x: Term, weight: Term, bias: Term, cut: Any) -> Equation:
    """Some features of a Linear need those rows of its weight."""
    rows, part = cut(weight, 5), cut(bias, 6)
    return cut(linear(x, weight, bias), 6), linear(x, rows, part)


@rule("exact", phase="demand", x="~ a b c", a=LONG, b=LONG, c=LONG,
      order=integers(TRANSPOSED, CHANNELS_FIRST), slot=integer(4, 5, 6), cut=CUT)  # fmt: skip
def slice_of_permute(x: Term, order: Term, slot: Term, cut: Any) -> Equation:
    """Part of a permuted tensor is the permuted part."""
    part = cut(x, order[slot])
    return cut(permute(x, order), slot), permute(part, order)


@rule("exact", phase="demand", x="n s k", k=(12,), heads=integers(lambda d: [(4, 1, 1, d["n"], d["s"], 3, 4)]), s=LONG,
      **STEPS)  # fmt: skip
def positions_of_split_heads(
    x: Term, heads: Term, start: Term, stop: Term, step: Term, n: Term, s: Term
) -> Equation:
    """Positions of features split into heads are positions of the features."""
    part = slice_(x, 5, start, stop, step)
    taken = dims(n, (stop - start + step - 1) // step, heads[5], heads[6])
    return slice_(reshape(x, heads), 4, start, stop, step), reshape(part, taken), [
        heads[0] == 4, heads[3] == n, heads[4] == s,
    ]  # fmt: skip


@rule("exact", phase="demand", x="n s h e", s=LONG, **STEPS)
def positions_of_joined_heads(
    x: Term, start: Term, stop: Term, step: Term, n: Term, s: Term, h: Term, e: Term
) -> Equation:
    """Positions of joined heads are the joined heads of those positions."""
    joined = reshape(x, dims(n, s, h * e))
    part = slice_(x, 4, start, stop, step)
    taken = (stop - start + step - 1) // step
    return slice_(joined, 5, start, stop, step), reshape(part, dims(n, taken, h * e))


@rule("real", phase="demand", q="... s e", k="... t e", v="... t f", s=LONG, scale=number(0.5), cut=CUT)
def queries_of_attention(q: Term, k: Term, v: Term, scale: Term, cut: Any) -> Equation:
    """Attention at some positions needs the queries of those positions."""
    part = attention(cut(q, 5), k, v, scale)
    return cut(attention(q, k, v, scale), 5), part


@rule("exact", phase="demand", x="~ a 9", first=integer(0, 1), last=integer(7, 9), start=integer(0, 2),
      stop=integer(3, 5), step=integer(1), slot=integer(6))  # fmt: skip
def slice_of_slice(
    x: Term, slot: Term, first: Term, last: Term, start: Term, stop: Term, step: Term
) -> Equation:
    """Part of a part is a part."""
    outer = slice_(slice_(x, slot, first, last, 1), slot, start, stop, step)
    return outer, slice_(x, slot, first + start, first + stop, step)


@rule("exact", phase="demand", x="~ a b", y="~ c b", a=LONG, c=LONG, **STEPS, slot=integer(5))
def slice_of_concat_left(x: Term, y: Term, slot: Term, start: Term, stop: Term, step: Term) -> Equation:
    """Part of a concatenation that ends within its first tensor is part of that."""
    whole = slice_(concat(slot, x, y), slot, start, stop, step)
    return whole, slice_(x, slot, start, stop, step), [stop <= shape(x)[slot]]


@rule("exact", phase="demand", x="~ n s 1 e", shape_to=integers(lambda d: [(4, 1, 1, d["n"], d["s"], 3, d["e"])]),
      s=LONG, **STEPS, slot=integer(4))  # fmt: skip
def slice_of_expand(x: Term, shape_to: Term, slot: Term, start: Term, stop: Term, step: Term) -> Equation:
    """Part of an expanded tensor, along an axis that was not expanded, is the part expanded."""
    part = slice_(x, slot, start, stop, step)
    narrowed = replace(shape_to, slot, (stop - start + step - 1) // step)
    return (
        slice_(expand(x, shape_to), slot, start, stop, step),
        expand(part, narrowed),
        [shape(x)[slot] == shape_to[slot], shape(x)[slot] != 1],  # an axis of one may be missing
    )


@rule("real", phase="demand", x="n c h w", weight="o c 1 1", b="o", o=(3, 4), cut=CUT,
      window=window(integers((1, 1)), integers((0, 0)), integers((1, 1))))  # fmt: skip
def channels_of_convolution(x: Term, weight: Term, b: Term, window: Window, cut: Any) -> Equation:
    """Some channels of a convolution need those of its filters."""
    filters, bias = cut(weight, 3), cut(b, 6)
    whole = conv2d(x, weight, b, *window)
    return cut(whole, 4), conv2d(x, filters, bias, *window)


@rule("real", phase="demand", x="~ a b c d", b=LONG, along=integer(6), slot=integer(4), cut=CUT)
def slice_of_softmax(x: Term, along: Term, slot: Term, cut: Any) -> Equation:
    """Part of a softmax along another axis needs that part of its input."""
    part = softmax(cut(x, slot), along)
    return cut(softmax(x, along), slot), part, [along != slot]
