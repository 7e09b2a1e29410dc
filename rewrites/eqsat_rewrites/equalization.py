"""Equalization: where a scale of channels moves besides what `folding`, `recognition` and `scaling` say of it.

Calibration scales the channels of what is rounded to INT8, and what reads and writes that takes it in where rules such
as these carry it to weights (`eqsat_deploy/scales.py`). A scale is a constant without negative elements.
"""

from eqsat_deploy.language import binary, mul, packed_attention, pad, reshape, unary, vec
from eqsat_deploy.language.expressions import dims
from eqsat_deploy.language.shapes import SLOTS
from eqsat_deploy.rules import (
    Equation,
    Term,
    constant,
    integer,
    name,
    nonnegative,
    number,
    one_of,
    rule,
    shape,
)  # fmt: skip

NONE = (0,) * SLOTS


@rule("real", x="~ a b", s="~ b", f=name("abs", "neg"))
def scale_after_sign(x: Term, s: Term, f: Term) -> Equation:
    """A scale that is not negative passes through an absolute value, and through a change of signs."""
    return mul(unary(f, x), s), unary(f, mul(x, s)), [constant(s), nonnegative(s), one_of(f, "abs", "neg")]


@rule("real", x="~ a b", bound="~ b", s="~ b")
def scale_after_minimum(x: Term, bound: Term, s: Term) -> Equation:
    """A scale that is not negative keeps the order, so what is clipped and scaled is scaled and clipped at more."""
    scaled = binary("minimum", mul(x, s), mul(bound, s))
    return mul(binary("minimum", x, bound), s), scaled, [constant(s), nonnegative(s), constant(bound)]


@rule("real", qkv="n t 3*d", s="1... d", d=(4, 8), heads=integer(1, 2, 4), scale=number(0.5))
def scale_after_packed_attention(qkv: Term, s: Term, heads: Term, scale: Term, d: Term) -> Equation:
    """Scaling what attention gives scales its values, the last third of what it reads."""
    values = pad(reshape(s, dims(d)), vec(0, 0, 0, 0, 0, 0, 2 * d), NONE, 1.0)
    scaled = packed_attention(mul(qkv, values), heads, scale)
    return mul(packed_attention(qkv, heads, scale), s), scaled, [constant(s), shape(s)[0] <= 3]
