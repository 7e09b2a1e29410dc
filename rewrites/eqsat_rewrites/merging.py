"""Merging: parallel branches of one input as one convolution (RepVGG and MobileOne in training form)."""

from typing import Any

from eqsat_deploy.language import add, conv2d, dims, identity_matrix, mul, pad, replace, reshape
from eqsat_deploy.rules import Equation, Term, constant, integer, integers, rule, shape

STRIDES = integers((1, 1), (2, 2))
ONE = integers((1, 1))
SAMPLES: dict[str, Any] = {"h": (4, 5), "w": (4, 5), "stride": STRIDES, "dilation": ONE, "groups": integer(1)}
NONE = (0, 0, 0, 0, 0, 0, 0)


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
    around = replace(replace(NONE, 5, half), 6, half)
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
    around = replace(replace(NONE, 5, half), 6, half)
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
    around = replace(replace(NONE, 5, half), 6, half)
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
