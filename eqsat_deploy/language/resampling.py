"""Resampling: images at another size, and their patches as columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from eqsat_deploy.language.expressions import vec
from eqsat_deploy.language.linear import conv_size
from eqsat_deploy.language.operator import Ints, Unsupported, aten, operator
from eqsat_extraction.kernel import Kind

ALIGNABLE = frozenset({"bilinear", "bicubic"})


@operator(
    Kind.RESAMPLING,
    shape=lambda x, mode, size, align: vec(4, 1, 1, x[3], x[4], size[0], size[1]),
    flops=lambda out, *_: 8.0 * out[0] * out[1] * out[2] * out[3],
)
def resize(x: Tensor, mode: str, size: Ints, align: int) -> Tensor:
    """An NCHW tensor interpolated to `size` (height, width), in torch's words for `mode` and `align_corners`."""
    return F.interpolate(x, size, mode=mode, align_corners=bool(align) if mode in ALIGNABLE else None)


@operator(
    Kind.RESAMPLING,
    shape=lambda x, kernel, stride, padding, dilation: vec(
        3, 1, 1, 1, x[3], x[4] * kernel[0] * kernel[1],
        conv_size(x[5], kernel[0], stride[0], padding[0], dilation[0])
        * conv_size(x[6], kernel[1], stride[1], padding[1], dilation[1]),
    ),
)  # fmt: skip
def unfold(x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """Patches of an NCHW tensor as columns: (batch, channels x height x width of the kernel, patches)."""
    return F.unfold(x, kernel, dilation, padding, stride)


@operator(
    Kind.RESAMPLING,
    shape=lambda x, size, kernel, stride, padding, dilation: vec(
        4, 1, 1, x[4], x[5] // (kernel[0] * kernel[1]), size[0], size[1]
    ),
)  # fmt: skip
def fold(x: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """What `unfold` takes apart, summed where patches overlap: NCHW of `size` (height, width)."""
    return F.fold(x, size, kernel, dilation, padding, stride)


def _import_resize(mode: str) -> Callable[..., Any]:
    def import_resize(x: Any, size: Sequence[int] | None, *rest: Any) -> Any:
        align, scales = (bool(rest[0]), rest[1:]) if mode in ALIGNABLE else (False, rest)
        scales = tuple(scales[0] or ()) if len(scales) == 1 else tuple(s for s in scales if s is not None)
        if not x.dtype.is_floating_point or len(x.shape) != 4:
            raise Unsupported(f"interpolation of {x.dtype}{list(x.shape)}")
        exact = [d * s for d, s in zip(x.shape[2:], scales, strict=False)]
        size = [int(d) for d in exact] if size is None else size
        # torch samples at 1 / scale where it is given, which is input / output only where nothing is rounded.
        if not align and scales and exact != list(size):
            raise Unsupported("interpolation by a factor that the sizes round")
        return resize(x, mode, tuple(size), int(align))

    return import_resize


for _mode, _base in (("nearest", "upsample_nearest2d"), ("nearest-exact", "_upsample_nearest_exact2d"),
                     ("bilinear", "upsample_bilinear2d"), ("bicubic", "upsample_bicubic2d")):  # fmt: skip
    aten(f"{_base}.default", f"{_base}.vec")(_import_resize(_mode))


@aten("im2col.default")
def _im2col(x: Any, kernel: Ints, dilation: Ints, padding: Ints, stride: Ints) -> Any:
    if len(x.shape) != 4:
        raise Unsupported("patches of a tensor without batch dimension")
    return unfold(x, *(tuple(v) for v in (kernel, stride, padding, dilation)))


@aten("col2im.default")
def _col2im(x: Any, size: Ints, kernel: Ints, dilation: Ints, padding: Ints, stride: Ints) -> Any:
    if len(x.shape) != 3:
        raise Unsupported("patches without batch dimension")
    return fold(x, *(tuple(v) for v in (size, kernel, stride, padding, dilation)))
