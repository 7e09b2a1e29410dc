"""Linear layers as convolutions: what engines fuse and quantize best, and the same numbers."""

from eqsat_deploy.language import conv2d, dims, linear, reshape
from eqsat_deploy.rules import Equation, Term, rule


@rule("real", x="n c h w", weight="o c*h*w", b="o")
def flatten_linear_as_convolution(
    x: Term, weight: Term, b: Term, n: Term, c: Term, h: Term, w: Term, o: Term
) -> Equation:
    """A Linear on a flattened C x H x W map is a valid H x W convolution (1x1 after global pooling)."""
    flat = reshape(x, dims(n, c * h * w))
    kernel = reshape(weight, dims(o, c, h, w))
    convolved = conv2d(x, kernel, b, (1, 1), (0, 0), (1, 1), 1)
    return linear(flat, weight, b), reshape(convolved, dims(n, o))
