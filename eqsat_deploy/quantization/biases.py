"""Biases that take back the mean error of rounding."""

from __future__ import annotations

from torch import Tensor, nn

from eqsat_deploy.quantization.fake_quantize import QuantizedConv2d, QuantizedConvTranspose2d, QuantizedLinear


def corrected(
    layer: QuantizedConv2d | QuantizedConvTranspose2d | QuantizedLinear, expected: Tensor, found: Tensor
) -> Tensor:
    """Shift the bias of `layer`, which gets one where it has none, by the mean difference in each output channel
    between `expected`, its output in float, and `found`, that with everything up to it rounded. Its output then."""
    axis = -1 if isinstance(layer, QuantizedLinear) else 1
    others = [d for d in range(found.dim()) if d != axis % found.dim()]
    shift = (expected - found).mean(dim=others)
    bias = layer.bias
    layer.bias = nn.Parameter(
        shift if bias is None else bias.detach() + shift, requires_grad=bias is None or bias.requires_grad
    )
    return found + (shift if axis == -1 else shift.reshape(-1, 1, 1))
