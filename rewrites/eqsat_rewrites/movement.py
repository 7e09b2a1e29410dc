"""Movement: reshapes, permutes, slices, concats, expands and rolls compose, cancel, and pass through what does not
see them. Those that cannot cancel move towards the outputs, so that two of them meet."""

from typing import Any

from eqsat_deploy.language import (
    binary,
    concat,
    dims,
    expand,
    gather,
    layer_norm,
    linear,
    permute,
    replace,
    reshape,
    roll,
    softmax,
    unary,
)  # fmt: skip
from eqsat_deploy.language.expressions import Variable
from eqsat_deploy.language.shapes import encode, permutation
from eqsat_deploy.rules import (
    Equation,
    Relational,
    Term,
    Variants,
    function,
    integer,
    integers,
    name,
    number,
    rule,
    rules,
    shape,
)
from eqsat_deploy.rules.facts import Fired, Match, Pattern, Union

FUNCTIONS = name("relu", "gelu", "hardswish", "sigmoid")
TARGETS = integers(lambda d: [encode((d["n"], 24)), encode((d["n"], 4, 6)), encode((d["n"], 2, 3, 4))])
ORDERS = integers(permutation((0, 2, 1)), permutation((1, 0, 2)), permutation((2, 0, 1)))


@rule("exact", x="~ n 2 3 4", first=TARGETS, second=TARGETS)
def reshape_of_reshape(x: Term, first: Term, second: Term) -> Equation:
    """Of two reshapes only the last one matters."""
    return reshape(reshape(x, first), second), reshape(x, second)


@rule("exact")
def reshape_to_own_shape(x: Term) -> Equation:
    """A reshape to the shape a tensor has is the tensor."""
    return reshape(x, shape(x)), x


@rule("exact", x="~ a b c", first=ORDERS, second=ORDERS)
def permute_of_permute(x: Term, first: Term, second: Term) -> Equation:
    """Two permutations compose."""
    return permute(permute(x, first), second), permute(x, gather(first, second))


@rule("exact")
def permute_in_order(x: Term) -> Equation:
    """The identity permutation is the tensor."""
    return permute(x, (0, 1, 2, 3, 4, 5, 6)), x


RESHAPE, PERMUTE = function(reshape, target=TARGETS), function(permute, order=ORDERS)
ARRANGED = Variants({"-through-reshape": RESHAPE, "-through-permute": PERMUTE})


@rules("exact", x="~ n 2 3 4", f=FUNCTIONS, arranged=ARRANGED, both=True)
def _unary(x: Term, f: Term, arranged: Any) -> Equation:
    """A pointwise function sees neither the shape nor the order of axes."""
    return unary(f, arranged(x)), arranged(unary(f, x))


E, X, Y, ORDER = Variable("T", "e"), Variable("T", "x"), Variable("T", "y"), Variable("VI", "order")
injective_permute = Relational(
    "injective-permute", "movement", "exact", "rewrites",
    "Tensors that are equal once permuted alike are equal. "
    "Else a residual sum has as many classes as its terms have, multiplied, and every block multiplies them again.",
    "is an implication and no equation: a permute has an inverse, so what it makes equal was equal before",
    (((Match(E, Pattern(permute, (X, ORDER))), Match(E, Pattern(permute, (Y, ORDER))), X != Y),
      (Union(X, Y), Fired(X))),),
)  # fmt: skip


@rule("exact", x="n c 1 1")
def channels_last_of_one_pixel(x: Term, n: Term, c: Term) -> Equation:
    """Of a single pixel, channels last is a view of channels first."""
    return permute(x, (0, 1, 2, 3, 5, 6, 4)), reshape(x, dims(n, 1, 1, c))


@rule("exact", x="n 1 1 c")
def channels_first_of_one_pixel(x: Term, n: Term, c: Term) -> Equation:
    """Of a single pixel, channels first is a view of channels last."""
    return permute(x, (0, 1, 2, 3, 6, 4, 5)), reshape(x, dims(n, c, 1, 1))


@rule("real", x="~ n a b", order=ORDERS, slot=integer(4, 5, 6))
def softmax_of_permute(x: Term, order: Term, slot: Term) -> Equation:
    """A softmax along an axis does not see where the others stand."""
    return softmax(permute(x, order), slot), permute(softmax(x, order[slot]), order)


SWAPS = integers((0, 1, 2, 3, 5, 4, 6))
LINEAR = function(linear, weight="o k", bias="o")
LAYER_NORM = function(layer_norm, weight="k", bias="k", eps=number(1e-5))
LAST_AXIS = Variants({"linear-": LINEAR, "layer-norm-": LAYER_NORM})
"""What acts along the last axis, and does not see where the others stand."""


@rules("real", x="~ n a b k", apply=LAST_AXIS, order=SWAPS, k=(2, 3), both=True)
def of_permute(x: Term, apply: Any, order: Term) -> Equation:
    """What acts along the last axis does not see where the others stand."""
    return apply(permute(x, order)), permute(apply(x), order), [order[6] == 6]


@rule(
    "real",
    x="~ n a b k",
    weight="o k",
    bias="o",
    target=integers(lambda d: [dims(d["n"], d["a"] * d["b"], d["k"])]),
)
def linear_of_reshape(x: Term, weight: Term, bias: Term, target: Term, o: Term, k: Term) -> Equation:
    """A Linear over the last axis does not see how the others are arranged: of a map or of its flattening."""
    arranged = reshape(linear(x, weight, bias), replace(target, 6, o))
    return linear(reshape(x, target), weight, bias), arranged, [
        shape(x)[6] == k, shape(x)[0] > 0, target[0] > 0,
    ]  # fmt: skip


@rule("exact", x="~ n b c", y="~ n b c", order=ORDERS, slot=integer(4, 5, 6))
def concat_of_permuted(x: Term, y: Term, order: Term, slot: Term) -> Equation:
    """A concatenation of two tensors permuted alike is permuted afterwards."""
    return concat(slot, permute(x, order), permute(y, order)), permute(concat(order[slot], x, y), order)


# -- expands -----------------------------------------------------------------------------------------------

WIDTHS = integers(lambda d: [encode((d["n"], 3, d["a"])), encode((d["n"], 1, d["a"]))])


@rule("exact", x="~ n 1 a", first=WIDTHS, second=integers(lambda d: [encode((d["n"], 3, d["a"]))]))
def expand_of_expand(x: Term, first: Term, second: Term) -> Equation:
    """Of two expands only the last one matters."""
    return expand(expand(x, first), second), expand(x, second)


@rule("exact")
def expand_to_own_shape(x: Term) -> Equation:
    """An expand to the shape a tensor has is the tensor."""
    return expand(x, shape(x)), x


@rule(
    "exact",
    x="~ n 3 a",
    y="~ 1 a",
    to=integers(lambda d: [encode((d["n"], 3, d["a"]))]),
    f=name("add", "mul"),
)
def expanded_operand(x: Term, y: Term, to: Term, f: Term) -> Equation:
    """An operand need not be expanded to the shape of the other: it is broadcast."""
    return binary(f, x, expand(y, to)), binary(f, x, y), [shape(x) == to]


@rule("exact", x="~ n 1 a", to=WIDTHS, f=FUNCTIONS)
def unary_of_expand(x: Term, to: Term, f: Term) -> Equation:
    """A pointwise function is computed before its argument is repeated."""
    return unary(f, expand(x, to)), expand(unary(f, x), to)


# -- rolls -------------------------------------------------------------------------------------------------

SHIFT: dict[str, Any] = {"slot": integer(5, 6), "shift": integer(1, 2)}


@rule("exact", x="~ n 4 5", by=integer(1, 2, 3), **SHIFT)
def roll_of_roll(x: Term, slot: Term, shift: Term, by: Term) -> Equation:
    """Two rolls along one axis are one."""
    return roll(roll(x, slot, shift), slot, by), roll(x, slot, (shift + by) % shape(x)[slot])


@rule("exact", x="~ n 4 5", slot=integer(5, 6))
def roll_by_nothing(x: Term, slot: Term) -> Equation:
    """A roll by nothing is the tensor."""
    return roll(x, slot, 0), x


@rule("exact", x="~ n 4 5", slot=integer(6), other=integer(5), shift=integer(1, 2), by=integer(1, 3))
def rolls_in_order(x: Term, slot: Term, other: Term, shift: Term, by: Term) -> Equation:
    """Rolls along two axes commute: the one along the earlier axis comes first."""
    return roll(roll(x, slot, shift), other, by), roll(roll(x, other, by), slot, shift), [other < slot]


@rule("exact", x="~ n 4 5", f=FUNCTIONS, **SHIFT)
def unary_of_roll(x: Term, f: Term, slot: Term, shift: Term) -> Equation:
    """A pointwise function does not see a roll."""
    return unary(f, roll(x, slot, shift)), roll(unary(f, x), slot, shift)


@rule("exact", a="~ n 4 5", b="~ n 4 5", f=name("add", "mul"), **SHIFT)
def binary_of_rolled(a: Term, b: Term, f: Term, slot: Term, shift: Term) -> Equation:
    """A sum of two tensors rolled alike is the rolled sum."""
    return binary(f, roll(a, slot, shift), roll(b, slot, shift)), roll(binary(f, a, b), slot, shift), [
        shape(a) == shape(b),
    ]  # fmt: skip


@rules("real", x="~ n 4 5 k", apply=LAST_AXIS, k=(2, 3), slot=integer(4, 5), shift=integer(1, 2))
def of_roll(x: Term, apply: Any, slot: Term, shift: Term) -> Equation:
    """What acts along the last axis does not see a roll along another."""
    return apply(roll(x, slot, shift)), roll(apply(x), slot, shift), [slot != 6]


# -- windows -----------------------------------------------------------------------------------------------

SPLITS = integers(lambda d: [(6, d["n"], 2, 2, 3, 2, d["k"]), (6, d["n"], 2, 2, 2, 3, d["k"])])
JOINED = integers(lambda d: [(4, 1, 1, 2 * d["n"], 3, 4, d["k"]), (3, 1, 1, 1, 6 * d["n"], 4, d["k"])])
WINDOWS: dict[str, Any] = {"x": "~ n a b k", "a": (4,), "b": (6,), "split": SPLITS, "joined": JOINED}


def _windows(x: Term, split: Term, joined: Term) -> Term:
    """Maps taken apart into windows, or put together again (Liu et al. 2021, section 3.2)."""
    return reshape(permute(reshape(x, split), (0, 1, 2, 4, 3, 5, 6)), joined)


@rule("real", weight="o k", bias="o", **WINDOWS)
def linear_of_windows(
    x: Term, weight: Term, bias: Term, split: Term, joined: Term, o: Term, k: Term
) -> Equation:
    """A Linear does not see windows: they are made afterwards, where they meet those that put them together."""
    windows = _windows(linear(x, weight, bias), replace(split, 6, o), replace(joined, 6, o))
    return linear(_windows(x, split, joined), weight, bias), windows, [
        split[0] == 6, split[6] == k, shape(x)[6] == k,
    ]  # fmt: skip


@rule("real", weight="k", bias="k", k=(2, 3), eps=number(1e-5), **WINDOWS)
def layer_norm_of_windows(
    x: Term, weight: Term, bias: Term, split: Term, joined: Term, eps: Term, k: Term
) -> Equation:
    """LayerNorm over the last axis does not see windows."""
    windows = _windows(layer_norm(x, weight, bias, eps), split, joined)
    return layer_norm(_windows(x, split, joined), weight, bias, eps), windows, [
        split[0] == 6, split[6] == k, shape(x)[6] == k,
    ]  # fmt: skip


@rule("real", weight="o k", bias="o", o=(2,), split=integers(lambda d: [(6, d["n"], 2, 2, 3, 2, d["o"])]),
      joined=integers(lambda d: [(4, 1, 1, 2 * d["n"], 3, 4, d["o"])]), x="~ n a b k", a=(4,), b=(6,))  # fmt: skip
def windows_of_linear(
    x: Term, weight: Term, bias: Term, split: Term, joined: Term, o: Term, k: Term
) -> Equation:
    """A Linear may as well come after the windows, which then meet the heads of the attention before it."""
    windows = _windows(x, replace(split, 6, k), replace(joined, 6, k))
    return _windows(linear(x, weight, bias), split, joined), linear(windows, weight, bias), [
        split[0] == 6, split[6] == o, joined[6] == o,
    ]  # fmt: skip


@rule("exact", y="m h s e", m=(8,), s=(6,), split=integers(lambda d: [(6, 2, 2, 2, 3, 2, d["h"] * d["e"])]),
      joined=integers(lambda d: [(4, 1, 1, 2, 6, 4, d["h"] * d["e"])]))  # fmt: skip
def windows_of_joined_heads(
    y: Term, split: Term, joined: Term, m: Term, h: Term, s: Term, e: Term
) -> Equation:
    """Heads joined and windows put together are one permute."""
    features = permute(y, (0, 1, 2, 3, 5, 4, 6))
    parts = reshape(y, dims(split[1] * split[2], split[3], h, split[4], split[5], e))
    return _windows(features, split, joined), reshape(permute(parts, (0, 1, 4, 2, 5, 3, 6)), joined), [
        split[0] == 6, split[1] * split[2] * split[3] == m, split[4] * split[5] == s,
    ]  # fmt: skip
