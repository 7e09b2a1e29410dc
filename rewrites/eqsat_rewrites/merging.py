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
    constant,
    integer,
    integers,
    name,
    rule,
    runtime,
    shape,
    siblings,
)

STRIDES = integers((1, 1), (2, 2))
ONE = integers((1, 1))
SAMPLES: dict[str, Any] = {"h": (4, 5), "w": (4, 5), "stride": STRIDES, "dilation": ONE, "groups": integer(1)}
NONE = (0, 0, 0, 0, 0, 0, 0)


def _around(half: Term) -> Term:
    """The padding that makes a tap the middle of a kernel."""
    return replace(replace(NONE, 5, half), 6, half)


@rule("real", phase="merging", x="n c h w", v="o i k l", u="o i k l", b="o", d="o", i=(2,), c=(2,), k=(1, 3), l=(1, 3),
      padding=integers((0, 0), (1, 1)), **SAMPLES)  # fmt: skip
def sum_of_convolutions(
    x: Term, v: Term, u: Term, b: Term, d: Term, stride: Term, padding: Term, dilation: Term, groups: Term
) -> Equation:
    """Two convolutions of one input, alike but for their weights, sum up to one with the summed weights."""
    branches = (conv2d(x, t, s, stride, padding, dilation, groups) for t, s in ((v, b), (u, d)))
    return add(*branches), conv2d(x, add(v, u), add(b, d), stride, padding, dilation, groups), [
        constant(v), constant(u),
    ]  # fmt: skip


@rule("real", phase="merging", x="n c h w", v="o i k k", u="o i 1 1", b="o", d="o", i=(2,), c=(2,), k=(3, 5),
      padding=integers(lambda s: [(s["k"] // 2, s["k"] // 2)]), none=integers((0, 0)), **SAMPLES)  # fmt: skip
def small_kernel_in_large(
    x: Term, v: Term, u: Term, b: Term, d: Term, k: Term, stride: Term, padding: Term, none: Term, dilation: Term,
    groups: Term,
) -> Equation:  # fmt: skip
    """A 1x1 convolution beside an odd k x k one of the same input is its central tap."""
    large = conv2d(x, v, b, stride, padding, dilation, groups)
    small = conv2d(x, u, d, stride, none, dilation, groups)
    half = k // 2
    around = _around(half)
    merged = conv2d(x, add(v, pad(u, around, around, 0.0)), add(b, d), stride, padding, dilation, groups)
    conditions = [
        constant(v), constant(u), padding[0] == half, padding[1] == half, k % 2 == 1, dilation[0] == 1,
        dilation[1] == 1, none[0] == 0, none[1] == 0,
    ]  # fmt: skip
    return add(large, small), merged, conditions


@rule("real", phase="merging", x="n c h w", v="c c k k", b="c", s="1... c 1 1", t="1... c 1 1", k=(1, 3), c=(2, 3),
      stride=ONE, padding=integers(lambda s: [(s["k"] // 2, s["k"] // 2)]), dilation=ONE, groups=integer(1), h=(4,),
      w=(5,))  # fmt: skip
def affine_branch_in_convolution(
    x: Term, v: Term, b: Term, s: Term, t: Term, c: Term, k: Term, stride: Term, padding: Term, dilation: Term,
    groups: Term,
) -> Equation:  # fmt: skip
    """A scaled and shifted identity beside a convolution of the same input is a diagonal in its central tap."""
    half = k // 2
    around = _around(half)
    diagonal = reshape(mul(reshape(s, dims(c, 1)), identity_matrix(c)), dims(c, c, 1, 1))
    merged = conv2d(
        x,
        add(v, pad(diagonal, around, around, 0.0)),
        add(b, reshape(t, dims(c))),
        stride,
        padding,
        dilation,
        groups,
    )
    branch = add(mul(x, s), t)
    return add(branch, conv2d(x, v, b, stride, padding, dilation, groups)), merged, [
        constant(v), constant(s), constant(t), padding[0] == half, padding[1] == half, k % 2 == 1, dilation[0] == 1,
        dilation[1] == 1, stride[0] == 1, stride[1] == 1, groups == 1, shape(s)[0] <= 4, shape(t)[0] <= 4,
    ]  # fmt: skip


@rule("real", phase="merging", x="n c h w", v="c 1 k k", b="c", s="1... c 1 1", t="1... c 1 1", k=(1, 3), c=(2, 3),
      stride=ONE, padding=integers(lambda s: [(s["k"] // 2, s["k"] // 2)]), dilation=ONE,
      groups=integer(lambda s: [s["c"]]), h=(4,), w=(5,))  # fmt: skip
def affine_branch_in_depthwise(
    x: Term, v: Term, b: Term, s: Term, t: Term, c: Term, k: Term, stride: Term, padding: Term, dilation: Term,
    groups: Term,
) -> Equation:  # fmt: skip
    """A scaled and shifted identity beside a depthwise convolution of the same input adds to its central tap."""
    half = k // 2
    around = _around(half)
    tap = pad(reshape(s, dims(c, 1, 1, 1)), around, around, 0.0)
    merged = conv2d(x, add(v, tap), add(b, reshape(t, dims(c))), stride, padding, dilation, groups)
    branch = add(mul(x, s), t)
    return add(branch, conv2d(x, v, b, stride, padding, dilation, groups)), merged, [
        constant(v), constant(s), constant(t), padding[0] == half, padding[1] == half, k % 2 == 1, dilation[0] == 1,
        dilation[1] == 1, stride[0] == 1, stride[1] == 1, groups == c, shape(s)[0] <= 4, shape(t)[0] <= 4,
    ]  # fmt: skip


@rule("exact", phase="merging", a="~ n c h w", b="~ n c h w")
def branches_in_any_order(a: Term, b: Term) -> Equation:
    """A sum of two tensors of one shape is commutative, so that branches merge whichever comes first."""
    return add(a, b), add(b, a), [shape(a)[0] == 4, shape(b)[0] == 4]


@rule("real", phase="merging", x="n c h w", v="c c k k", b="c", k=(1, 3), c=(2, 3), stride=ONE,
      padding=integers(lambda s: [(s["k"] // 2, s["k"] // 2)]), dilation=ONE, groups=integer(1), h=(4,),
      w=(5,))  # fmt: skip
def identity_branch_in_convolution(
    x: Term, v: Term, b: Term, c: Term, k: Term, stride: Term, padding: Term, dilation: Term, groups: Term
) -> Equation:
    """The input added to its own convolution is a one in the central tap of every filter's own channel."""
    half = k // 2
    around = _around(half)
    taps = pad(reshape(identity_matrix(c), dims(c, c, 1, 1)), around, around, 0.0)
    branch = conv2d(x, v, b, stride, padding, dilation, groups)
    return add(x, branch), conv2d(x, add(v, taps), b, stride, padding, dilation, groups), [
        constant(v), padding[0] == half, padding[1] == half, k % 2 == 1, dilation[0] == 1, dilation[1] == 1,
        stride[0] == 1, stride[1] == 1, groups == 1,
    ]  # fmt: skip


@rule("real", phase="merging", x="n c h w", v="c 1 k k", b="c", k=(1, 3), c=(2, 3), stride=ONE,
      padding=integers(lambda s: [(s["k"] // 2, s["k"] // 2)]), dilation=ONE, groups=integer(lambda s: [s["c"]]),
      h=(4,), w=(5,))  # fmt: skip
def identity_branch_in_depthwise(
    x: Term, v: Term, b: Term, c: Term, k: Term, stride: Term, padding: Term, dilation: Term, groups: Term
) -> Equation:
    """The input added to its own depthwise convolution is a one in the central tap."""
    half = k // 2
    around = _around(half)
    one = add(mul(slice_(slice_(v, 5, 0, 1, 1), 6, 0, 1, 1), scalar(0.0)), scalar(1.0))
    branch = conv2d(x, v, b, stride, padding, dilation, groups)
    return add(x, branch), conv2d(x, add(v, pad(one, around, around, 0.0)), b, stride, padding, dilation, groups), [
        constant(v), padding[0] == half, padding[1] == half, k % 2 == 1, dilation[0] == 1, dilation[1] == 1,
        stride[0] == 1, stride[1] == 1, groups == c,
    ]  # fmt: skip


@rule("real", phase="merging", x="n c h w", v="c c k k", b="c", k=(1, 3), c=(2, 3), stride=STRIDES,
      kernel=integers(lambda s: [(s["k"], s["k"])]), padding=integers(lambda s: [(0, 0), (s["k"] // 2, s["k"] // 2)]),
      dilation=ONE, groups=integer(1), ceil=integer(0), include_pad=integer(1), h=(4,), w=(5,))  # fmt: skip
def average_branch_in_convolution(
    x: Term, v: Term, b: Term, c: Term, k: Term, kernel: Term, stride: Term, padding: Term, dilation: Term,
    groups: Term, ceil: Term, include_pad: Term,
) -> Equation:  # fmt: skip
    """An average pool beside a convolution of the same window is an equal share of every tap of its own channel."""
    share = mul(reshape(identity_matrix(c), dims(c, c, 1, 1)), scalar(power(k * k, -1.0)))
    branch = conv2d(x, v, b, stride, padding, dilation, groups)
    merged = conv2d(x, add(v, share), b, stride, padding, dilation, groups)
    return add(avg_pool2d(x, kernel, stride, padding, ceil, include_pad), branch), merged, [
        constant(v), kernel[0] == k, kernel[1] == k, dilation[0] == 1, dilation[1] == 1, groups == 1, ceil == 0,
        include_pad == 1,
    ]  # fmt: skip


@rule("real", phase="merging", x="n c h w", u="o i k l", d="o", i=(2,), c=(2,), k=(1, 3), l=(1, 3),
      padding=integers((0, 0), (1, 1)), **SAMPLES)  # fmt: skip
def subtracted_convolution_is_added(
    a: Term, x: Term, u: Term, d: Term, stride: Term, padding: Term, dilation: Term, groups: Term
) -> Equation:
    """Subtracting a convolution adds that with the negative weights, so that differences of branches merge."""
    negative = conv2d(x, unary("neg", u), unary("neg", d), stride, padding, dilation, groups)
    return (
        sub(a, conv2d(x, u, d, stride, padding, dilation, groups)),
        add(a, negative),
        [constant(u), constant(d)],
    )


@rule("real", phase="merging", a="~ n c h w", x="~ n c h w", s="~ c 1 1", t="~ c 1 1")
def subtracted_affine_is_added(a: Term, x: Term, s: Term, t: Term) -> Equation:
    """Subtracting a scaled and shifted tensor adds it with the negative scale and shift."""
    negative = add(mul(x, unary("neg", s)), unary("neg", t))
    return sub(a, add(mul(x, s), t)), add(negative, a), [constant(s), constant(t), shape(a)[0] == 4]


# -- siblings ----------------------------------------------------------------------------------------------

SIBLINGS: dict[str, Any] = {
    "x": "~ n c h w", "f": name("relu", "silu"), "stride": STRIDES, "padding": integers((0, 0), (1, 0)),
    "dilation": ONE, "c": (2,), "h": (4, 5), "w": (4, 5), "k": (1, 3), "l": (1, 2),
}  # fmt: skip


def _stacked(slot: int, *parts: Term) -> Term:
    joined, *rest = parts
    for part in rest:
        joined = concat(slot, joined, part)
    return joined


def _parts(whole: Term, slot: int, *sizes: Term) -> list[Term]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice_(whole, slot, end - size, end, 1) for end, size in zip(ends, sizes, strict=True)]


@rule("real", phase="merging", v="o c k l", u="p c k l", b="o", d="p", **SIBLINGS)
def two_sibling_convolutions(
    x: Term, v: Term, u: Term, b: Term, d: Term, f: Term, o: Term, p: Term, stride: Term, padding: Term,
    dilation: Term,
) -> Equation:  # fmt: skip
    """Two convolutions of one input with the same window and activation are one, sliced by channels."""
    window = (stride, padding, dilation, 1)
    results = [unary(f, conv2d(x, weight, bias, *window)) for weight, bias in ((v, b), (u, d))]
    whole = unary(f, conv2d(x, _stacked(3, v, u), _stacked(6, b, d), *window))
    pairs = zip(results, _parts(whole, 4, o, p), strict=True)
    return *pairs, [constant(v), constant(u), *siblings(*results)]


@rule("real", phase="merging", v="o c k l", u="p c k l", z="q c k l", b="o", d="p", e="q", **SIBLINGS)
def three_sibling_convolutions(
    x: Term, v: Term, u: Term, z: Term, b: Term, d: Term, e: Term, f: Term, o: Term, p: Term, q: Term, stride: Term,
    padding: Term, dilation: Term,
) -> Equation:  # fmt: skip
    """Three convolutions of one input with the same window and activation are one, sliced by channels."""
    window = (stride, padding, dilation, 1)
    results = [unary(f, conv2d(x, weight, bias, *window)) for weight, bias in ((v, b), (u, d), (z, e))]
    whole = unary(f, conv2d(x, _stacked(3, v, u, z), _stacked(6, b, d, e), *window))
    pairs = zip(results, _parts(whole, 4, o, p, q), strict=True)
    return *pairs, [*map(constant, (v, u, z)), *siblings(*results)]


def _flat(channels: str) -> Attribute:
    """Positions in one axis: what attention makes of a map."""
    return integers(lambda s: [dims(s["n"], s[channels], s["h"] * s["w"])])


def _reshaped(pairs: list[tuple[Term, Term]], *targets: Term) -> list[tuple[Term, Term]]:
    """Without this to tell projections, every convolution before its BatchNorm would be somebody's sibling."""
    return [(reshape(a, to), reshape(b, to)) for (a, b), to in zip(pairs, targets, strict=True)]


PROJECTIONS: dict[str, Any] = {
    "x": "n c h w", "stride": ONE, "padding": integers((0, 0)), "dilation": ONE, "c": (2,), "h": (4, 5), "w": (4, 5),
    "k": (1,), "l": (1,),
}  # fmt: skip


@rule("real", phase="merging", v="o c k l", u="p c k l", b="o", d="p", keys=_flat("o"), values=_flat("p"),
      **PROJECTIONS)  # fmt: skip
def two_projections_of_map(
    x: Term, v: Term, u: Term, b: Term, d: Term, o: Term, p: Term, stride: Term, padding: Term, dilation: Term,
    keys: Term, values: Term,
) -> Equation:  # fmt: skip
    """Two convolutions of one input that are reshaped (key and value of a map) are one, sliced by channels."""
    window = (stride, padding, dilation, 1)
    results = [conv2d(x, weight, bias, *window) for weight, bias in ((v, b), (u, d))]
    parts = _parts(conv2d(x, _stacked(3, v, u), _stacked(6, b, d), *window), 4, o, p)
    pairs = list(zip(results, parts, strict=True))
    return *pairs, *_reshaped(pairs, keys, values), [constant(v), constant(u), *siblings(*results)]


@rule("real", phase="merging", v="o c k l", u="p c k l", z="q c k l", b="o", d="p", e="q", queries=_flat("o"),
      keys=_flat("p"), values=_flat("q"), **PROJECTIONS)  # fmt: skip
def three_projections_of_map(
    x: Term, v: Term, u: Term, z: Term, b: Term, d: Term, e: Term, o: Term, p: Term, q: Term, stride: Term,
    padding: Term, dilation: Term, queries: Term, keys: Term, values: Term,
) -> Equation:  # fmt: skip
    """Three convolutions of one input that are reshaped (query, key and value of a map) are one, sliced by channels."""
    window = (stride, padding, dilation, 1)
    results = [conv2d(x, weight, bias, *window) for weight, bias in ((v, b), (u, d), (z, e))]
    parts = _parts(conv2d(x, _stacked(3, v, u, z), _stacked(6, b, d, e), *window), 4, o, p, q)
    pairs = list(zip(results, parts, strict=True))
    return *pairs, *_reshaped(pairs, queries, keys, values), [*map(constant, (v, u, z)), *siblings(*results)]


@rule("real", phase="merging", x="... k", v="o k", u="p k", b="o", d="p")
def two_sibling_linears(x: Term, v: Term, u: Term, b: Term, d: Term, o: Term, p: Term) -> Equation:
    """Two Linears on one input (key and value) are one, sliced by features."""
    results = [linear(x, v, b), linear(x, u, d)]
    whole = linear(x, _stacked(5, v, u), _stacked(6, b, d))
    pairs = zip(results, _parts(whole, 6, o, p), strict=True)
    return *pairs, [runtime(x), constant(v), constant(u), *siblings(*results)]


@rule("real", phase="merging", x="... k", v="o k", u="p k", z="q k", b="o", d="p", e="q")
def three_sibling_linears(
    x: Term, v: Term, u: Term, z: Term, b: Term, d: Term, e: Term, o: Term, p: Term, q: Term
) -> Equation:
    """Three Linears on one input (query, key and value) are one, sliced by features."""
    results = [linear(x, v, b), linear(x, u, d), linear(x, z, e)]
    whole = linear(x, _stacked(5, v, u, z), _stacked(6, b, d, e))
    pairs = zip(results, _parts(whole, 6, o, p, q), strict=True)
    return *pairs, [runtime(x), *map(constant, (v, u, z)), *siblings(*results)]


HEADS_FIRST = (0, 1, 2, 3, 5, 4, 6)
PARTS_FIRST = (0, 1, 4, 2, 5, 3, 6)


SPLIT = integers(lambda d: [dims(d["n"], d["s"], 2, d["o"] // 2)])


@rule("real", phase="merging", x="n s k", v="o k", u="o k", z="o k", b="o", d="o", e="o", o=(4, 8), k=(2, 3),
      heads=SPLIT, alike=SPLIT, same=SPLIT)  # fmt: skip
def projections_of_heads(
    x: Term, v: Term, u: Term, z: Term, b: Term, d: Term, e: Term, n: Term, s: Term, heads: Term, alike: Term,
    same: Term,
) -> Equation:  # fmt: skip
    """Query, key and value split into heads are thirds of one projection that is split and moved once."""
    projected = ((v, b, heads), (u, d, alike), (z, e, same))
    results = [permute(reshape(linear(x, w, c), to), HEADS_FIRST) for w, c, to in projected]
    thirds = reshape(linear(x, _stacked(5, v, u, z), _stacked(6, b, d, e)), dims(n, s, 3, heads[5], heads[6]))
    whole = permute(thirds, PARTS_FIRST)
    parts = [reshape(part, dims(n, heads[5], s, heads[6])) for part in _parts(whole, 2, 1, 1, 1)]
    # One variable for the three would have egglog join every three splits of the model before it looks at `x`.
    split_alike = [
        to[i] == size for to in (heads, alike, same) for i, size in ((0, 4), (3, n), (4, s), (5, heads[5]))
    ]
    return *zip(results, parts, strict=True), [*map(constant, (v, u, z)), *split_alike, *siblings(*results)]


EXPANDED: dict[str, Any] = {
    "x": "n c h w", "f": name("relu"), "stride": STRIDES, "none": integers((0, 0)), "dilation": ONE,
    "padding": integers(lambda s: [(s["k"] // 2, s["k"] // 2)]), "c": (2,), "h": (4, 5), "w": (4, 5), "k": (3, 5),
}  # fmt: skip


@rule("real", phase="merging", v="o c k k", u="p c 1 1", b="o", d="p", **EXPANDED)
def small_before_large_kernel(
    x: Term, v: Term, u: Term, b: Term, d: Term, f: Term, k: Term, stride: Term, none: Term, padding: Term,
    dilation: Term,
) -> Equation:  # fmt: skip
    """A 1x1 convolution put before an odd k x k one of the same input (a fire module) has filters with one tap."""
    half = k // 2
    around = _around(half)
    small = unary(f, conv2d(x, u, d, stride, none, dilation, 1))
    large = unary(f, conv2d(x, v, b, stride, padding, dilation, 1))
    filters = _stacked(3, pad(u, around, around, 0.0), v)
    whole = unary(f, conv2d(x, filters, _stacked(6, d, b), stride, padding, dilation, 1))
    return concat(4, small, large), whole, [
        constant(v), constant(u), padding[0] == half, padding[1] == half, k % 2 == 1, dilation[0] == 1,
        dilation[1] == 1, none[0] == 0, none[1] == 0,
    ]  # fmt: skip


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
