"""Pools that change nothing."""

from eqsat_deploy.language import adaptive_avg_pool2d, avg_pool2d, max_pool2d, vec
from eqsat_deploy.rules import Equation, Term, integer, rule


@rule("exact", x="n c h w")
def adaptive_pool_to_own_size(x: Term, h: Term, w: Term) -> Equation:
    """An adaptive average pool to its input's own size is the identity (ConvNeXt pools 7x7 to 7x7)."""
    return adaptive_avg_pool2d(x, vec(h, w)), x


@rule("exact", x="n c h w", ceil=integer(0, 1), include_pad=integer(0, 1))
def average_pool_of_one(x: Term, ceil: Term, include_pad: Term) -> Equation:
    """An average pool with a window and stride of one is the identity."""
    return avg_pool2d(x, (1, 1), (1, 1), (0, 0), ceil, include_pad), x


@rule("exact", x="n c h w", ceil=integer(0, 1))
def max_pool_of_one(x: Term, ceil: Term) -> Equation:
    """A max pool with a window and stride of one is the identity."""
    return max_pool2d(x, (1, 1), (1, 1), (0, 0), (1, 1), ceil), x


@rule("exact", x="n c 1 1")
def adaptive_pool_of_one_pixel(x: Term) -> Equation:
    """Pooling a 1x1 map to 1x1 is the identity."""
    return adaptive_avg_pool2d(x, (1, 1)), x
