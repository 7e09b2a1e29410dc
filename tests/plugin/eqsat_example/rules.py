"""Two rules about the operator."""

from __future__ import annotations

from eqsat_deploy.language import unary
from eqsat_deploy.rules import EgglogRule, Equation, Term, rule, rules_of
from eqsat_example.operators import asinh


@rule("real")
def asinh_is_odd(x: Term) -> Equation:
    """A sign passes through: asinh(-x) = -asinh(x)."""
    return asinh(unary("neg", x)), unary("neg", asinh(x))


@rule("exact")
def relu_of_asinh(x: Term) -> Equation:
    """asinh keeps the sign, so that what is cut off may be cut off before."""
    return unary("relu", asinh(x)), asinh(unary("relu", x))


def all_rules() -> list[EgglogRule]:
    """Both, in order of definition."""
    return list(rules_of(globals()))
