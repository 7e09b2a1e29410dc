"""The layer that a tensor's channels can be scaled in, where that costs no time, unlike scaling before the rounding.

A scale moves from a tensor back through what is positively homogeneous in each channel (`Operator.homogeneous`), ReLU
and pools, into the convolution, product or normalization that wrote it (Nagel et al., "Data-Free Quantization", 2019;
Xiao et al., "SmoothQuant", 2023). Exact in float, and of rounded weights too: their scales are those of the rows.

ReLU6 is not homogeneous: a channel that is divided would be clipped at 6 over its divisor. Where it stands right before
the rounding, whose greatest code stands for no more than that in any channel, the rounding clips: ReLU is enough then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import deployment
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, Layer

Giver = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.LayerNorm


@dataclass(frozen=True)
class Writer:
    """The submodule `name` that writes a tensor, and where that is clipped at `ceiling` last, the node that does so."""

    name: str
    clips: fx.Node | None = None
    ceiling: float | None = None

    def scale(self, module: fx.GraphModule, factor: Tensor) -> None:
        """Multiply the channels of what is written by `factor`, (channels,); clipping is left to the rounding."""
        scale(module.get_submodule(self.name), factor)
        if self.clips is not None:
            (operand,) = self.clips.all_input_nodes
            self.clips.op, self.clips.target = "call_function", torch.relu
            self.clips.args, self.clips.kwargs = (operand,), {}


def writer(
    module: fx.GraphModule, quantizer: fx.Node, readers: Mapping[str, nn.Module], calls: Mapping[str, int]
) -> Writer | None:
    """What can scale the channels of what the node `quantizer` rounds, for the layers `readers`, where nothing else
    reads them; None where there is nothing.

    Args:
        module: quantized.
        quantizer: the node that rounds.
        readers: the layers that take scales in, by their names.
        calls: how often every submodule is called.
    """
    if any(str(user.target) not in readers for user in quantizer.users):
        return None
    node = quantizer.all_input_nodes[0]
    homogeneous = deployment(module).placement.homogeneous
    ceiling = _ceiling(module, node)
    clips = None if ceiling is None else node
    while len(node.users) == 1 and len(node.all_input_nodes) == 1:
        target = str(node.target)
        layer = module.get_submodule(target) if node.op == "call_module" else None
        if isinstance(layer, Giver):
            last = isinstance(layer, nn.Linear | nn.LayerNorm)
            fits = all(isinstance(reader, nn.Linear) == last for reader in readers.values())
            fits = fits and calls[target] == 1 and _by_channel(layer)
            return Writer(target, clips, ceiling) if fits else None
        if node is not clips and node.name not in homogeneous:
            return None
        node = node.all_input_nodes[0]
    return None


def _ceiling(module: fx.GraphModule, node: fx.Node) -> float | None:
    """What a node clips at that clips at 0 from below; None where it is no such node."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return 6.0 if isinstance(layer, nn.ReLU6) else None
    if node.target is F.relu6:
        return 6.0
    bounds = {**dict(zip(("min", "max"), node.args[1:], strict=False)), **node.kwargs}
    low, high = bounds.get("min"), bounds.get("max")
    if node.target is torch.clamp and low == 0 and isinstance(high, int | float) and high > 0:
        return float(high)
    return None


def _by_channel(layer: Giver) -> bool:
    """Whether a layer has a weight for each of its output channels."""
    if isinstance(layer, nn.LayerNorm):
        return layer.elementwise_affine and len(layer.normalized_shape) == 1
    return not isinstance(layer, nn.ConvTranspose2d) or layer.groups == 1


def scale(layer: nn.Module, factor: Tensor) -> None:
    """Multiply the channels that `layer` writes by `factor`, (channels,), in place."""
    assert isinstance(layer, Giver)
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    shape = [-1 if dim == axis else 1 for dim in range(layer.weight.dim())]
    with torch.no_grad():
        layer.weight = nn.Parameter(
            layer.weight * factor.to(layer.weight.dtype).reshape(shape), layer.weight.requires_grad
        )
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias * factor.to(layer.bias.dtype), layer.bias.requires_grad)
    if isinstance(layer, Layer):
        layer.weight_quantizer = FakeQuantize.of_weight(layer.weight, axis)
        correction = getattr(layer, "correction", None)
        if isinstance(correction, Tensor):
            layer.correction = correction * factor.to(correction.dtype)
