"""What each torch function in a rebuilt module is in ONNX operators, but for the pointwise."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from eqsat_deploy.engines.onnx.writing import FUNCTIONS, made, permuted, value_of
from eqsat_deploy.engines.writing import (
    FREE,
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
    return made("Conv", x, weight, bias, **_window(weight, stride, padding, dilation, groups))


@writes(torch.conv_transpose2d, torch.conv_transpose3d)
def _conv_transpose(
    x: Written, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    window = _window(weight, stride, padding, dilation, groups)
    return made(
        "ConvTranspose", x, weight, bias, **window, output_padding=spread(output_padding, x.dim() - 2)
    )


def _window(weight: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> dict[str, Any]:
    kernel = list(weight.shape[2:])
    strides, pads, dilations = (spread(each, len(kernel)) for each in (stride, padding, dilation))
    return {
        "kernel_shape": kernel, "strides": strides, "pads": pads * 2, "dilations": dilations, "group": groups,
    }  # fmt: skip


@writes(F.linear)
def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    if x.dim() == 2:
        return made("Gemm", x, weight, bias, transB=1)
    product = made("MatMul", x, permuted(value_of(weight), [1, 0]))
    return product if bias is None else made("Add", product, bias)


@writes(torch.matmul, "matmul")
def _matmul(a: Any, b: Any) -> Any:
    return made("MatMul", a, b)


@writes(F.embedding)
def _embedding(index: Written, weight: Any, padding_idx: Any = None, max_norm: Any = None, norm_type: float = 2.0,
               scale_grad_by_freq: bool = False, sparse: bool = False) -> Any:  # fmt: skip
    refuse(max_norm)
    return made("Gather", weight, index, axis=0)


# -- normalization and reduction ---------------------------------------------------------------------------------------


@writes(F.batch_norm)
def _batch_norm(x: Written, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
                training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Any:  # fmt: skip
    refuse(training, weight is None, bias is None)
    return made("BatchNormalization", x, weight, bias, running_mean, running_var, epsilon=float(eps))


@writes(F.layer_norm)
def _layer_norm(
    x: Written, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    weight = torch.ones(tuple(normalized_shape)) if weight is None else weight
    axis = -len(normalized_shape)
    return made("LayerNormalization", x, weight, bias, axis=axis, epsilon=float(eps), stash_type=1)


@writes(F.group_norm)
def _group_norm(x: Written, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    refuse(weight is None, bias is None)
    return made(
        "GroupNormalization", x, weight, bias, num_groups=num_groups, epsilon=float(eps), stash_type=1
    )


@writes(F.rms_norm)
def _rms_norm(x: Written, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    is_float(x)
    mean = made("ReduceMean", made("Mul", x, x), list(range(-len(normalized_shape), 0)), keepdims=1)
    shifted = made("Add", mean, np.float32(torch.finfo(torch.float32).eps if eps is None else eps))
    found = made("Mul", x, made("Reciprocal", made("Sqrt", shifted)))
    return found if weight is None else made("Mul", found, weight)


@writes(F.softmax)
def _softmax(x: Written, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Any:
    refuse(dtype)
    return made("Softmax", x, axis=dim)


@writes(F.log_softmax)
def _log_softmax(x: Written, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Any:
    refuse(dtype)
    return made("LogSoftmax", x, axis=dim)


REDUCTIONS: dict[Any, str] = {
    torch.mean: "ReduceMean", "mean": "ReduceMean", torch.sum: "ReduceSum", torch.amax: "ReduceMax",
    torch.amin: "ReduceMin", torch.logsumexp: "ReduceLogSumExp",
}  # fmt: skip


def _reduction(name: str) -> Callable[..., Any]:
    def reduction(x: Written, dim: Any, keepdim: bool = False) -> Any:
        is_float(x)
        return made(name, x, axes_of(x, dim), keepdims=int(keepdim))

    return reduction


for _function, _name in REDUCTIONS.items():
    writes(_function)(_reduction(_name))


@writes(torch.cumsum)
def _cumsum(x: Written, dim: int, dtype: torch.dtype | None = None) -> Any:
    refuse(x.dtype not in (torch.float32, torch.int64), dtype not in (None, x.dtype))
    return made("CumSum", x, np.int64(axis_of(x, dim)))


# -- pools -------------------------------------------------------------------------------------------------------------


@writes(F.max_pool2d)
def _max_pool2d(x: Written, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                ceil_mode: bool = False, return_indices: bool = False) -> Any:  # fmt: skip
    refuse(return_indices)
    window = _pool(kernel_size, stride, padding, ceil_mode)
    return made("MaxPool", x, **window, dilations=pair(dilation))


@writes(F.avg_pool2d)
def _avg_pool2d(x: Written, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
                count_include_pad: bool = True, divisor_override: Any = None) -> Any:  # fmt: skip
    refuse(divisor_override)
    window = _pool(kernel_size, stride, padding, ceil_mode)
    return made("AveragePool", x, **window, count_include_pad=int(count_include_pad))


def _pool(kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool) -> dict[str, Any]:
    kernel = pair(kernel_size)
    return {
        "kernel_shape": kernel,
        "strides": pair(stride or kernel),
        "pads": pair(padding) * 2,
        "ceil_mode": int(ceil_mode),
    }


@writes(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x: Written, output_size: Any) -> Any:
    """Windows of one size where the sizes divide; else each is a sum over rows and columns of its own."""
    sizes = pair(output_size)
    if sizes == [1, 1]:
        return made("ReduceMean", x, [-2, -1], keepdims=1)
    refuse(FREE in x.shape[-2:])
    if all(size % result == 0 for size, result in zip(x.shape[-2:], sizes, strict=True)):
        window = [size // result for size, result in zip(x.shape[-2:], sizes, strict=True)]
        return made("AveragePool", x, kernel_shape=window, strides=window)
    height, width = (_averages(size, result) for size, result in zip(x.shape[-2:], sizes, strict=True))
    return made("MatMul", made("MatMul", height, x), np.ascontiguousarray(width.T))


def _averages(size: int, results: int) -> np.ndarray[Any, Any]:
    """The weights (results, size) of adaptive pooling along one axis."""
    weights = np.zeros((results, size), np.float32)
    for row in range(results):
        first, end = row * size // results, -(-(row + 1) * size // results)
        weights[row, first:end] = 1 / (end - first)
    return weights


# -- movement ----------------------------------------------------------------------------------------------------------


@writes(torch.reshape, "reshape", "view")
def _reshape(x: Written, *shape: Any) -> Any:
    return made("Reshape", x, with_one_free(listed(shape)), allowzero=1)


@writes(torch.flatten, "flatten")
def _flatten(x: Written, start_dim: int = 0, end_dim: int = -1) -> Any:
    return _reshape(x, flat(x, start_dim, end_dim))


@writes(torch.permute, "permute")
def _permute(x: Written, *dims: Any) -> Any:
    return permuted(x.value, axes_of(x, listed(dims)))


@writes(torch.transpose, "transpose")
def _transpose(x: Written, dim0: int, dim1: int) -> Any:
    return permuted(x.value, exchanged(x, dim0, dim1))


@writes(torch.narrow, "narrow")
def _narrow(x: Written, dim: int, start: int, length: int) -> Any:
    return _sliced(x, dim, start, start + length)


@writes(torch.ops.aten.slice.Tensor)
def _sliced(x: Written, dim: int, start: int, end: int, step: int = 1) -> Any:
    return made("Slice", x, [start], [end], [axis_of(x, dim)], [step])


@writes("unbind", torch.unbind)
def _unbind(x: Written, dim: int = 0) -> Any:
    axis = axis_of(x, dim)
    return [made("Gather", x, np.int64(index), axis=axis) for index in range(x.shape[axis])]


@writes(torch.flip)
def _flip(x: Written, dims: Any) -> Any:
    count, lowest = len(dims), int(np.iinfo(np.int64).min)
    return made("Slice", x, [-1] * count, [lowest] * count, axes_of(x, dims), [-1] * count)


@writes(operator.getitem)
def _part(parts: Any, index: Any) -> Any:
    if isinstance(parts, tuple):
        return parts[index]
    axis, integers = index_of(index)
    return made("Gather", parts, integers, axis=axis)


@writes(torch.gather)
def _gather(x: Any, dim: int, index: Any) -> Any:
    apart = dim % x.dim()
    refuse(any(a != b for axis, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)) if axis != apart))
    return made("GatherElements", x, index, axis=apart)


@writes(torch.cat)
def _cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    refuse(len({each.dtype for each in tensors}) > 1)
    return made("Concat", *tensors, axis=dim % tensors[0].dim())


@writes(torch.roll)
def _roll(x: Written, shifts: Any, dims: Any = None) -> Any:
    refuse(dims is None)
    shifts = [shifts] if isinstance(shifts, int) else shifts
    rolled, shape = x.value, x.shape
    for shift, axis in zip(shifts, axes_of(x, dims), strict=True):
        refuse(shape[axis] == FREE)
        start = -shift % shape[axis]
        ends = (
            made("Slice", rolled, [start], [shape[axis]], [axis]),
            made("Slice", rolled, [0], [start], [axis]),
        )
        rolled = made("Concat", *ends, axis=axis)
    return rolled


@writes(F.pad)
def _pad(x: Written, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    is_float(x)
    before, after = widths(x, pad)
    return made("Pad", x, before + after, np.float32(value or 0), mode=modes[mode])


@writes(F.interpolate)
def _interpolate(x: Written, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
                 align_corners: bool | None = None, recompute_scale_factor: Any = None,
                 antialias: bool = False) -> Any:  # fmt: skip
    modes = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}
    refuse(size is None, scale_factor, recompute_scale_factor, antialias, x.dim() != 4, mode not in modes)
    corners = "align_corners" if align_corners else "half_pixel"
    sizes = made("Concat", made("Shape", x, start=0, end=2), pair(size), axis=0)
    return made(
        "Resize", x, None, None, sizes, mode=modes[mode], nearest_mode="floor", cubic_coeff_a=-0.75,
        coordinate_transformation_mode="asymmetric" if mode == "nearest" else corners,
    )  # fmt: skip


@writes("expand")
def _expand(x: Any, *shape: Any) -> Any:
    return made("Expand", x, [1 if isinstance(s, int) and s == FREE else s for s in listed(shape)])


@writes("size")
def _size(x: Written, dim: int) -> Any:
    known = x.shape[dim]
    return known if known != FREE else made("Shape", x, start=axis_of(x, dim), end=axis_of(x, dim) + 1)
