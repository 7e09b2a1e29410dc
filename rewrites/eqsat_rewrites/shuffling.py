"""Shuffling: a channel shuffle, and a choice of channels after it, is an order of the next convolution's weights."""

from typing import Any

from eqsat_deploy.language import (
    binary,
    cast,
    conv2d,
    dims,
    identity_matrix,
    pad,
    permute,
    replace,
    reshape,
    slice_,
    zeros,
)  # fmt: skip
from eqsat_deploy.language.linear import conv_size
from eqsat_deploy.language.shapes import SLOTS
from eqsat_deploy.rules import Equation, Term, constant, dtype, integer, integers, name, rule, shape, window
from eqsat_deploy.rules.bundles import Window
from eqsat_rewrites.layout import TRANSPOSED

NONE = (0,) * SLOTS
# Of five axes the first two, or the second two, change places.
SWAP_FIRST, SWAP_SECOND = (0, 1, 3, 2, 4, 5, 6), (0, 1, 2, 4, 3, 5, 6)
SPLIT = integers(
    lambda d: [(5, 1, d["n"], g, d["c"] // g, d["h"], d["w"]) for g in (2, 3) if d["c"] % g == 0]
)
STRIDES, PADDINGS, ONE = integers((1, 1), (2, 1)), integers((0, 0), (1, 1)), integers((1, 1))
SIZES: dict[str, Any] = {
    "x": "n c h w", "split": SPLIT, "c": (4, 6), "h": (3, 4), "w": (3, 5), "kh": (1, 3), "kw": (1, 3),
}  # fmt: skip


def _shuffled(x: Term, split: Term, n: Term, c: Term, h: Term, w: Term) -> Term:
    """ShuffleNet's channel shuffle (Zhang et al. 2017, section 3.1): channels of groups, taken group by group."""
    return reshape(permute(reshape(x, split), SWAP_SECOND), dims(n, c, h, w))


def _splits(split: Term, n: Term, h: Term, w: Term) -> list[Any]:
    """Guards: `split` takes the channels apart and nothing else."""
    return [split[0] == 5, split[2] == n, split[5] == h, split[6] == w]


@rule("real", weight="o c kh kw", b="o", window=window(STRIDES, PADDINGS, ONE, integer(1)), **SIZES)
def shuffle_in_convolution(
    x: Term, weight: Term, b: Term, split: Term, window: Window,
    n: Term, c: Term, h: Term, w: Term, o: Term, kh: Term, kw: Term,
) -> Equation:  # fmt: skip
    """A convolution of shuffled channels reads the channels as they are, its weights in their order."""
    parts = reshape(weight, dims(o, split[4], split[3], kh, kw))
    ordered = reshape(permute(parts, SWAP_SECOND), dims(o, c, kh, kw))
    shuffled = conv2d(_shuffled(x, split, n, c, h, w), weight, b, *window)
    return shuffled, conv2d(x, ordered, b, *window), [
        *_splits(split, n, h, w), constant(weight), window.groups == 1,
    ]  # fmt: skip


@rule(
    "real",
    weight="c 1 kh kw",
    b="c",
    **SIZES,
    window=window(STRIDES, PADDINGS, ONE, integer(lambda d: [d["c"]])),
)
def shuffle_after_depthwise(
    x: Term, weight: Term, b: Term, split: Term, window: Window,
    n: Term, c: Term, h: Term, w: Term, kh: Term, kw: Term,
) -> Equation:  # fmt: skip
    """A depthwise convolution of shuffled channels is shuffled afterwards: towards who can absorb the shuffle."""
    first, second = split[3], split[4]
    ordered = reshape(
        permute(reshape(weight, dims(second, first, 1, kh, kw)), SWAP_FIRST), dims(c, 1, kh, kw)
    )
    bias = reshape(permute(reshape(b, dims(second, first)), TRANSPOSED), dims(c))
    stride, padding, dilation, _ = window
    sizes = [
        conv_size(s, k, stride[i], padding[i], dilation[i]) for i, (s, k) in enumerate(((h, kh), (w, kw)))
    ]
    convolved = conv2d(x, ordered, bias, *window)
    shuffled = conv2d(_shuffled(x, split, n, c, h, w), weight, b, *window)
    return shuffled, _shuffled(convolved, dims(n, first, second, *sizes), n, c, *sizes), [
        *_splits(split, n, h, w), constant(weight), constant(b), window.groups == c,
    ]  # fmt: skip


@rule("exact", x="n c h w", t="1... c 1 1", split=SPLIT, c=(4, 6), f=name("add", "mul"))
def shuffle_after_channels(
    x: Term, t: Term, split: Term, f: Term, n: Term, c: Term, h: Term, w: Term
) -> Equation:
    """Scaling or shifting shuffled channels can come before the shuffle."""
    ordered = reshape(permute(reshape(t, dims(split[4], split[3])), TRANSPOSED), dims(c, 1, 1))
    shuffled = binary(f, _shuffled(x, split, n, c, h, w), t)
    return shuffled, _shuffled(binary(f, x, ordered), split, n, c, h, w), [
        *_splits(split, n, h, w), constant(t), shape(t)[0] <= 4,
    ]  # fmt: skip


@rule("real", start=integer(0, 1), stop=integer(2, 3), x="n c h w", split=SPLIT, c=(4, 6))
def slice_of_shuffle_is_convolution(
    x: Term, split: Term, start: Term, stop: Term, n: Term, c: Term, h: Term, w: Term
) -> Equation:
    """Some of the shuffled channels are a 1x1 convolution by zeros and ones, which INT8 engines have fast."""
    rows = permute(reshape(identity_matrix(c), dims(split[3], split[4], c)), (0, 1, 2, 3, 5, 4, 6))
    chosen = slice_(reshape(rows, dims(c, c)), 5, start, stop, 1)
    count = stop - start
    kernel = cast(reshape(chosen, dims(count, c, 1, 1)), dtype(x))
    selected = conv2d(x, kernel, zeros(dims(count), dtype(x)), (1, 1), (0, 0), (1, 1), 1)
    return slice_(_shuffled(x, split, n, c, h, w), 4, start, stop, 1), selected, _splits(split, n, h, w)


@rule("real", x="n c h w", weight="o i kh kw", b="o", start=integer(0, 1), stop=integer(3, 4), c=(4, 5), kh=(1, 3),
      i=(2, 3, 4), window=window(ONE, PADDINGS, ONE))  # fmt: skip
def slice_in_convolution(
    x: Term, weight: Term, b: Term, start: Term, stop: Term, window: Window, c: Term
) -> Equation:
    """A convolution of some channels is one of all of them, with zeros for those it does not read."""
    low, high = replace(NONE, 4, start), replace(NONE, 4, c - stop)
    part = conv2d(slice_(x, 4, start, stop, 1), weight, b, *window)
    wide = pad(weight, low, high, 0.0)
    return part, conv2d(x, wide, b, *window), [constant(weight)]
