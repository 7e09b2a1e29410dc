"""Merging: branches and siblings on one input as one convolution or Linear.

Branches that are summed (RepVGG and MobileOne in training form) add up their weights. Siblings, each with readers of
its own (Inception's branches, query, key and value), stack their weights and are slices of one result. Only tensors
of the model itself are merged, in their order and near each other, so that merging stays linear in the model.
"""

from typing import Any

from eqsat_deploy.language import (
    add,
    avg_pool2d,
    concat,
    conv2d,
    dims,
    identity_matrix,
    linear,
    mul,
    pad,
    permute,
    power,
    replace,
    reshape,
    scalar,
    slice_,
    sub,
    unary,
)  # fmt: skip
from eqsat_deploy.rules import (
    Attribute,
    Equation,
    Term,
    average_pool,
    constant,
    integer,
    integers,
    name,
    rule,
    rules,
    runtime,
    several,
    shape,
    siblings,
    window,
)
from eqsat_deploy.rules.bundles import AveragePool, Window

STRIDES = integers((1, 1), (2, 2))
ONE = integers((1, 1))
SAME = integers(lambda s: [(s["k"] // 2, s["k"] // 2)])
WINDOW = window(STRIDES, integers((0, 0), (1, 1)), ONE, integer(1))
SIZES: dict[str, Any] = {"x": "n c h w", "i": (2,), "c": (2,), "h": (4, 5), "w": (4, 5)}
NONE = (0, 0, 0, 0, 0, 0, 0)


def _around(tap: Term, half: Term) -> Term:
    """A kernel with `tap` in its middle and zeros in `half` rows and columns on every side."""
    width = replace(replace(NONE, 5, half), 6, half)
    return pad(tap, width, width, 0.0)


def _odd(window: Window, k: Term) -> list[Any]:
    """Guards: a kernel of k x k, k odd, computes a map of the size that it reads, but for its stride."""
    return [*window.padded_by(k // 2), k % 2 == 1, *window.dense]


@rule(
    "real",
    phase="merging",
    v="o i k l",
    u="o i k l",
    b="o",
    d="o",
    k=(1, 3),
    l=(1, 3),
    window=WINDOW,
    **SIZES,
)
def sum_of_convolutions(x: Term, v: Term, u: Term, b: Term, d: Term, window: Window) -> Equation:
    """Two convolutions of one input, alike but for their weights, sum up to one with the summed weights."""
    branches = (conv2d(x, weight, bias, *window) for weight, bias in ((v, b), (u, d)))
    return add(*branches), conv2d(x, add(v, u), add(b, d), *window), [constant(v), constant(u)]


@rule("real", phase="merging", v="o i k k", u="o i 1 1", b="o", d="o", k=(3, 5), none=integers((0, 0)),
      window=window(STRIDES, SAME, ONE, integer(1)), **SIZES)  # fmt: skip
def small_kernel_in_large(
    x: Term, v: Term, u: Term, b: Term, d: Term, k: Term, window: Window, none: Term
) -> Equation:
    """A 1x1 convolution beside an odd k x k one of the same input is its central tap."""
    small = window._replace(padding=none)
    merged = conv2d(x, add(v, _around(u, k // 2)), add(b, d), *window)
    return add(conv2d(x, v, b, *window), conv2d(x, u, d, *small)), merged, [
        constant(v), constant(u), *_odd(window, k), *small.unpadded,
    ]  # fmt: skip


BESIDE: dict[str, Any] = {"x": "n c h w", "b": "c", "k": (1, 3), "c": (2, 3), "h": (4,), "w": (5,)}
FULL: dict[str, Any] = {**BESIDE, "v": "c c k k", "window": window(ONE, SAME, ONE, integer(1))}
DEPTHWISE: dict[str, Any] = {
    **BESIDE, "v": "c 1 k k", "window": window(ONE, SAME, ONE, integer(lambda s: [s["c"]])),
}  # fmt: skip
AFFINE: dict[str, Any] = {"s": "1... c 1 1", "t": "1... c 1 1"}


def _beside(
    branch: Term, tap: Term, shift: Term, x: Term, v: Term, b: Term, k: Term, window: Window, groups: Term
) -> Equation:
    """What is added to a convolution of its own input joins the central taps of its filters, and its bias."""
    merged = conv2d(x, add(v, _around(tap, k // 2)), b if shift is None else add(b, shift), *window)
    return add(branch, conv2d(x, v, b, *window)), merged, [
        constant(v), *_odd(window, k), *window.everywhere, window.groups == groups,
    ]  # fmt: skip


def _constants(s: Term, t: Term) -> list[Any]:
    return [constant(s), constant(t), shape(s)[0] <= 4, shape(t)[0] <= 4]


@rule("real", phase="merging", **FULL, **AFFINE)
def affine_branch_in_convolution(
    x: Term, v: Term, b: Term, s: Term, t: Term, c: Term, k: Term, window: Window
) -> Equation:
    """A scaled and shifted identity beside a convolution of the same input is a diagonal in its central tap."""
    diagonal = reshape(mul(reshape(s, dims(c, 1)), identity_matrix(c)), dims(c, c, 1, 1))
    both, merged, guards = _beside(
        add(mul(x, s), t), diagonal, reshape(t, dims(c)), x, v, b, k, window, groups=1
    )
    return both, merged, guards + _constants(s, t)


@rule("real", phase="merging", **DEPTHWISE, **AFFINE)
def affine_branch_in_depthwise(
    x: Term, v: Term, b: Term, s: Term, t: Term, c: Term, k: Term, window: Window
) -> Equation:
    """A scaled and shifted identity beside a depthwise convolution of the same input adds to its central tap."""
    tap, shift = reshape(s, dims(c, 1, 1, 1)), reshape(t, dims(c))
    both, merged, guards = _beside(add(mul(x, s), t), tap, shift, x, v, b, k, window, groups=c)
    return both, merged, guards + _constants(s, t)


@rule("exact", phase="merging", a="~ n c h w", b="~ n c h w")
def branches_in_any_order(a: Term, b: Term) -> Equation:
    """A sum of two tensors of one shape is commutative, so that branches merge whichever comes first."""
    return add(a, b), add(b, a), [shape(a)[0] == 4, shape(b)[0] == 4]


@rule("real", phase="merging", **FULL)
def identity_branch_in_convolution(x: Term, v: Term, b: Term, c: Term, k: Term, window: Window) -> Equation:
    """The input added to its own convolution is a one in the central tap of every filter's own channel."""
    return _beside(x, reshape(identity_matrix(c), dims(c, c, 1, 1)), None, x, v, b, k, window, groups=1)


@rule("real", phase="merging", **DEPTHWISE)
def identity_branch_in_depthwise(x: Term, v: Term, b: Term, c: Term, k: Term, window: Window) -> Equation:
    """The input added to its own depthwise convolution is a one in the central tap."""
    one = add(mul(slice_(slice_(v, 5, 0, 1, 1), 6, 0, 1, 1), scalar(0.0)), scalar(1.0))
    return _beside(x, one, None, x, v, b, k, window, groups=c)


@rule("real", phase="merging", x="n c h w", v="c c k k", b="c", k=(1, 3), c=(2, 3), h=(4,), w=(5,), dilation=ONE,
      groups=integer(1), pool=average_pool(integers(lambda s: [(s["k"], s["k"])]), STRIDES,
      integers(lambda s: [(0, 0), (s["k"] // 2, s["k"] // 2)]), integer(0), integer(1)))  # fmt: skip
def average_branch_in_convolution(
    x: Term, v: Term, b: Term, c: Term, k: Term, pool: AveragePool, dilation: Term, groups: Term
) -> Equation:
    """An average pool beside a convolution of the same window is an equal share of every tap of its own channel."""
    window = Window(pool.stride, pool.padding, dilation, groups)
    share = mul(reshape(identity_matrix(c), dims(c, c, 1, 1)), scalar(power(k * k, -1.0)))
    merged = conv2d(x, add(v, share), b, *window)
    return add(avg_pool2d(x, *pool), conv2d(x, v, b, *window)), merged, [
        constant(v), pool.kernel[0] == k, pool.kernel[1] == k, *window.dense, groups == 1, pool.ceil == 0,
        pool.include_pad == 1,
    ]  # fmt: skip


@rule("real", phase="merging", u="o i k l", d="o", k=(1, 3), l=(1, 3), window=WINDOW, **SIZES)
def subtracted_convolution_is_added(a: Term, x: Term, u: Term, d: Term, window: Window) -> Equation:
    """Subtracting a convolution adds that with the negative weights, so that differences of branches merge."""
    negative = conv2d(x, unary("neg", u), unary("neg", d), *window)
    return sub(a, conv2d(x, u, d, *window)), add(a, negative), [constant(u), constant(d)]


@rule("real", phase="merging", a="~ n c h w", x="~ n c h w", s="~ c 1 1", t="~ c 1 1")
def subtracted_affine_is_added(a: Term, x: Term, s: Term, t: Term) -> Equation:
    """Subtracting a scaled and shifted tensor adds it with the negative scale and shift."""
    negative = add(mul(x, unary("neg", s)), unary("neg", t))
    return sub(a, add(mul(x, s), t)), add(negative, a), [constant(s), constant(t), shape(a)[0] == 4]


# -- siblings ----------------------------------------------------------------------------------------------

COUNTS = {"two-": 2, "three-": 3}


def _stacked(slot: int, *parts: Term) -> Term:
    joined, *rest = parts
    for part in rest:
        joined = concat(slot, joined, part)
    return joined


def _parts(whole: Term, slot: int, *sizes: Term) -> list[Term]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice_(whole, slot, end - size, end, 1) for end, size in zip(ends, sizes, strict=True)]


def _merged(
    apply: Any, branches: Any, slot: int, weight_slot: int
) -> tuple[list[tuple[Term, Term]], list[Any]]:
    """Pairs of what `apply` makes of each branch's weight and bias with its part of what it makes of all stacked; and
    guards."""
    weights, biases, sizes = zip(*branches, strict=True)
    results = [apply(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    parts = _parts(apply(_stacked(weight_slot, *weights), _stacked(6, *biases)), slot, *sizes)
    return list(zip(results, parts, strict=True)), [*map(constant, weights), *siblings(*results)]


@rules("real", phase="merging", x="~ n c h w", branches=several(COUNTS, ("o#",), v="o# c k l", b="o#"),
       f=name("relu", "silu"), window=window(STRIDES, integers((0, 0), (1, 0)), ONE), c=(2,), h=(4, 5), w=(4, 5),
       k=(1, 3), l=(1, 2))  # fmt: skip
def sibling_convolutions(x: Term, branches: Any, f: Term, window: Window) -> Equation:
    """Convolutions of one input with the same window and activation are one, sliced by channels."""
    pairs, guards = _merged(lambda v, b: unary(f, conv2d(x, v, b, *window)), branches, 4, 3)
    return *pairs, guards


def _flat(index: int) -> Attribute:
    """Positions in one axis: what attention makes of a map."""
    return integers(lambda s: [dims(s["n"], s[f"o{index}"], s["h"] * s["w"])])


@rules("real", phase="merging", x="n c h w", branches=several(COUNTS, ("o#",), v="o# c k l", b="o#", to=_flat),
       window=window(ONE, integers((0, 0)), ONE), c=(2,), h=(4, 5), w=(4, 5), k=(1,), l=(1,))  # fmt: skip
def projections_of_map(x: Term, branches: Any, window: Window) -> Equation:
    """Convolutions of one input that are reshaped (query, key and value of a map) are one, sliced by channels."""
    convolutions = [(v, b, o) for v, b, _, o in branches]
    pairs, guards = _merged(lambda v, b: conv2d(x, v, b, *window), convolutions, 4, 3)
    # Without this to tell projections, every convolution before its BatchNorm would be somebody's sibling.
    reshaped = [
        (reshape(a, to), reshape(b, to)) for (a, b), (_, _, to, _) in zip(pairs, branches, strict=True)
    ]
    return *pairs, *reshaped, guards


@rules("real", phase="merging", x="... k", branches=several(COUNTS, ("o#",), v="o# k", b="o#"))
def sibling_linears(x: Term, branches: Any) -> Equation:
    """Linears on one input (query, key and value) are one, sliced by features."""
    pairs, guards = _merged(lambda v, b: linear(x, v, b), branches, 6, 5)
    return *pairs, [runtime(x), *guards]


HEADS_FIRST = (0, 1, 2, 3, 5, 4, 6)
PARTS_FIRST = (0, 1, 4, 2, 5, 3, 6)


def _split(index: int) -> Attribute:
    return integers(lambda d: [dims(d["n"], d["s"], 2, d["o"] // 2)])


@rules("real", phase="merging", x="n s k", projections=several({"": 3}, v="o k", b="o", heads=_split), o=(4, 8),
       k=(2, 3))  # fmt: skip
def projections_of_heads(x: Term, projections: Any, n: Term, s: Term) -> Equation:
    """Query, key and value split into heads are thirds of one projection that is split and moved once."""
    results = [permute(reshape(linear(x, v, b), heads), HEADS_FIRST) for v, b, heads in projections]
    weights, biases, splits = zip(*projections, strict=True)
    heads = splits[0]
    projected = linear(x, _stacked(5, *weights), _stacked(6, *biases))
    whole = permute(reshape(projected, dims(n, s, 3, heads[5], heads[6])), PARTS_FIRST)
    parts = [reshape(part, dims(n, heads[5], s, heads[6])) for part in _parts(whole, 2, 1, 1, 1)]
    # One variable for the three would have egglog join every three splits of the model before it looks at `x`.
    split_alike = [to[i] == size for to in splits for i, size in ((0, 4), (3, n), (4, s), (5, heads[5]))]
    return *zip(results, parts, strict=True), [*map(constant, weights), *split_alike, *siblings(*results)]


@rule("real", phase="merging", x="n c h w", v="o c k k", u="p c 1 1", b="o", d="p", f=name("relu"), c=(2,), h=(4, 5),
      w=(4, 5), k=(3, 5), none=integers((0, 0)), window=window(STRIDES, SAME, ONE))  # fmt: skip
def small_before_large_kernel(
    x: Term, v: Term, u: Term, b: Term, d: Term, f: Term, k: Term, window: Window, none: Term
) -> Equation:
    """A 1x1 convolution put before an odd k x k one of the same input (a fire module) has filters with one tap."""
    small = window._replace(padding=none)
    filters = _stacked(3, _around(u, k // 2), v)
    whole = unary(f, conv2d(x, filters, _stacked(6, d, b), *window))
    apart = concat(4, unary(f, conv2d(x, u, d, *small)), unary(f, conv2d(x, v, b, *window)))
    return apart, whole, [constant(v), constant(u), *_odd(window, k), *small.unpadded]


@rule("exact", x="~ a 9", start=integer(0, 2), middle=integer(3, 4), stop=integer(6, 9), slot=integer(6))
def concat_of_adjacent_slices(x: Term, slot: Term, start: Term, middle: Term, stop: Term) -> Equation:
    """Adjacent slices of one tensor, put together again, are one slice of it."""
    parts = slice_(x, slot, start, middle, 1), slice_(x, slot, middle, stop, 1)
    return concat(slot, *parts), slice_(x, slot, start, stop, 1)


@rule(
    "exact",
    x="~ a 2",
    y="~ a 7",
    start=integer(2, 3, 4),
    stop=integer(6, 8, 9),
    step=integer(1, 2),
    slot=integer(6),
)
def slice_of_concat_right(x: Term, y: Term, slot: Term, start: Term, stop: Term, step: Term) -> Equation:
    """Part of a concatenation that starts behind its first tensor is part of the second."""
    before = shape(x)[slot]
    whole = slice_(concat(slot, x, y), slot, start, stop, step)
    return whole, slice_(y, slot, start - before, stop - before, step), [start >= before]


@rule("exact", slot=integer(5, 6), x="~ a b")
def slice_of_all(x: Term, slot: Term) -> Equation:
    """A slice from the first element to the last is the tensor."""
    return slice_(x, slot, 0, shape(x)[slot], 1), x, [shape(x)[0] + slot > 6]
