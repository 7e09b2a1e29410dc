"""Scales that move from the channels of an activation into the weights that read it (SmoothQuant, Xiao et al., 2022):
exact in float, and what is left of the activation has no outlying channels for one range to cover."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from eqsat_deploy.quantization.fake_quantize import FakeQuantize, QuantizedLinear

ALPHAS = (0.5, 0.75, 0.95)
"""How much of an activation's spread moves; not moving any is what these are compared with."""


class Migration(nn.Module):
    """Multiplies the last axis by `factor`, what the weights that read it were divided by."""

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, values: Tensor) -> Tensor:
        """`values` scaled, same shape."""
        return values * self.factor


def factors(values: Tensor, layers: Sequence[QuantizedLinear]) -> Iterator[Tensor]:
    """What the channels of `values`, read by all of `layers`, might be multiplied by, one candidate for each alpha."""
    peaks = values.reshape(-1, values.shape[-1]).abs().amax(0)
    weights = torch.stack([layer.weight.detach().abs().amax(0) for layer in layers]).amax(0)
    usable = (peaks > 0) & (weights > 0)
    for alpha in ALPHAS:
        spread = torch.where(usable, peaks**alpha / weights.clamp_min(1e-12) ** (1 - alpha), 1.0)
        # A channel that hardly carries anything would be blown up beyond what the weights can take.
        yield 1 / spread.clamp_min(float(spread.quantile(0.1)))


def scaled(layer: QuantizedLinear, factor: Tensor) -> tuple[nn.Parameter, FakeQuantize]:
    """The weight of `layer` for inputs multiplied by `factor`, and its quantizer."""
    weight = nn.Parameter(layer.weight.detach() / factor, requires_grad=layer.weight.requires_grad)
    return weight, FakeQuantize.of_weight(weight, 0)
