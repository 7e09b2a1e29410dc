"""Biases that take back the mean error of rounding."""

from __future__ import annotations

import copy

from torch import Tensor, fx, nn

from eqsat_deploy.quantization.fake_quantize import (
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLinear,
    swapped,
)


def corrected(
    layer: QuantizedConv2d | QuantizedConvTranspose2d | QuantizedLinear, expected: Tensor, found: Tensor
) -> Tensor:
    """Shift the bias of `layer`, which gets one where it has none, by the mean difference in each output channel
    between `expected`, its output in float, and `found`, that with everything up to it rounded. Its output then. What
    was added is its buffer `correction`."""
    axis = -1 if isinstance(layer, QuantizedLinear) else 1
    others = [d for d in range(found.dim()) if d != axis % found.dim()]
    shift = (expected - found).mean(dim=others)
    bias = layer.bias
    before = getattr(layer, "correction", None)
    layer.register_buffer("correction", shift if before is None else before + shift, persistent=False)
    layer.bias = nn.Parameter(
        shift if bias is None else bias.detach() + shift, requires_grad=bias is None or bias.requires_grad
    )
    return found + (shift if axis == -1 else shift.reshape(-1, 1, 1))


def uncorrected(
    layer: QuantizedConv2d | QuantizedConvTranspose2d | QuantizedLinear,
) -> QuantizedConv2d | QuantizedConvTranspose2d | QuantizedLinear:
    """`layer` with the bias that it had in float; everything else is shared with it."""
    shift = getattr(layer, "correction", None)
    if shift is None or layer.bias is None:
        return layer
    clone = copy.copy(layer)
    clone._parameters = {**layer._parameters, "bias": nn.Parameter(layer.bias.detach() - shift)}
    return clone


def unrounded(module: fx.GraphModule) -> fx.GraphModule:
    """A quantized `module` without any rounding and with the biases that it had in float; what stays is shared."""
    exact = swapped(module, lambda quantizer: nn.Identity())
    for name, layer in list(exact.named_modules()):
        if isinstance(layer, QuantizedConv2d | QuantizedConvTranspose2d | QuantizedLinear):
            exact.set_submodule(name, uncorrected(layer))
    return exact
