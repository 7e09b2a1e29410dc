"""Scales per channel that move from a tensor into the weights that read it: exact in float.

A tensor has one grid for all its channels, so channels much smaller than the greatest have few codes. Dividing each
channel by a number of its own before the tensor is rounded evens that out; the weights that read the codes take the
number in. How far is a share: 1 evens out the tensor, and 0.5 is halfway, in logarithms, to what evens out the weights
(Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019; Xiao et al.,
"SmoothQuant", 2023, where it is the migration strength), which also leaves channels room that calibration has not seen
them use. Nothing has to commute with the producer, as these need: the division stands in front of the rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eqsat_deploy.quantization.fake_quantize import (
    Layer,
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLinear,
)

FLOOR = 0.001
"""Channels below this part of the greatest one are treated as if they reached it: what calibration has seen of them
says little."""


class ChannelScale(nn.Module):
    """Multiplies each channel by a number of its own.

    Attributes:
        factor: positive, in a shape that broadcasts over the values.
    """

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, values: Tensor) -> Tensor:
        """`values` scaled, same shape and dtype."""
        return values * self.factor.to(values.dtype)


def divisor(peaks: Tensor, readers: Sequence[Layer], share: float = 0.5) -> Tensor:
    """What to divide the channels of a tensor by, (channels,), the greatest being 1.

    Args:
        peaks: the greatest magnitude of each channel, (channels,).
        readers: the layers that read the tensor.
        share: how much of the tensor's unevenness they take in, up to 1.
    """
    peaks = peaks.clamp_min(FLOOR * float(peaks.max()))
    reach = torch.stack([_reach(layer) for layer in readers]).amax(0).clamp_min(1e-3)
    found = peaks**share / reach ** (1 - share)
    return found / found.max()


def over_channels(factor: Tensor, layer: Layer) -> Tensor:
    """`factor`, (channels,), in the shape that broadcasts over what `layer` reads or writes."""
    return factor if isinstance(layer, QuantizedLinear) else factor.reshape(-1, 1, 1)


def _reach(layer: Layer) -> Tensor:
    """The greatest weight on each input channel, each as a part of the greatest of its output channel."""
    weight = layer.weight.detach().float().abs()
    if isinstance(layer, QuantizedConvTranspose2d):
        peaks = weight.amax(dim=(0, 2, 3), keepdim=True)
        return (weight / peaks.clamp_min(1e-12)).amax(dim=(1, 2, 3))
    weight = weight.flatten(2).amax(2) if isinstance(layer, QuantizedConv2d) else weight
    part = weight / weight.amax(dim=1, keepdim=True).clamp_min(1e-12)
    groups = layer.groups if isinstance(layer, QuantizedConv2d) else 1
    return part.reshape(groups, -1, part.shape[1]).amax(1).flatten()
