"""Normalizations, softmax and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqsat_deploy.language.casting import cast_to
from eqsat_deploy.language.expressions import replace, vec
from eqsat_deploy.language.leaves import scalar, zeros_like
from eqsat_deploy.language.movement import to_shape
from eqsat_deploy.language.operator import Ints, Unsupported, aten, operator
from eqsat_deploy.language.pointwise import add, mul, sub, unary
from eqsat_deploy.language.shapes import BATCH, SLOTS, axis, slot
from eqsat_extraction.kernel import Kind

REDUCTIONS = {"amax": torch.amax, "amin": torch.amin, "mean": torch.mean, "sum": torch.sum}


def _per_element(cost: float) -> Any:
    def flops(out: Ints, x: Ints, *_: Any) -> float:
        total = cost
        for dimension in x:
            total *= dimension
        return total

    return flops


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization of axis 1 of a tensor of any rank."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _batch_norm_module(w: Tensor, b: Tensor, mean: Tensor, variance: Tensor, eps: float) -> nn.Module:
    module = BatchNorm(w.numel(), eps=eps, device="meta").eval()
    module.weight, module.bias = nn.Parameter(w), nn.Parameter(b)
    module.running_mean, module.running_var = mean.detach(), variance.detach()
    module.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return module


@operator(
    Kind.POINTWISE, requantizes=True, integer="scale",
    shape=lambda x, w, b, mean, variance, eps: x, flops=_per_element(2), epilogue=True,
    module=_batch_norm_module,
)  # fmt: skip
def batch_norm(x: Tensor, w: Tensor, b: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Normalization of axis 1 by stored statistics, each (channels)."""
    return F.batch_norm(x, mean, variance, w, b, False, 0.0, eps)


def _layer_norm_module(w: Tensor, b: Tensor, eps: float) -> nn.Module:
    module = nn.LayerNorm(tuple(w.shape), eps=eps, device="meta")
    module.weight, module.bias = nn.Parameter(w), nn.Parameter(b)
    return module


@operator(
    Kind.NORMALIZATION,
    requantizes=True,
    along=(6,),  # where its weight is a vector
    shape=lambda x, w, b, eps: x,
    flops=_per_element(8),
    module=_layer_norm_module,
    epilogue=True,
)
def layer_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    """Layer normalization over the last axes, as many as `w` has."""
    return F.layer_norm(x, w.shape, w, b, eps)


class ChannelNorm(nn.Module):
    """Layer normalization of axis 1 of an NCHW tensor: what LayerNorm computes between two permutes."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(weight), nn.Parameter(bias), eps

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        return channel_norm.body(x, self.weight, self.bias, self.eps)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.weight.numel()}, eps={self.eps}"


@operator(
    Kind.NORMALIZATION,
    shape=lambda x, w, b, eps: x, flops=_per_element(8), epilogue=True,
    module=lambda w, b, eps: ChannelNorm(w, b, eps),
)  # fmt: skip
def channel_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    """Layer normalization of axis 1 of an NCHW tensor; weight and bias (channels)."""
    centered = x - x.mean(1, keepdim=True)
    variance = (centered * centered).mean(1, keepdim=True)
    per_channel = (-1, 1, 1)
    return centered * torch.rsqrt(variance + eps) * w.reshape(per_channel) + b.reshape(per_channel)


def _rms_norm_module(w: Tensor, eps: float) -> nn.Module:
    module = nn.RMSNorm(tuple(w.shape), eps=eps, device="meta")
    module.weight = nn.Parameter(w)
    return module


@operator(
    Kind.NORMALIZATION,
    shape=lambda x, w, eps: x,
    flops=_per_element(5),
    module=_rms_norm_module,
    epilogue=True,
)
def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Division by the root mean square over the last axes, as many as `w` has (Zhang and Sennrich 2019)."""
    return F.rms_norm(x, w.shape, w, eps)


class Standardize(nn.Module):
    """Layer normalization along one axis, without scale and shift: they went into what reads it."""

    def __init__(self, axis: int, eps: float) -> None:
        super().__init__()
        self.axis, self.eps = axis, eps

    def forward(self, x: Tensor) -> Tensor:
        """Mean 0 and variance 1 along the axis; any shape to the same."""
        if self.axis == -1:
            return F.layer_norm(x, x.shape[-1:], eps=self.eps)
        centered = x - x.mean(self.axis, keepdim=True)
        variance = (centered * centered).mean(self.axis, keepdim=True)
        return centered * torch.rsqrt(variance + self.eps)

    def weighted(self, weight: Tensor) -> nn.LayerNorm:
        """The same along the last axis with a `weight`, (features,)."""
        assert self.axis == -1
        norm = nn.LayerNorm(tuple(weight.shape), self.eps, bias=False, device="meta")
        norm.weight = nn.Parameter(weight)
        return norm

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"axis={self.axis}, eps={self.eps}"


@operator(
    Kind.NORMALIZATION,
    requantizes=True,
    called=lambda slot, eps: "layer_norm" if slot == SLOTS - 1 else "channel_norm",
    shape=lambda x, slot, eps: x, flops=_per_element(6), epilogue=True,
    module=lambda slot, eps: Standardize(slot - SLOTS, eps),
)  # fmt: skip
def standardize(x: Tensor, slot: int, eps: float) -> Tensor:
    """Layer normalization along the axis in `slot`, without its affine part."""
    return Standardize(slot - SLOTS, eps)(x)  # type: ignore[no-any-return]


def _group_norm_module(w: Tensor, b: Tensor, groups: int, eps: float) -> nn.Module:
    module = nn.GroupNorm(groups, w.numel(), eps=eps, device="meta")
    module.weight, module.bias = nn.Parameter(w), nn.Parameter(b)
    return module


@operator(
    Kind.NORMALIZATION, shape=lambda x, w, b, groups, eps: x, flops=_per_element(8), module=_group_norm_module
)
def group_norm(x: Tensor, w: Tensor, b: Tensor, groups: int, eps: float) -> Tensor:
    """Group normalization of axis 1, affine part (channels)."""
    return F.group_norm(x, groups, w, b, eps)


@operator(Kind.NORMALIZATION, along="slot", shape=lambda x, slot: x, flops=_per_element(5))
def softmax(x: Tensor, slot: int) -> Tensor:
    """Softmax along the axis in `slot`."""
    return F.softmax(x, dim=axis(slot, x.dim()))


@operator(Kind.NORMALIZATION, called=lambda slot: "softmax", shape=lambda x, slot: x, flops=_per_element(5))
def log_softmax(x: Tensor, slot: int) -> Tensor:
    """Logarithm of the softmax along the axis in `slot`, computed without the softmax, which may round to zero."""
    return F.log_softmax(x, dim=axis(slot, x.dim()))


@operator(
    Kind.REDUCTION,
    called=lambda kind, axes: kind,
    shape=lambda kind, x, axes: vec(x[0], *(x[i] + (1 - x[i]) * axes[i] for i in range(1, SLOTS))),
    flops=lambda out, kind, x, axes: _per_element(1)(out, x),
    integer="pointwise",
)
def reduce_(kind: str, x: Tensor, axes: Ints) -> Tensor:
    """`mean`, `sum`, `amax` or `amin` over the axes in the slots marked 1, which stay as size one."""
    dims = [axis(i, x.dim()) for i in range(1, SLOTS) if axes[i]]
    return REDUCTIONS[kind](x, dim=dims, keepdim=True)  # type: ignore[operator,no-any-return]


@operator(Kind.REDUCTION, shape=lambda x, slot: x, linear=True, flops=_per_element(1))
def cumsum(x: Tensor, slot: int) -> Tensor:
    """Sums of the elements so far along the axis in `slot`, in the dtype of `x`."""
    return torch.cumsum(x, axis(slot, x.dim()), dtype=x.dtype)


@operator(
    Kind.REDUCTION,
    shape=lambda x, slot: replace(x, slot, 1),
    flops=lambda out, x, slot: _per_element(4)(out, x),
)
def logsumexp(x: Tensor, slot: int) -> Tensor:
    """Logarithm of the sum of exponentials along the axis in `slot`, which stays as size one."""
    return torch.logsumexp(x, axis(slot, x.dim()), keepdim=True)


def ones_like(x: Any, *shape: int) -> Any:
    """Ones of `shape` in the dtype of `x`: what a missing scale stands for."""
    return add(zeros_like(x, *shape), scalar(1.0))


@aten("batch_norm.default")
def _batch_norm(
    x: Any, w: Any, b: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float, cudnn: bool
) -> Any:
    if training or mean is None or variance is None:
        raise Unsupported("BatchNorm with the statistics of the batch")
    w = ones_like(mean, x.shape[1]) if w is None else w
    return batch_norm(x, w, zeros_like(mean, x.shape[1]) if b is None else b, mean, variance, eps)


@aten("_native_batch_norm_legit_no_training.default")
def _native_batch_norm(x: Any, w: Any, b: Any, mean: Any, variance: Any, momentum: float, eps: float) -> Any:
    return (_batch_norm(x, w, b, mean, variance, False, momentum, eps, False), None, None)


@aten("layer_norm.default")
def _layer_norm(
    x: Any, shape: Sequence[int], w: Any = None, b: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Any:
    w = ones_like(x, *shape) if w is None else w
    return layer_norm(x, w, zeros_like(x, *shape) if b is None else b, eps)


@aten("native_layer_norm.default")
def _native_layer_norm(x: Any, shape: Sequence[int], w: Any, b: Any, eps: float) -> Any:
    return (_layer_norm(x, shape, w, b, eps), None, None)


@aten("rms_norm.default")
def _rms_norm(x: Any, shape: Sequence[int], w: Any = None, eps: float | None = None) -> Any:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return rms_norm(x, ones_like(x, *shape) if w is None else w, eps)


@aten("group_norm.default")
def _group_norm(
    x: Any, groups: int, w: Any = None, b: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Any:
    w = ones_like(x, x.shape[1]) if w is None else w
    return group_norm(x, w, zeros_like(x, x.shape[1]) if b is None else b, groups, eps)


@aten("native_group_norm.default")
def _native_group_norm(
    x: Any, w: Any, b: Any, samples: int, channels: int, positions: int, groups: int, eps: float
) -> Any:
    return (_group_norm(x, groups, w, b, eps), None, None)


@aten("softmax.int", "_softmax.default")
def _softmax(x: Any, dim: int, last: Any = None) -> Any:
    if not x.dtype.is_floating_point or last not in (None, False, x.dtype):
        raise Unsupported("softmax into another dtype")
    return softmax(x, slot(dim, len(x.shape)))


@aten("log_softmax.int", "_log_softmax.default")
def _log_softmax(x: Any, dim: int, last: Any = None) -> Any:
    if not x.dtype.is_floating_point or last not in (None, False, x.dtype):
        raise Unsupported("log_softmax into another dtype")
    return log_softmax(x, slot(dim, len(x.shape)))


def reduced(kind: str, x: Any, dims: int | Sequence[int] | None, keepdim: bool) -> Any:
    """`x` reduced along torch axes, all of them by default."""
    rank = len(x.shape)
    listed = [dims] if isinstance(dims, int) else list(dims or range(rank))
    marked = {slot(d, rank) for d in listed}
    result = reduce_(kind, x, tuple(int(i in marked) for i in range(SLOTS)))
    if keepdim:
        return result
    return to_shape(result, [s for i, s in enumerate(x.shape) if slot(i, rank) not in marked])


def _import_reduction(kind: str) -> Any:
    def import_reduction(
        x: Any, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Any:
        if not x.dtype.is_floating_point or dtype not in (None, x.dtype):
            raise Unsupported(f"{kind} of {x.dtype} into {dtype}")
        return reduced(kind, x, dim, keepdim)

    return import_reduction


aten("mean.dim", "mean.default")(_import_reduction("mean"))
aten("sum.dim_IntList", "sum.default")(_import_reduction("sum"))
aten("amax.default", "max.default")(_import_reduction("amax"))
aten("amin.default", "min.default")(_import_reduction("amin"))


@aten("cumsum.default")
def _cumsum(x: Any, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    dtype = dtype or (x.dtype if x.dtype.is_floating_point else torch.int64)
    x = x if x.dtype == dtype else cast_to(x, dtype)
    return cumsum(x, slot(dim, len(x.shape)))


@aten("logsumexp.default")
def _logsumexp(x: Any, dim: Sequence[int] | int, keepdim: bool = False) -> Any:
    dims = [dim] if isinstance(dim, int) else list(dim)
    rank = len(x.shape)
    if not x.dtype.is_floating_point or not dims:
        raise Unsupported(f"logsumexp of {x.dtype}")
    gone = {d % rank for d in dims}
    result = x
    for d in gone:
        result = logsumexp(result, slot(d, rank))
    return result if keepdim else to_shape(result, [s for i, s in enumerate(x.shape) if i not in gone])


@aten("max.dim")
def _max(x: Any, dim: int, keepdim: bool = False) -> Any:
    return (_import_reduction("amax")(x, dim, keepdim), None)


@aten("min.dim")
def _min(x: Any, dim: int, keepdim: bool = False) -> Any:
    return (_import_reduction("amin")(x, dim, keepdim), None)


def _variance(x: Any, dim: int | Sequence[int] | None, correction: float, keepdim: bool) -> tuple[Any, Any]:
    """Variance and mean over axes: the mean of squared distances from the mean, corrected for the sample size."""
    mean = _import_reduction("mean")
    count = math.prod(x.shape[d] for d in ([dim] if isinstance(dim, int) else dim or range(len(x.shape))))
    squares = unary("pow(2.0)", sub(x, mean(x, dim, True)))
    variance = mean(squares, dim, keepdim)
    if correction:
        if count <= correction or count % BATCH == 0:
            raise Unsupported("the variance of too few values")
        variance = mul(variance, scalar(count / (count - correction)))
    return variance, mean(x, dim, keepdim)


@aten("var.correction")
def _var(x: Any, dim: Any = None, *, correction: float | None = 1, keepdim: bool = False) -> Any:
    return _variance(x, dim, 1 if correction is None else correction, keepdim)[0]


@aten("var.dim")
def _var_dim(x: Any, dim: Any, unbiased: bool = True, keepdim: bool = False) -> Any:
    return _variance(x, dim, int(unbiased), keepdim)[0]


@aten("var_mean.correction")
def _var_mean(x: Any, dim: Any = None, *, correction: float | None = 1, keepdim: bool = False) -> Any:
    return _variance(x, dim, 1 if correction is None else correction, keepdim)
