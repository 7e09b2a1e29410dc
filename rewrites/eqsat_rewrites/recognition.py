"""Recognition: activations, normalizations and softmax written out in pieces are the operators that engines have whole.

A few canonical spellings come first (division by a number is a product, number factors stand outermost, squares are
powers), so that each function needs one rule.
"""

from math import pi, sqrt
from typing import Any

from eqsat_deploy.language import (
    add,
    channel_norm,
    dims,
    div,
    layer_norm,
    log_softmax,
    mul,
    numel,
    power,
    reduce_,
    reshape,
    rms_norm,
    scalar,
    softmax,
    sub,
    unary,
    zeros,
)  # fmt: skip
from eqsat_deploy.rules import (
    Equation,
    Term,
    commutative,
    constant,
    dtype,
    integer,
    integers,
    name,
    number,
    positive,
    rule,
    rules,
    runtime,
    shape,
)  # fmt: skip

LAST = (0, 0, 0, 0, 0, 0, 1)
CHANNELS = (0, 0, 0, 0, 1, 0, 0)
# Constants are compared with what float64 rounds them to, however they were computed.
CLOSE = 1e-8


def _close(value: Term, wanted: float) -> list[Term]:
    return [value > wanted * (1 - CLOSE), value < wanted * (1 + CLOSE)]


# -- canonical spellings -----------------------------------------------------------------------------------


@rule("real", s=number(8.0, -0.5))
def division_by_number(x: Term, s: Term) -> Equation:
    """Dividing by a number is multiplying with its reciprocal."""
    return div(x, scalar(s)), mul(x, scalar(1.0 / s)), [runtime(x), s != 0.0]


@rule("real", s=number(8.0, -0.5), t=number(2.0, 3.0))
def product_of_numbers(x: Term, s: Term, t: Term) -> Equation:
    """Two number factors are one."""
    return mul(mul(x, scalar(s)), scalar(t)), mul(x, scalar(s * t)), [runtime(x)]


@rules("real", x="~ a b", y="~ a b", s=number(0.5), order=commutative("-left", "-right"))
def number_outside(x: Term, y: Term, s: Term, order: Any) -> Equation:
    """A number factor of an operand of a product is one of the product."""
    scaled = mul(*order(mul(x, scalar(s)), y))
    return scaled, mul(mul(*order(x, y)), scalar(s)), [runtime(x), runtime(y)]


@rule("real")
def square_is_power(x: Term) -> Equation:
    """A tensor times itself is its square."""
    return mul(x, x), unary("pow(2.0)", x), [runtime(x)]


@rule("real")
def cube_is_power(x: Term) -> Equation:
    """A square times its base is a cube."""
    return mul(unary("pow(2.0)", x), x), unary("pow(3.0)", x), [runtime(x)]


@rule("real", f=name("sigmoid", "tanh"))
def gate_last(x: Term, f: Term) -> Equation:
    """A tensor stands before its own gate."""
    return mul(unary(f, x), x), mul(x, unary(f, x)), [runtime(x)]


@rule("real", x="~ a b", y="~ a b", f=name("erf", "tanh"))
def shifted_gate_last(x: Term, y: Term, f: Term) -> Equation:
    """A tensor stands before a gate that was shifted by one."""
    gate = add(unary(f, y), scalar(1.0))
    return mul(gate, x), mul(x, gate), [runtime(x), runtime(y)]


@rule("real", variance=positive("~ a b"), x="~ a b")
def division_by_root(x: Term, variance: Term) -> Equation:
    """Dividing by a square root is multiplying with the reciprocal one."""
    return div(x, unary("sqrt", variance)), mul(x, unary("rsqrt", variance)), [runtime(variance)]


@rule("real", variance=positive("~ a b"))
def power_is_reciprocal_root(variance: Term) -> Equation:
    """The power of minus one half is a reciprocal square root."""
    return unary("pow(-0.5)", variance), unary("rsqrt", variance), [runtime(variance)]


@rule("real", variance=positive("~ a b"))
def power_is_root(variance: Term) -> Equation:
    """The power of one half is a square root."""
    return unary("pow(0.5)", variance), unary("sqrt", variance), [runtime(variance)]


@rule("real", variance=positive("~ a b"))
def reciprocal_of_root(variance: Term) -> Equation:
    """One over a square root is a reciprocal square root."""
    return unary("reciprocal", unary("sqrt", variance)), unary("rsqrt", variance), [runtime(variance)]


# -- activations -------------------------------------------------------------------------------------------


@rule("real", r=number(1 / sqrt(2)))
def gelu_from_erf(x: Term, r: Term) -> Equation:
    """GELU by the error function (Hendrycks and Gimpel 2016, section 2)."""
    gate = add(unary("erf", mul(x, scalar(r))), scalar(1.0))
    return mul(mul(x, gate), scalar(0.5)), unary("gelu", x), _close(r, 1 / sqrt(2))


@rule("real", a=number(0.044715), r=number(sqrt(2 / pi)))
def gelu_from_tanh(x: Term, a: Term, r: Term) -> Equation:
    """GELU by the hyperbolic tangent (Hendrycks and Gimpel 2016, section 2)."""
    inner = mul(add(x, mul(unary("pow(3.0)", x), scalar(a))), scalar(r))
    gated = mul(x, add(unary("tanh", inner), scalar(1.0)))
    return mul(gated, scalar(0.5)), unary("gelu_tanh", x), [*_close(a, 0.044715), *_close(r, sqrt(2 / pi))]


@rule("real", a=number(0.044715))
def cubic_of_gelu(x: Term, a: Term) -> Equation:
    """x (1 + a x^2) is x + a x^3, as the tangent form of GELU has it."""
    factored = mul(x, add(mul(unary("pow(2.0)", x), scalar(a)), scalar(1.0)))
    return factored, add(x, mul(unary("pow(3.0)", x), scalar(a))), [runtime(x)]


@rule("real")
def sigmoid_from_exponential(x: Term) -> Equation:
    """1 / (1 + exp(-x)) is the logistic function."""
    return unary("reciprocal", add(unary("exp", unary("neg", x)), scalar(1.0))), unary("sigmoid", x)


@rule("real")
def silu_from_exponential(x: Term) -> Equation:
    """x / (1 + exp(-x)) is SiLU."""
    return div(x, add(unary("exp", unary("neg", x)), scalar(1.0))), unary("silu", x)


@rule("real")
def silu_from_sigmoid(x: Term) -> Equation:
    """A tensor gated by its own sigmoid is SiLU (Elfwing et al. 2017)."""
    return mul(x, unary("sigmoid", x)), unary("silu", x)


@rules("real", r=number(1.702), order=commutative("-from-sigmoid", "-gate-last"))
def quick_gelu(x: Term, r: Term, order: Any) -> Equation:
    """A tensor gated by the sigmoid of 1.702 times itself is CLIP's GELU (Hendrycks and Gimpel 2016, section 2)."""
    gated = mul(*order(x, unary("sigmoid", mul(x, scalar(r)))))
    return gated, unary("quick_gelu", x), _close(r, 1.702)


@rule("real", s=number(1 / 6))
def hardsigmoid_from_clamp(x: Term, s: Term) -> Equation:
    """ReLU6(x + 3) / 6 is Hardsigmoid (Howard et al. 2019, section 5.2)."""
    clamped = unary("clamp(0.0,6.0)", add(x, scalar(3.0)))
    return mul(clamped, scalar(s)), unary("hardsigmoid", x), _close(s, 1 / 6)


@rule("real", s=number(1 / 6))
def hardsigmoid_from_unit_clamp(x: Term, s: Term) -> Equation:
    """x / 6 + 1 / 2 between 0 and 1 is Hardsigmoid."""
    line = add(mul(x, scalar(s)), scalar(0.5))
    return unary("clamp(0.0,1.0)", line), unary("hardsigmoid", x), _close(s, 1 / 6)


@rule("real", s=number(1 / 6))
def hardswish_from_clamp(x: Term, s: Term) -> Equation:
    """x ReLU6(x + 3) / 6 is Hardswish (Howard et al. 2019, section 5.2)."""
    gated = mul(x, unary("clamp(0.0,6.0)", add(x, scalar(3.0))))
    return mul(gated, scalar(s)), unary("hardswish", x), _close(s, 1 / 6)


@rule("real")
def hardswish_from_hardsigmoid(x: Term) -> Equation:
    """A tensor gated by its own Hardsigmoid is Hardswish."""
    return mul(x, unary("hardsigmoid", x)), unary("hardswish", x)


@rule("real")
def softplus_from_exponential(x: Term) -> Equation:
    """log(1 + exp(x)) is Softplus."""
    return unary("log1p", unary("exp", x)), unary("softplus(1.0,20.0)", x)


@rule("real")
def softplus_from_logarithm(x: Term) -> Equation:
    """log(exp(x) + 1) is Softplus."""
    return unary("log", add(unary("exp", x), scalar(1.0))), unary("softplus(1.0,20.0)", x)


@rules("real", order=commutative("-from-softplus", "-gate-last"))
def mish(x: Term, order: Any) -> Equation:
    """x tanh(softplus(x)) is Mish (Misra 2019)."""
    return mul(*order(x, unary("tanh", unary("softplus(1.0,20.0)", x)))), unary("mish", x)


# -- softmax -----------------------------------------------------------------------------------------------

ONE_AXIS = integers(LAST, (0, 0, 0, 0, 0, 1, 0))


@rule("real", x="~ a b c", axes=ONE_AXIS)
def softmax_from_exponentials(x: Term, axes: Term) -> Equation:
    """Exponentials over their sum along one axis are a softmax."""
    e = unary("exp", x)
    marked = sum((axes[i] for i in range(2, 7)), axes[1])
    where = sum((axes[i] * i for i in range(2, 7)), axes[1])
    return div(e, reduce_("sum", e, axes)), softmax(x, where), [marked == 1]


@rule("real", x="~ a b c", axes=ONE_AXIS)
def softmax_from_reciprocal(x: Term, axes: Term) -> Equation:
    """Exponentials times the reciprocal of their sum are divided by it."""
    e = unary("exp", x)
    total = reduce_("sum", e, axes)
    return mul(e, unary("reciprocal", total)), div(e, total)


@rule("real", x="~ a b c", slot=integer(5, 6))
def logarithm_of_softmax(x: Term, slot: Term) -> Equation:
    """The logarithm of a softmax has an operator of its own, which does not round to the logarithm of zero."""
    return unary("log", softmax(x, slot)), log_softmax(x, slot)


@rule("real", x="~ a b c", axes=ONE_AXIS, by=name("amax", "mean"), slot=integer(5, 6))
def softmax_of_shifted(x: Term, axes: Term, by: Term, slot: Term) -> Equation:
    """A softmax does not see what is the same along its axis, such as a maximum taken for stability."""
    return softmax(sub(x, reduce_(by, x, axes)), slot), softmax(x, slot), [axes[slot] == 1]


# -- normalizations ----------------------------------------------------------------------------------------

EPS = number(1e-5, 1e-6)
AXES = integers(LAST, CHANNELS)


def _ones(x: Term, size: Term) -> Term:
    return add(zeros(dims(size), dtype(x)), scalar(1.0))


@rule("real", x="~ n a b c", axes=AXES, s=number(lambda d: [1.0 / d["a"], 1.0 / d["c"]]))
def mean_from_sum(x: Term, axes: Term, s: Term) -> Equation:
    """A sum over its number of elements is a mean."""
    count = numel([1, *((shape(x)[i] - 1) * axes[i] + 1 for i in range(1, 7))])
    mean = reduce_("mean", x, axes)
    return mul(reduce_("sum", x, axes), scalar(s)), mean, _close(s, power(count, -1.0))


@rule("real", x="~ n a b c", axes=AXES)
def variance_from_squares(x: Term, axes: Term) -> Equation:
    """The mean of squares less the square of the mean is the mean of squared distances from the mean."""
    mean = reduce_("mean", x, axes)
    variance = sub(reduce_("mean", unary("pow(2.0)", x), axes), unary("pow(2.0)", mean))
    return variance, reduce_("mean", unary("pow(2.0)", sub(x, mean)), axes)


@rule("real", x="... a k", k=(2, 3, 5), eps=EPS)
def layer_norm_from_moments(x: Term, k: Term, eps: Term) -> Equation:
    """Centered, over the root of its variance along the last axis: LayerNorm (Ba et al. 2016)."""
    centered = sub(x, reduce_("mean", x, LAST))
    variance = reduce_("mean", unary("pow(2.0)", centered), LAST)
    normalized = mul(centered, unary("rsqrt", add(variance, scalar(eps))))
    return normalized, layer_norm(x, _ones(x, k), zeros(dims(k), dtype(x)), eps)


@rule("real", x="n c h w", c=(2, 3, 5), eps=EPS)
def channel_norm_from_moments(x: Term, c: Term, eps: Term) -> Equation:
    """Centered, over the root of its variance along the channels of a map: ConvNeXt's LayerNorm (Liu et al. 2022)."""
    centered = sub(x, reduce_("mean", x, CHANNELS))
    variance = reduce_("mean", unary("pow(2.0)", centered), CHANNELS)
    normalized = mul(centered, unary("rsqrt", add(variance, scalar(eps))))
    return normalized, channel_norm(x, _ones(x, c), zeros(dims(c), dtype(x)), eps)


@rule("real", x="... a k", eps=EPS)
def rms_norm_from_squares(x: Term, k: Term, eps: Term) -> Equation:
    """A tensor over the root of its mean square along the last axis: RMSNorm (Zhang and Sennrich 2019)."""
    squares = reduce_("mean", unary("pow(2.0)", x), LAST)
    return mul(x, unary("rsqrt", add(squares, scalar(eps)))), rms_norm(x, _ones(x, k), eps)


@rule("real", x="... a k", weight="k", s="1... k", eps=EPS)
def scale_into_rms_norm(x: Term, weight: Term, s: Term, k: Term, eps: Term) -> Equation:
    """Scaling the features of an RMSNorm scales its weight."""
    scaled = rms_norm(x, mul(weight, reshape(s, dims(k))), eps)
    return mul(rms_norm(x, weight, eps), s), scaled, [constant(s), shape(s)[0] <= shape(x)[0]]


@rule("real", x="... a k", weight="k", b="k", s="1... k", k=(2, 3), eps=EPS)
def scale_into_layer_norm(x: Term, weight: Term, b: Term, s: Term, k: Term, eps: Term) -> Equation:
    """Scaling the features of a LayerNorm scales its weight and bias."""
    factor = reshape(s, dims(k))
    scaled = layer_norm(x, mul(weight, factor), mul(b, factor), eps)
    return mul(layer_norm(x, weight, b, eps), s), scaled, [constant(s), shape(s)[0] <= shape(x)[0]]


@rule("real", x="... a k", weight="k", b="k", t="1... k", k=(2, 3), eps=EPS)
def shift_into_layer_norm(x: Term, weight: Term, b: Term, t: Term, k: Term, eps: Term) -> Equation:
    """Shifting the features of a LayerNorm shifts its bias."""
    shifted = layer_norm(x, weight, add(b, reshape(t, dims(k))), eps)
    return add(layer_norm(x, weight, b, eps), t), shifted, [constant(t), shape(t)[0] <= shape(x)[0]]


@rule("real", x="n c h w", weight="c", b="c", s="1... c 1 1", c=(2, 3), eps=EPS)
def scale_into_channel_norm(x: Term, weight: Term, b: Term, s: Term, c: Term, eps: Term) -> Equation:
    """Scaling the channels of a channel norm scales its weight and bias."""
    factor = reshape(s, dims(c))
    scaled = channel_norm(x, mul(weight, factor), mul(b, factor), eps)
    return mul(channel_norm(x, weight, b, eps), s), scaled, [constant(s), shape(s)[0] <= 4]


@rule("real", x="n c h w", weight="c", b="c", t="1... c 1 1", c=(2, 3), eps=EPS)
def shift_into_channel_norm(x: Term, weight: Term, b: Term, t: Term, c: Term, eps: Term) -> Equation:
    """Shifting the channels of a channel norm shifts its bias."""
    shifted = channel_norm(x, weight, add(b, reshape(t, dims(c))), eps)
    return add(channel_norm(x, weight, b, eps), t), shifted, [constant(t), shape(t)[0] <= 4]
