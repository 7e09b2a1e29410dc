"""What each torch function in a rebuilt module is in OpenVINO's operators, but for the pointwise."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eqsat_deploy.engines.openvino_writing import FUNCTIONS, ints, ops, output_of, sizes_of
from eqsat_deploy.engines.writing import (
    FREE,
    Unwritten,
    Written,
    axes_of,
    axis_of,
    exchanged,
    flat,
    index_of,
    is_float,
    listed,
    pair,
    refuse,
    spread,
    widths,
    with_one_free,
)

writes = FUNCTIONS.writes

# -- products ----------------------------------------------------------------------------------------------------------


@writes(torch.conv2d, torch.conv3d)
def _convolution(
    x: Written, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Any:  # fmt: skip
    strides, pads, dilations = (spread(each, x.dim() - 2) for each in (stride, padding, dilation))
    weight = _grouped(output_of(weight), groups, outputs=0)
    convolution = ops().convolution if groups == 1 else ops().group_convolution
    return _biased(convolution(x.value, weight, strides, pads, pads, dilations), bias, x.dim())


@writes(torch.conv_transpose2d, torch.conv_transpose3d)
def _conv_transpose(
    x: Written, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    weight, axes = _grouped(output_of(weight), groups, outputs=1), x.dim() - 2
    pads = spread(padding, axes)
    convolution = ops().convolution_backprop_data if groups == 1 else ops().group_convolution_backprop_data
    found = convolution(
        x.value,
        weight,
        spread(stride, axes),
        pads_begin=pads,
        pads_end=pads,
        dilations=spread(dilation, axes),
        auto_pad="EXPLICIT",
        output_padding=spread(output_padding, axes),
    )
    return _biased(found, bias, x.dim())


def _grouped(weight: Any, groups: int, outputs: int) -> Any:
    """A weight with an axis of groups in front, if there are any, taken out of its first axis."""
    if groups == 1:
        return weight
    first, *rest = (size.get_length() for size in weight.get_partial_shape())
    return ops().reshape(weight, ints(groups, first // groups, *rest), special_zero=False)


def _biased(product: Any, bias: Any, rank: int) -> Any:
    if bias is None:
        return product
    if not isinstance(bias, Tensor):
        raise Unwritten("a bias that is computed")
    return ops().add(product, output_of(bias.reshape(1, -1, *[1] * (rank - 2))))


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
    return ops().gather(output_of(weight), index.value, ops().constant(np.int64(0)))


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


# -- normalization and reduction ---------------------------------------------------------------------------------------


@writes(F.batch_norm)
def _batch_norm(x: Written, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
                training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Any:  # fmt: skip
    refuse(training, weight is None, bias is None)
    held = map(output_of, (weight, bias, running_mean, running_var))
    return ops().batch_norm_inference(x.value, *held, eps)


@writes(F.layer_norm)
def _layer_norm(
    x: Written, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    found = ops().mvn(x.value, ints(*range(-len(normalized_shape), 0)), True, eps, "INSIDE_SQRT")
    if weight is not None:
        found = ops().multiply(found, output_of(weight))
    return found if bias is None else ops().add(found, output_of(bias))


@writes(F.group_norm)
def _group_norm(x: Written, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    refuse(weight is None, bias is None)
    return ops().group_normalization(x.value, output_of(weight), output_of(bias), num_groups, eps)


@writes(F.rms_norm)
def _rms_norm(x: Written, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    is_float(x)
    axes = ints(*range(-len(normalized_shape), 0))
    mean = ops().reduce_mean(ops().power(x.value, np.float32(2)), axes, True)
    root = ops().sqrt(ops().add(mean, np.float32(torch.finfo(torch.float32).eps if eps is None else eps)))
    found = ops().multiply(x.value, ops().divide(np.float32(1), root))
    return found if weight is None else ops().multiply(found, output_of(weight))


@writes(F.softmax)
def _softmax(x: Written, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Any:
    refuse(dtype)
    return ops().softmax(x.value, axis_of(x, dim))


@writes(F.log_softmax)
def _log_softmax(x: Written, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Any:
    refuse(dtype)
    return ops().log_softmax(x.value, axis_of(x, dim))


REDUCTIONS: dict[Any, str] = {
    torch.mean: "reduce_mean", "mean": "reduce_mean", torch.sum: "reduce_sum", torch.amax: "reduce_max",
    torch.amin: "reduce_min",
}  # fmt: skip


def _reduction(name: str) -> Callable[..., Any]:
    def reduction(x: Written, dim: Any, keepdim: bool = False) -> Any:
        is_float(x)
        axes = ints(*axes_of(x, dim))
        return getattr(ops(), name)(x.value, axes, keepdim)

    return reduction


for _function, _name in REDUCTIONS.items():
    writes(_function)(_reduction(_name))


@writes(torch.logsumexp)
def _logsumexp(x: Written, dim: Any, keepdim: bool = False) -> Any:
    is_float(x)
    axes = ints(*axes_of(x, dim))
    highest = ops().reduce_max(x.value, axes, True)
    summed = ops().reduce_sum(ops().exp(ops().subtract(x.value, highest)), axes, True)
    found = ops().add(ops().log(summed), highest)
    return found if keepdim else ops().squeeze(found, axes)


@writes(torch.cumsum)
def _cumsum(x: Written, dim: int, dtype: torch.dtype | None = None) -> Any:
    refuse(x.dtype not in (torch.float32, torch.int64), dtype not in (None, x.dtype))
    return ops().cum_sum(x.value, ops().constant(np.int64(axis_of(x, dim))))


# -- pools -------------------------------------------------------------------------------------------------------------


@writes(F.max_pool2d)
def _max_pool2d(x: Written, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                ceil_mode: bool = False, return_indices: bool = False) -> Any:  # fmt: skip
    refuse(return_indices)
    kernel, pads = pair(kernel_size), pair(padding)
    rounding = "ceil_torch" if ceil_mode else "floor"
    return ops().max_pool(
        x.value, pair(stride or kernel), pair(dilation), pads, pads, kernel, rounding, axis=2
    )


@writes(F.avg_pool2d)
def _avg_pool2d(x: Written, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
                count_include_pad: bool = True, divisor_override: Any = None) -> Any:  # fmt: skip
    refuse(divisor_override)
    kernel, pads = pair(kernel_size), pair(padding)
    rounding = "ceil_torch" if ceil_mode else "floor"
    return ops().avg_pool(
        x.value, pair(stride or kernel), pads, pads, kernel, not count_include_pad, rounding
    )


@writes(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x: Written, output_size: Any) -> Any:
    sizes = pair(output_size)
    if sizes == [1, 1]:
        return ops().reduce_mean(x.value, ints(-1, -2), True)
    return ops().adaptive_avg_pool(x.value, ints(*sizes))


# -- movement ----------------------------------------------------------------------------------------------------------


@writes(torch.reshape, "reshape", "view")
def _reshape(x: Written, *shape: Any) -> Any:
    return ops().reshape(x.value, sizes_of(with_one_free(listed(shape))), special_zero=False)


@writes(torch.flatten, "flatten")
def _flatten(x: Written, start_dim: int = 0, end_dim: int = -1) -> Any:
    return _reshape(x, flat(x, start_dim, end_dim))


@writes(torch.permute, "permute")
def _permute(x: Written, *dims: Any) -> Any:
    return ops().transpose(x.value, ints(*axes_of(x, listed(dims))))


@writes(torch.transpose, "transpose")
def _transpose(x: Written, dim0: int, dim1: int) -> Any:
    return ops().transpose(x.value, ints(*exchanged(x, dim0, dim1)))


@writes(torch.narrow, "narrow")
def _narrow(x: Written, dim: int, start: int, length: int) -> Any:
    return _sliced(x, dim, start, start + length)


@writes(torch.ops.aten.slice.Tensor)
def _sliced(x: Written, dim: int, start: int, end: int, step: int = 1) -> Any:
    bounds = (ints(value) for value in (start, end, step, axis_of(x, dim)))
    return ops().slice(x.value, *bounds)


@writes("unbind", torch.unbind)
def _unbind(x: Written, dim: int = 0) -> Any:
    axis = ops().constant(np.int64(axis_of(x, dim)))
    parts = ops().split(x.value, axis, x.shape[dim])
    return [ops().squeeze(part, axis) for part in parts.outputs()]


@writes(torch.flip)
def _flip(x: Written, dims: Any) -> Any:
    count, lowest = len(dims), np.iinfo(np.int64).min
    bounds = (ints(*[value] * count) for value in (-1, lowest, -1))
    return ops().slice(x.value, *bounds, ints(*axes_of(x, dims)))


@writes(operator.getitem)
def _part(parts: Any, index: Any) -> Any:
    if isinstance(parts, tuple):
        return parts[index]
    axis, integers = index_of(index)
    return ops().gather(output_of(parts), output_of(integers), ops().constant(np.int64(axis)))


@writes(torch.gather)
def _gather(x: Any, dim: int, index: Any) -> Any:
    apart = dim % x.dim()
    refuse(any(a != b for axis, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)) if axis != apart))
    return ops().gather_elements(output_of(x), output_of(index), apart)


@writes(torch.cat)
def _cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    refuse(len({each.dtype for each in tensors}) > 1)
    return ops().concat(list(map(output_of, tensors)), dim % tensors[0].dim())


@writes(torch.roll)
def _roll(x: Written, shifts: Any, dims: Any = None) -> Any:
    refuse(dims is None)
    shifts = [shifts] if isinstance(shifts, int) else shifts
    return ops().roll(x.value, ints(*shifts), ints(*axes_of(x, dims)))


@writes(F.pad)
def _pad(x: Written, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if mode not in modes:
        raise Unwritten(f"padding {mode!r}")
    is_float(x)
    before, after = widths(x, pad)
    filler = np.float32(value or 0) if mode == "constant" else None
    return ops().pad(x.value, ints(*before), ints(*after), modes[mode], filler)


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
        x.value, ints(*pair(size)), modes[mode], "sizes", nearest_mode="floor", axes=ints(2, 3),
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
    return ops().gather(ops().shape_of(x.value), ints(axis_of(x, dim)), ops().constant(np.int64(0)))
