"""Operators that are linear in their data: convolutions, Linear, matrix products, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqsat_deploy.language.expressions import maximum, replace, vec
from eqsat_deploy.language.leaves import zeros_like
from eqsat_deploy.language.operator import IMPORTERS, Ints, Unsupported, aten, operator
from eqsat_deploy.language.shapes import SLOTS, elements
from eqsat_extraction.kernel import Kind


def conv_size(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """Output length of a convolution or pool along one axis (torch.nn.Conv2d's formula)."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def set_parameters(module: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    """`module`, created on meta, with these values; a bias of zeros is no bias."""
    module.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
    if bias.any():
        module.bias = nn.Parameter(bias)
    else:
        module.register_parameter("bias", None)
    return module


def _conv2d_module(
    w: Tensor, b: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> nn.Module:
    out, per_group, *kernel = w.shape
    conv = nn.Conv2d(per_group * groups, out, tuple(kernel), stride, padding, dilation, groups, device="meta")  # type: ignore[arg-type]
    return set_parameters(conv, w, b)


def conv_flops(out: Ints, x: Ints, w: Ints, *_: Any) -> float:
    """Multiplications and additions of a convolution."""
    return 2.0 * elements(out) * elements(w[1:])


@operator(
    Kind.CONVOLUTION, bias="b", channels=0,
    shape=lambda x, w, b, stride, padding, dilation, groups: vec(
        4, 1, 1, x[3], w[3],
        conv_size(x[5], w[5], stride[0], padding[0], dilation[0]),
        conv_size(x[6], w[6], stride[1], padding[1], dilation[1]),
    ),
    epilogue=True, integer="compute", linear=True, flops=conv_flops, module=_conv2d_module,
)  # fmt: skip
def conv2d(
    x: Tensor, w: Tensor, b: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """2-D convolution, NCHW, weight (out, in / groups, height, width), bias (out)."""
    return F.conv2d(x, w, b, stride, padding, dilation, groups)


def _conv_transpose2d_module(
    w: Tensor, b: Tensor, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints, groups: int
) -> nn.Module:
    inner, per_group, *kernel = w.shape
    conv = nn.ConvTranspose2d(
        inner, per_group * groups, tuple(kernel), stride, padding, output_padding, groups, True, dilation,  # type: ignore[arg-type]
        device="meta",
    )  # fmt: skip
    return set_parameters(conv, w, b)


def conv_transpose_flops(out: Ints, x: Ints, w: Ints, *_: Any) -> float:
    """Multiplications and additions of a transposed convolution."""
    return 2.0 * elements(x) * elements(w[1:])


def transposed_size(size: Any, kernel: Any, stride: Any, padding: Any, extra: Any, dilation: Any) -> Any:
    """Output length of a transposed convolution along one axis (torch.nn.ConvTranspose2d's formula)."""
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1


@operator(
    Kind.CONVOLUTION, bias="b", channels=1,
    shape=lambda x, w, b, stride, padding, output_padding, dilation, groups: vec(
        4, 1, 1, x[3], w[4] * groups,
        transposed_size(x[5], w[5], stride[0], padding[0], output_padding[0], dilation[0]),
        transposed_size(x[6], w[6], stride[1], padding[1], output_padding[1], dilation[1]),
    ),
    epilogue=True, integer="compute", linear=True, module=_conv_transpose2d_module,
    flops=conv_transpose_flops,
)  # fmt: skip
def conv_transpose2d(
    x: Tensor, w: Tensor, b: Tensor, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints,
    groups: int,
) -> Tensor:  # fmt: skip
    """Transposed 2-D convolution, weight (in, out / groups, height, width)."""
    return F.conv_transpose2d(x, w, b, stride, padding, output_padding, groups, dilation)


def _linear_module(w: Tensor, b: Tensor) -> nn.Module:
    return set_parameters(nn.Linear(w.shape[1], w.shape[0], device="meta"), w, b)


@operator(
    Kind.PRODUCT, bias="b", channels=0, along=(6,),
    shape=lambda x, w, b: replace(x, 6, w[5]),
    epilogue=True, integer="compute", linear=True, module=_linear_module,
    flops=lambda out, x, w, *_: 2.0 * elements(out) * w[1],
)  # fmt: skip
def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x @ w.T + b over the last axis; weight (out, in), bias (out)."""
    return F.linear(x, w, b)


@operator(
    Kind.PRODUCT, channels=-1,
    shape=lambda a, b: vec(*(maximum(a[i], b[i]) for i in range(5)), a[5], b[6]),
    epilogue=True, linear=True,
    flops=lambda out, a, b: 2.0 * elements(out) * a[-1],
)  # fmt: skip
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product over the last two axes, leading axes broadcast. Both of rank two or more."""
    return torch.matmul(a, b)


def _embedding_module(w: Tensor) -> nn.Module:
    module = nn.Embedding(w.shape[0], w.shape[1], device="meta")
    module.weight = nn.Parameter(w)
    return module


@operator(
    Kind.LOOKUP,
    dtype=lambda index, w: w.dtype,
    shape=lambda index, w: vec(index[0] + 1, *(index[i] for i in range(2, SLOTS)), w[6]),
    module=_embedding_module,
    flops=lambda out, *_: 0.0,
)
def embedding(index: Tensor, w: Tensor) -> Tensor:
    """Rows of `w` (rows, width) at `index` (integers)."""
    return F.embedding(index, w)


def _pair(value: int | Sequence[int]) -> Ints:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * 2 if len(values) == 1 else values


def _bias(b: Any, w: Any, out: int) -> Any:
    return zeros_like(w, out) if b is None else b


@aten("conv2d.default")
def _conv2d(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    if len(x.shape) != 4:
        raise Unsupported("a convolution without batch dimension")
    return conv2d(x, w, _bias(b, w, w.shape[0]), _pair(stride), _pair(padding), _pair(dilation), groups)


def same_padding(padding: str, w: Any, dilation: Ints) -> Ints:
    """The widths of `valid` or `same`, where both ends get as much."""
    totals = tuple(
        d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, w.shape[2:], strict=True)
    )
    if any(t % 2 for t in totals):
        raise Unsupported("asymmetric 'same' padding")
    return tuple(t // 2 for t in totals)


@aten("conv2d.padding")
def _conv2d_padding(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: str = "valid", dilation: Any = 1, groups: int = 1
) -> Any:
    return _conv2d(x, w, b, stride, same_padding(padding, w, _pair(dilation)), dilation, groups)


@aten("convolution.default")
def _convolution(
    x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any,
    groups: int,
) -> Any:  # fmt: skip
    axes = len(w.shape) - 2
    if transposed:
        name = f"conv_transpose{axes}d.{'default' if axes == 1 else 'input'}"
        return IMPORTERS[name](x, w, b, stride, padding, output_padding, groups, dilation)
    return IMPORTERS[f"conv{axes}d.default"](x, w, b, stride, padding, dilation, groups)


@aten("conv_transpose2d.input")
def _conv_transpose2d(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    bias = _bias(b, w, w.shape[1] * groups)
    pairs = [_pair(v) for v in (stride, padding, output_padding, dilation)]
    return conv_transpose2d(x, w, bias, *pairs, groups)


@aten("linear.default")
def _linear(x: Any, w: Any, b: Any = None) -> Any:
    if len(w.shape) != 2 or not x.shape:
        raise Unsupported("a Linear whose weight is no matrix")
    return linear(x, w, _bias(b, w, w.shape[0]))


def product(a: Any, b: Any, bias: Any = None) -> Any:
    """`a @ b`, plus a bias of the columns; over a constant matrix a Linear, which INT8, folding and merging know."""
    from eqsat_deploy.language.movement import to_order
    from eqsat_deploy.language.pointwise import add

    if b.constant and not a.constant and len(b.shape) == 2 and b.dtype.is_floating_point:
        own = bias is not None and bias.constant and tuple(bias.shape) == (b.shape[1],)
        result = linear(a, to_order(b, (1, 0)), bias if own else zeros_like(b, b.shape[1]))
        return result if own or bias is None else add(result, bias)
    return matmul(a, b) if bias is None else add(matmul(a, b), bias)


@aten("addmm.default")
def _addmm(b: Any, x: Any, w: Any, beta: float = 1, alpha: float = 1) -> Any:
    if beta != 1 or alpha != 1:
        raise Unsupported("scaled addmm")
    return product(x, w, b)


@aten("matmul.default", "mm.default", "bmm.default")
def _matmul(a: Any, b: Any) -> Any:
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise Unsupported("a product with a vector")
    return product(a, b)


@aten("embedding.default")
def _embedding(
    w: Any, index: Any, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Any:
    return embedding(index, w)
