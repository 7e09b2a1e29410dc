"""Layout: a Linear or LayerNorm on a channels-last tensor is a 1x1 convolution or channel norm of the channels-first.

Token-major and channel-major operators are joined by permutes that have a price. These rules let whole regions stand
on either side; the price decides where the crossings are. On a CPU, a ConvNeXt without permutes is a third faster.
"""

from eqsat_deploy.language import (
    binary,
    channel_norm,
    conv2d,
    dims,
    layer_norm,
    linear,
    permute,
    reshape,
    standardize,
)  # fmt: skip
from eqsat_deploy.rules import Equation, Term, constant, integers, name, number, rule, shape

CHANNELS_LAST = (0, 1, 2, 3, 5, 6, 4)
CHANNELS_FIRST = (0, 1, 2, 3, 6, 4, 5)
POINTWISE = ((1, 1), (0, 0), (1, 1), 1)


@rule("real", x="n c h w", weight="o c", b="o", both=True)
def linear_on_channels_last(x: Term, weight: Term, b: Term, o: Term, c: Term) -> Equation:
    """A Linear over the channels of a channels-last tensor is a 1x1 convolution of the channels-first one."""
    kernel = reshape(weight, dims(o, c, 1, 1))
    return linear(permute(x, CHANNELS_LAST), weight, b), permute(
        conv2d(x, kernel, b, *POINTWISE), CHANNELS_LAST
    )


@rule("real", x="n c h w", weight="c", b="c", eps=number(1e-5, 1e-6), c=(2, 3, 5))
def layer_norm_on_channels_last(x: Term, weight: Term, b: Term, eps: Term) -> Equation:
    """LayerNorm over the channels of a channels-last tensor normalizes axis 1 of the channels-first one."""
    normalized = channel_norm(x, weight, b, eps)
    return layer_norm(permute(x, CHANNELS_LAST), weight, b, eps), permute(normalized, CHANNELS_LAST)


@rule("real", x="n h w c", weight="c", b="c", eps=number(1e-5, 1e-6), c=(2, 3, 5))
def channel_norm_on_channels_first(x: Term, weight: Term, b: Term, eps: Term) -> Equation:
    """Normalizing axis 1 of a permuted channels-last tensor is LayerNorm of the tensor."""
    normalized = layer_norm(x, weight, b, eps)
    return channel_norm(permute(x, CHANNELS_FIRST), weight, b, eps), permute(normalized, CHANNELS_FIRST)


@rule("real", x="n c h w", eps=number(1e-5, 1e-6), c=(2, 3, 5))
def standardized_channels_as_last_axis(x: Term, eps: Term) -> Equation:
    """Standardizing axis 1 is standardizing the last axis of the channels-last tensor, which engines do best."""
    return standardize(x, 4, eps), permute(standardize(permute(x, CHANNELS_LAST), 6, eps), CHANNELS_FIRST)


@rule("real", x="n c h w", eps=number(1e-5, 1e-6), c=(2, 3, 5))
def standardized_last_axis_as_channels(x: Term, eps: Term) -> Equation:
    """Standardizing the last axis of a permuted channels-first tensor is standardizing its axis 1."""
    return standardize(permute(x, CHANNELS_LAST), 6, eps), permute(standardize(x, 4, eps), CHANNELS_LAST)


ORDERS = integers(CHANNELS_LAST, CHANNELS_FIRST, (0, 1, 2, 3, 4, 6, 5))


@rule("exact", a="~ n c h w", b="~ n c h w", f=name("add", "mul", "sub"), order=ORDERS)
def binary_of_permuted(a: Term, b: Term, f: Term, order: Term) -> Equation:
    """A sum of two tensors permuted alike is the permuted sum."""
    return (
        binary(f, permute(a, order), permute(b, order)),
        permute(binary(f, a, b), order),
        [shape(a)[0] == shape(b)[0]],
    )


@rule("exact", a="n c h w", t="1... c", f=name("add", "mul"))
def per_channel_on_channels_last(a: Term, t: Term, f: Term, c: Term) -> Equation:
    """Scaling or shifting channels does not depend on where they stand: channels last to channels first."""
    moved = binary(f, a, reshape(t, dims(c, 1, 1)))
    return binary(f, permute(a, CHANNELS_LAST), t), permute(moved, CHANNELS_LAST), [
        constant(t), shape(t)[0] <= 4,
    ]  # fmt: skip


@rule("exact", a="n h w c", t="1... c 1 1", f=name("add", "mul"))
def per_channel_on_channels_first(a: Term, t: Term, f: Term, c: Term) -> Equation:
    """Scaling or shifting channels does not depend on where they stand: channels first to channels last."""
    moved = binary(f, a, reshape(t, dims(c)))
    return binary(f, permute(a, CHANNELS_FIRST), t), permute(moved, CHANNELS_FIRST), [
        constant(t), shape(t)[0] <= 4,
    ]  # fmt: skip
