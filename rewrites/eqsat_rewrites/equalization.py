"""Equalization: where a scale of channels moves besides what `folding` and `scaling` say of it.

Calibration scales the channels of what is rounded to INT8, and what reads and writes that takes it in where rules such
as these carry it to weights (`eqsat_deploy/scales.py`). A scale is a constant without negative elements.
"""

from eqsat_deploy.language import binary, mul, unary
from eqsat_deploy.rules import Equation, Term, constant, name, nonnegative, one_of, rule


@rule("real", x="~ a b", s="~ b", f=name("abs", "neg"))
def scale_after_sign(x: Term, s: Term, f: Term) -> Equation:
    """A scale that is not negative passes through an absolute value, and through a change of signs."""
    return mul(unary(f, x), s), unary(f, mul(x, s)), [constant(s), nonnegative(s), one_of(f, "abs", "neg")]


@rule("real", x="~ a b", bound="~ b", s="~ b")
def scale_after_minimum(x: Term, bound: Term, s: Term) -> Equation:
    """A scale that is not negative keeps the order, so what is clipped and scaled is scaled and clipped at more."""
    scaled = binary("minimum", mul(x, s), mul(bound, s))
    return mul(binary("minimum", x, bound), s), scaled, [constant(s), nonnegative(s), constant(bound)]
