"""Layout: a Linear or LayerNorm on a channels-last tensor is a 1x1 convolution or channel norm of the channels-first.

Token-major and channel-major operators are joined by permutes that have a price. These rules let whole regions stand
on either side; the price decides where the crossings are. On a CPU, a ConvNeXt without permutes is a third faster.
"""

from eqsat_deploy.language import (
    binary,
    channel_norm,
    concat,
    conv2d,
    dims,
    layer_norm,
    linear,
    permute,
    reshape,
    slice_,
    standardize,
)  # fmt: skip
from eqsat_deploy.rules import Equation, Term, constant, integer, integers, name, number, rule, shape, window
from eqsat_deploy.rules.bundles import Window

CHANNELS_LAST = (0, 1, 2, 3, 5, 6, 4)
CHANNELS_FIRST = (0, 1, 2, 3, 6, 4, 5)
TRANSPOSED = (0, 1, 2, 3, 4, 6, 5)
TILES_TO_PATCHES = (0, 1, 3, 5, 2, 4, 6)
POINTWISE = ((1, 1), (0, 0), (1, 1), 1)


@rule("real", x="n c h w", weight="o c", b="o", both=True)
def linear_on_channels_last(x: Term, weight: Term, b: Term, o: Term, c: Term) -> Equation:
    """A Linear over the channels of a channels-last tensor is a 1x1 convolution of the channels-first one."""
    kernel = reshape(weight, dims(o, c, 1, 1))
    return linear(permute(x, CHANNELS_LAST), weight, b), permute(
        conv2d(x, kernel, b, *POINTWISE), CHANNELS_LAST
    )


@rule("exact", x="n c h w")
def tokens_of_map(x: Term, n: Term, c: Term, h: Term, w: Term) -> Equation:
    """Tokens made of a channels-first map are the flattened channels-last one."""
    tokens = permute(reshape(x, dims(n, c, h * w)), TRANSPOSED)
    return tokens, reshape(permute(x, CHANNELS_LAST), dims(n, h * w, c))


@rule("exact", x="n s c", s=(6,), target=integers(lambda d: [dims(d["n"], d["c"], 2, 3)]))
def map_of_tokens(x: Term, n: Term, s: Term, c: Term, target: Term) -> Equation:
    """A channels-first map made of tokens is the permuted channels-last one."""
    placed = reshape(x, dims(n, target[5], target[6], c))
    return reshape(permute(x, TRANSPOSED), target), permute(placed, CHANNELS_FIRST), [
        target[0] == 4, target[3] == n, target[4] == c,
    ]  # fmt: skip


@rule("real", x="n c h w", weight="o c kh kw", b="o", h=(4, 6), w=(4,), kh=(2,), kw=(2, 4),
      window=window(integers(lambda d: [(d["kh"], d["kw"])]), integers((0, 0)), integers((1, 1))))  # fmt: skip
def patches_as_linear(
    x: Term, weight: Term, b: Term, n: Term, c: Term, h: Term, w: Term, o: Term, kh: Term, kw: Term, window: Window,
) -> Equation:  # fmt: skip
    """A convolution whose windows tile the image is a Linear over flattened patches (Dosovitskiy et al. 2021, 3.1)."""
    rows, columns = h // kh, w // kw
    tiled = permute(reshape(x, dims(n, c, rows, kh, columns, kw)), TILES_TO_PATCHES)
    patches = reshape(tiled, dims(n, rows, columns, c * kh * kw))
    embedded = linear(patches, reshape(weight, dims(o, c * kh * kw)), b)
    return conv2d(x, weight, b, *window), permute(embedded, CHANNELS_FIRST), [
        window.stride[0] == kh, window.stride[1] == kw, *window.unpadded, *window.dense,
        kh * kw > 1, h % kh == 0, w % kw == 0,
    ]  # fmt: skip


@rule("real", x="n c p q", weight="o k", b="o", p=(4, 6), q=(2, 4),
      k=integer(lambda d: [d["c"] * d["p"] * d["q"] // 4]),
      tiles=integers(lambda d: [(6, d["n"], d["c"], 2, d["p"] // 2, 2, d["q"] // 2)]))  # fmt: skip
def patches_as_convolution(
    x: Term, weight: Term, b: Term, n: Term, c: Term, k: Term, o: Term, tiles: Term
) -> Equation:
    """A Linear over flattened patches of an image, channels first in each, is a convolution whose windows tile it."""
    tiled = permute(reshape(x, tiles), TILES_TO_PATCHES)
    patches = reshape(tiled, dims(n, tiles[3] * tiles[5], k))
    kernel = (tiles[4], tiles[6])
    convolved = conv2d(x, reshape(weight, dims(o, c, tiles[4], tiles[6])), b, kernel, (0, 0), (1, 1), 1)
    return linear(patches, weight, b), reshape(permute(convolved, CHANNELS_LAST), dims(n, tiles[3] * tiles[5], o)), [
        tiles[0] == 6, tiles[1] == n, tiles[2] == c,
    ]  # fmt: skip


@rule("exact", x="n h w c", h=(4, 6), w=(2, 4))
def neighbours_by_one_permute(x: Term, n: Term, h: Term, w: Term, c: Term) -> Equation:
    """The four neighbours of every other pixel, concatenated (Swin's patch merging), are one permuted reshape."""

    def every_other(down: int, right: int) -> Term:
        return slice_(slice_(x, 4, down, h, 2), 5, right, w, 2)

    joined = every_other(0, 0)
    for down, right in ((1, 0), (0, 1), (1, 1)):
        joined = concat(6, joined, every_other(down, right))
    halves = reshape(x, dims(n, h // 2, 2, w // 2, 2, c))
    moved = permute(halves, (0, 1, 2, 4, 5, 3, 6))
    return joined, reshape(moved, dims(n, h // 2, w // 2, 4 * c)), [h % 2 == 0, w % 2 == 0]


@rule("real", x="n c h w", weight="c", b="c", eps=number(1e-5, 1e-6), c=(2, 3, 5))
def layer_norm_on_channels_last(x: Term, weight: Term, b: Term, eps: Term) -> Equation:
    """LayerNorm over the channels of a channels-last tensor normalizes axis 1 of the channels-first one."""
    normalized = channel_norm(x, weight, b, eps)
    return layer_norm(permute(x, CHANNELS_LAST), weight, b, eps), permute(normalized, CHANNELS_LAST)


@rule("real", x="n c h w", weight="c", b="c", eps=number(1e-5, 1e-6), c=(2, 3, 5))
def layer_norm_of_tokens(
    x: Term, weight: Term, b: Term, eps: Term, n: Term, c: Term, h: Term, w: Term
) -> Equation:
    """LayerNorm of the pixels of a map, taken as tokens, normalizes axis 1 of the map."""
    tokens, normalized = (reshape(y, dims(n, c, h * w)) for y in (x, channel_norm(x, weight, b, eps)))
    return layer_norm(permute(tokens, TRANSPOSED), weight, b, eps), permute(normalized, TRANSPOSED)


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


ORDERS = integers(CHANNELS_LAST, CHANNELS_FIRST, TRANSPOSED)


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
