"""Movement: reshapes and permutes compose, cancel, and pass through pointwise functions."""

from eqsat_deploy.language import gather, permute, reshape, unary
from eqsat_deploy.language.shapes import encode, permutation
from eqsat_deploy.rules import Equation, Term, integers, name, rule, shape

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


@rule("exact", x="~ n 2 3 4", f=FUNCTIONS, target=TARGETS, both=True)
def unary_through_reshape(x: Term, f: Term, target: Term) -> Equation:
    """A pointwise function does not see the shape."""
    return unary(f, reshape(x, target)), reshape(unary(f, x), target)


@rule("exact", x="~ a b c", f=FUNCTIONS, order=ORDERS, both=True)
def unary_through_permute(x: Term, f: Term, order: Term) -> Equation:
    """A pointwise function does not see the order of axes."""
    return unary(f, permute(x, order)), permute(unary(f, x), order)
