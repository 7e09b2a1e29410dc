"""Two rules about the operator."""

from __future__ import annotations

from eqsat_deploy.language import unary
from eqsat_deploy.rules import EgglogRule, Equation, Term, rule, rules_of
from eqsat_example.operators import bessel


@rule("real")
def bessel_is_odd(x: Term) -> Equation:
    """A sign passes through: f(-x) = -f(x)."""
    return bessel(unary("neg", x)), unary("neg", bessel(x))


@rule("exact")
def relu_of_bessel(x: Term) -> Equation:
    """bessel keeps the sign, so that what is cut off may be cut off before."""
    return unary("relu", bessel(x)), bessel(unary("relu", x))


def all_rules() -> list[EgglogRule]:
    """Both, in order of definition."""
    return list(rules_of(globals()))
