"""What each torch function in a rebuilt module is in OpenVINO's operators."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eqsat_deploy.engines.openvino_writing import (
    FREE,
    Unwritten,
    Written,
    axis_of,
    ints,
    listed,
    ops,
    output_of,
    pair,
    refuse,
    sizes_of,
    writes,
)
from eqsat_deploy.language.attention import SelfAttention, attended

# -- pointwise ---------------------------------------------------------------------------------------------------------

UNARY: dict[Any, str] = {
    torch.abs: "abs", torch.acos: "acos", torch.acosh: "acosh", torch.asin: "asin", torch.asinh: "asinh",
    torch.atan: "atan", torch.atanh: "atanh", torch.ceil: "ceil", torch.cos: "cos", torch.cosh: "cosh",
    torch.erf: "erf", torch.exp: "exp", torch.floor: "floor", torch.log: "log", torch.neg: "negative",
    torch.relu: "relu", torch.sigmoid: "sigmoid", torch.sign: "sign", torch.sin: "sin", torch.sinh: "sinh",
    torch.sqrt: "sqrt", torch.tan: "tan", torch.tanh: "tanh", F.hardsigmoid: "hsigmoid", F.hardswish: "hswish",
    F.mish: "mish", F.silu: "swish",
}  # fmt: skip
BINARY: dict[Any, str] = {
    operator.add: "add", operator.sub: "subtract", operator.mul: "multiply", operator.truediv: "divide",
    operator.pow: "power", torch.pow: "power", torch.maximum: "maximum", torch.minimum: "minimum",
}  # fmt: skip


def _unary(name: str) -> Callable[..., Any]:
    def unary(x: Written, inplace: bool = False) -> Any:
        _is_float(x)
        return getattr(ops(), name)(x.output)

    return unary


def _binary(name: str) -> Callable[..., Any]:
    def binary(a: Any, b: Any) -> Any:
        if name == "multiply" and isinstance(b, int) and isinstance(a, Written) and a.dtype == torch.int64:
            return ops().multiply(a.output, np.int64(b))
        _is_float(a, b)
        return getattr(ops(), name)(*map(_float, (a, b)))

    return binary


for _function, _name in UNARY.items():
    writes(_function)(_unary(_name))
for _function, _name in BINARY.items():
    writes(_function)(_binary(_name))


def _is_float(*values: Any) -> None:
    for value in values:
        if isinstance(value, Written) and value.dtype != torch.float32:
            raise Unwritten(f"a function of {value.dtype}")


def _float(value: Any) -> Any:
    """A tensor, or a number, as what meets a tensor of float32."""
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor | Written):
        raise Unwritten(f"a {type(value).__name__} beside a tensor")
    if isinstance(value, int | float):
        return np.float32(value)
    if isinstance(value, Tensor) and value.dtype != torch.float32:
        if value.dim() or value.dtype == torch.bool:
            raise Unwritten(f"a tensor of {value.dtype} beside one of float32")
        value = value.float()  # a number, which takes the dtype of what it meets
    return output_of(value)


@writes(F.gelu)
def _gelu(x: Written, approximate: str = "none") -> Any:
    return ops().gelu(x.output, "tanh" if approximate == "tanh" else "erf")


@writes(F.elu)
def _elu(x: Written, alpha: float = 1.0, inplace: bool = False) -> Any:
    return ops().elu(x.output, alpha)


@writes(F.leaky_relu)
def _leaky_relu(x: Written, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return ops().prelu(x.output, np.array([negative_slope], np.float32))


@writes(torch.prelu)
def _prelu(x: Written, weight: Tensor) -> Any:
    return ops().prelu(x.output, output_of(weight))


@writes(torch.clamp)
def _clamp(x: Written, min: Any = None, max: Any = None) -> Any:
    _is_float(x)
    refuse(*(isinstance(bound, Tensor | Written) for bound in (min, max)))
    if min is not None and max is not None:
        return ops().clamp(x.output, float(min), float(max))
    if min is None:
        return ops().minimum(x.output, np.float32(max))
    return ops().maximum(x.output, np.float32(min))


@writes(torch.rsqrt)
def _rsqrt(x: Written) -> Any:
    return ops().divide(np.float32(1), ops().sqrt(x.output))


@writes(torch.reciprocal)
def _reciprocal(x: Written) -> Any:
    return ops().divide(np.float32(1), x.output)


# -- products ----------------------------------------------------------------------------------------------------------


@writes(torch.conv2d)
def _conv2d(
    x: Written, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Any:  # fmt: skip
    strides, dilations = pair(stride), pair(dilation)
    if isinstance(padding, str):
        raise Unwritten(f"padding {padding!r}")
    pads = pair(padding)
    weight = _grouped(output_of(weight), groups, outputs=0)
    convolution = ops().convolution if groups == 1 else ops().group_convolution
    return _biased(convolution(x.output, weight, strides, pads, pads, dilations), bias)


@writes(torch.conv_transpose2d)
def _conv_transpose2d(
    x: Written, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    weight, pads = _grouped(output_of(weight), groups, outputs=1), pair(padding)
    convolution = ops().convolution_backprop_data if groups == 1 else ops().group_convolution_backprop_data
    found = convolution(
        x.output,
        weight,
        pair(stride),
        pads_begin=pads,
        pads_end=pads,
        dilations=pair(dilation),
        auto_pad="EXPLICIT",
        output_padding=pair(output_padding),
    )
    return _biased(found, bias)


def _grouped(weight: Any, groups: int, outputs: int) -> Any:
    """A weight with an axis of groups in front, if there are any, taken out of its first axis."""
    if groups == 1:
        return weight
    first, *rest = (size.get_length() for size in weight.get_partial_shape())
    return ops().reshape(weight, ints(groups, first // groups, *rest), special_zero=False)


def _biased(product: Any, bias: Any) -> Any:
    if bias is None:
        return product
    if not isinstance(bias, Tensor):
        raise Unwritten("a bias that is computed")
    return ops().add(product, output_of(bias.reshape(1, -1, 1, 1)))


@writes(F.linear)
def _linear(x: Written, weight: Any, bias: Any = None) -> Any:
    product = ops().matmul(output_of(x), output_of(weight), False, True)
    return product if bias is None else ops().add(product, output_of(bias))


@writes(torch.matmul, "matmul")
def _matmul(a: Any, b: Any) -> Any:
    return ops().matmul(output_of(a), output_of(b), False, False)


@writes(F.embedding)
def _embedding(index: Written, weight: Any, padding_idx: Any = None, max_norm: Any = None, norm_type: float = 2.0,
               scale_grad_by_freq: bool = False, sparse: bool = False) -> Any:  # fmt: skip
    refuse(max_norm)
    return ops().gather(output_of(weight), index.output, ops().constant(np.int64(0)))


@writes(F.scaled_dot_product_attention)
def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    refuse(dropout_p, enable_gqa)
    given = [output_of(query), output_of(key), output_of(value)]
    mask = None if attn_mask is None else output_of(attn_mask)
    by = None if scale is None else np.float32(scale)
    if mask is None and by is not None:  # which stands behind the mask
        mask = ops().constant(np.float32(0)).output(0)
    return ops().scaled_dot_product_attention(*given, mask, by, causal=is_causal)


def self_attention(module: SelfAttention, x: Written) -> Any:
    """`nn.MultiheadAttention` on one tensor, (batch, positions, width)."""
    held = module.attention
    qkv = F.linear(x, held.in_proj_weight, held.in_proj_bias)  # type: ignore[arg-type]
    return F.linear(attended(qkv, held.num_heads), held.out_proj.weight, held.out_proj.bias)


# -- normalization and reduction ---------------------------------------------------------------------------------------


@writes(F.batch_norm)
def _batch_norm(x: Written, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
                training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Any:  # fmt: skip
    refuse(training, weight is None, bias is None)
    held = map(output_of, (weight, bias, running_mean, running_var))
    return ops().batch_norm_inference(x.output, *held, eps)


@writes(F.layer_norm)
def _layer_norm(
    x: Written, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    found = ops().mvn(x.output, ints(*range(-len(normalized_shape), 0)), True, eps, "INSIDE_SQRT")
    if weight is not None:
        found = ops().multiply(found, output_of(weight))
    return found if bias is None else ops().add(found, output_of(bias))


@writes(F.group_norm)
def _group_norm(x: Written, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    refuse(weight is None, bias is None)
    return ops().group_normalization(x.output, output_of(weight), output_of(bias), num_groups, eps)


@writes(F.softmax)
def _softmax(x: Written, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Any:
    refuse(dtype)
    return ops().softmax(x.output, axis_of(x, dim))


@writes(F.log_softmax)
def _log_softmax(x: Written, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Any:
    refuse(dtype)
    return ops().log_softmax(x.output, axis_of(x, dim))


REDUCTIONS: dict[Any, str] = {
    torch.mean: "reduce_mean", "mean": "reduce_mean", torch.sum: "reduce_sum", torch.amax: "reduce_max",
    torch.amin: "reduce_min",
}  # fmt: skip


def _reduction(name: str) -> Callable[..., Any]:
    def reduction(x: Written, dim: Any, keepdim: bool = False) -> Any:
        _is_float(x)
        axes = ints(*(axis_of(x, d) for d in ([dim] if isinstance(dim, int) else dim)))
        return getattr(ops(), name)(x.output, axes, keepdim)

    return reduction


for _function, _name in REDUCTIONS.items():
    writes(_function)(_reduction(_name))


# -- pools -------------------------------------------------------------------------------------------------------------


@writes(F.max_pool2d)
def _max_pool2d(x: Written, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                ceil_mode: bool = False, return_indices: bool = False) -> Any:  # fmt: skip
    refuse(return_indices)
    kernel, pads = pair(kernel_size), pair(padding)
    rounding = "ceil_torch" if ceil_mode else "floor"
    return ops().max_pool(
        x.output, pair(stride or kernel), pair(dilation), pads, pads, kernel, rounding, axis=2
    )


@writes(F.avg_pool2d)
def _avg_pool2d(x: Written, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
                count_include_pad: bool = True, divisor_override: Any = None) -> Any:  # fmt: skip
    refuse(divisor_override)
    kernel, pads = pair(kernel_size), pair(padding)
    rounding = "ceil_torch" if ceil_mode else "floor"
    return ops().avg_pool(
        x.output, pair(stride or kernel), pads, pads, kernel, not count_include_pad, rounding
    )


@writes(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x: Written, output_size: Any) -> Any:
    sizes = pair(output_size)
    if sizes == [1, 1]:
        return ops().reduce_mean(x.output, ints(-1, -2), True)
    return ops().adaptive_avg_pool(x.output, ints(*sizes))


# -- movement ----------------------------------------------------------------------------------------------------------


@writes(torch.reshape, "reshape", "view")
def _reshape(x: Written, *shape: Any) -> Any:
    sizes = listed(shape)
    if sum(size == FREE for size in sizes if isinstance(size, int)) > 1:
        raise Unwritten("a reshape to more than one size that is not known")
    return ops().reshape(x.output, sizes_of(sizes), special_zero=False)


@writes(torch.flatten, "flatten")
def _flatten(x: Written, start_dim: int = 0, end_dim: int = -1) -> Any:
    first, last, shape = axis_of(x, start_dim), axis_of(x, end_dim), x.shape
    middle = shape[first : last + 1]
    return _reshape(x, (*shape[:first], FREE if FREE in middle else math.prod(middle), *shape[last + 1 :]))


@writes(torch.permute, "permute")
def _permute(x: Written, *dims: Any) -> Any:
    return ops().transpose(x.output, ints(*(axis_of(x, d) for d in listed(dims))))


@writes(torch.transpose, "transpose")
def _transpose(x: Written, dim0: int, dim1: int) -> Any:
    order = list(range(x.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return ops().transpose(x.output, ints(*order))


@writes(torch.narrow, "narrow")
def _narrow(x: Written, dim: int, start: int, length: int) -> Any:
    return _sliced(x, dim, start, start + length)


@writes(torch.ops.aten.slice.Tensor)
def _sliced(x: Written, dim: int, start: int, end: int, step: int = 1) -> Any:
    bounds = (ints(value) for value in (start, end, step, axis_of(x, dim)))
    return ops().slice(x.output, *bounds)


@writes("unbind", torch.unbind)
def _unbind(x: Written, dim: int = 0) -> Any:
    axis = ops().constant(np.int64(axis_of(x, dim)))
    parts = ops().split(x.output, axis, x.shape[dim])
    return [ops().squeeze(part, axis).output(0) for part in parts.outputs()]


@writes(operator.getitem)
def _part(parts: Any, index: int) -> Any:
    if not isinstance(parts, tuple):
        raise Unwritten("an index into a tensor")
    return parts[index]


@writes(torch.cat)
def _cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    given = list(map(output_of, tensors))
    if len({str(each.get_element_type()) for each in given}) > 1:
        raise Unwritten("a concatenation of several dtypes")
    return ops().concat(given, dim % len(given[0].get_partial_shape()))


@writes(torch.roll)
def _roll(x: Written, shifts: Any, dims: Any = None) -> Any:
    refuse(dims is None)
    shifts, dims = ([value] if isinstance(value, int) else value for value in (shifts, dims))
    return ops().roll(x.output, ints(*shifts), ints(*(axis_of(x, d) for d in dims)))


@writes(F.pad)
def _pad(x: Written, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if mode not in modes:
        raise Unwritten(f"padding {mode!r}")
    _is_float(x)
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, width in enumerate(pad):
        (after if place % 2 else before)[-1 - place // 2] = width
    filler = np.float32(value or 0) if mode == "constant" else None
    return ops().pad(x.output, ints(*before), ints(*after), modes[mode], filler)


@writes(F.interpolate)
def _interpolate(x: Written, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
                 align_corners: bool | None = None, recompute_scale_factor: Any = None,
                 antialias: bool = False) -> Any:  # fmt: skip
    refuse(size is None, scale_factor, recompute_scale_factor, antialias, x.dim() != 4)
    modes = {"nearest": "nearest", "bilinear": "linear_onnx", "bicubic": "cubic"}
    if mode not in modes:
        raise Unwritten(f"interpolation {mode!r}")
    corners = "align_corners" if align_corners else "pytorch_half_pixel"
    return ops().interpolate(
        x.output, ints(*pair(size)), modes[mode], "sizes", nearest_mode="floor", axes=ints(2, 3),
        coordinate_transformation_mode="asymmetric" if mode == "nearest" else corners,
    )  # fmt: skip


@writes("expand")
def _expand(x: Any, *shape: Any) -> Any:
    return ops().broadcast(
        output_of(x), sizes_of([1 if s == FREE else s for s in listed(shape)]), broadcast_spec="BIDIRECTIONAL"
    )


@writes("size")
def _size(x: Written, dim: int) -> Any:
    known = x.shape[dim]
    if known != FREE:
        return known
    return ops().gather(ops().shape_of(x.output), ints(axis_of(x, dim)), ops().constant(np.int64(0)))
