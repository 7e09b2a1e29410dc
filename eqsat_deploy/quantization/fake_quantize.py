"""Rounding to 256 codes inside a float module: what INT8 will do, and what training adapts to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy.quantization.observers import Grid

Owner = TypeVar("Owner", bound=nn.Module)


class FakeQuantize(nn.Module):
    """Rounds to the nearest code and back: `(clamp(round(x / step) + zero_point) - zero_point) * step`.

    Gradients pass straight through the rounding. A learnable step has the gradient and gradient scaling of
    LSQ (Esser et al., "Learned Step Size Quantization", 2020), in training mode, but its parameter is the
    logarithm (Jain et al., "Trained Quantization Thresholds", 2020): one optimizer with the weights' learning
    rate then moves steps of every magnitude in proportion, and never below zero.

    Attributes:
        scale: float32, `()` or `(channels,)` along `axis`, positive; None when learnable.
        log_scale: the parameter when learnable, otherwise None. Read `step` in either case.
        zero_point: int32, shaped like the scale; zero unless the grid is asymmetric.
        low, high: int32 scalars, the codes' bounds: -128..127 (int8) or 0..255 (uint8).
        ceiling: what the values would be clipped at did they not round to less, in a shape that broadcasts over them;
            None where nothing was clipped.
        axis: the channel axis, None for one scale per tensor.
        groups: into which a weight's inputs fall, where the products of two neighbours must not saturate 16 bits; None
            where they may be of any size.
    """

    scale: Tensor | None
    log_scale: nn.Parameter | None
    zero_point: Tensor
    low: Tensor
    high: Tensor
    ceiling: Tensor | None

    def __init__(
        self,
        scale: Tensor,
        *,
        low: int = -128,
        high: int = 127,
        zero_point: int = 0,
        axis: int | None = None,
        groups: int | None = None,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        scale = scale.detach().clone().float()
        self.register_buffer("scale", None if learnable else scale)
        self.register_parameter("log_scale", nn.Parameter(scale.log()) if learnable else None)
        self.register_buffer("zero_point", torch.full_like(scale, zero_point, dtype=torch.int32))
        self.register_buffer("low", torch.tensor(low, dtype=torch.int32, device=scale.device))
        self.register_buffer("high", torch.tensor(high, dtype=torch.int32, device=scale.device))
        self.register_buffer("ceiling", None)
        self.axis, self.groups = axis, groups

    @classmethod
    def of_grid(cls, grid: Grid, *, learnable: bool = False) -> Self:
        """One scale for a whole activation."""
        return cls(
            torch.tensor(grid.scale),
            low=grid.low,
            high=grid.high,
            zero_point=grid.zero_point,
            learnable=learnable,
        )

    @classmethod
    def of_weight(cls, weight: Tensor, axis: int, *, groups: int | None = None) -> Self:
        """One scale per output channel, the largest magnitude on code 127; or, where inputs fall into `groups`, of
        which neighbours must not saturate 16 bits together, what the magnitudes of two add up to.

        With that scale code -128 is never reached, so the range is narrow in effect, as symmetric kernels
        want it, while the bounds stay those of the INT8 type, which is what exporters accept.
        """
        axis %= weight.dim()
        peak = peaks(weight.detach().float(), axis, groups)
        # A channel of zeros is represented by any scale.
        scale = torch.where(peak > 0, (peak / 127).clamp_min(1e-12), torch.ones_like(peak))
        return cls(scale, axis=axis, groups=groups)

    def fitted(self, weight: Tensor) -> Self:
        """What this is of another weight in the place of its own."""
        assert self.axis is not None
        return type(self).of_weight(weight, self.axis, groups=self.groups)

    def widen(self, weight: Tensor) -> None:
        """Make the scales as great as `weight`, which may have been trained, needs for no neighbours to saturate."""
        if self.groups is None:
            return
        least = self.fitted(weight).step
        with torch.no_grad():
            if self.log_scale is not None:
                self.log_scale.clamp_min_(least.log())
            elif self.scale is not None:
                self.scale.clamp_min_(least)

    def exact(self) -> nn.Module:
        """What stands for it without rounding."""
        return nn.Identity() if self.ceiling is None else Clipped(self.ceiling)

    def learn(self) -> None:
        """Make the scale a parameter."""
        if self.scale is not None:
            self.log_scale = nn.Parameter(self.scale.log())
            self.scale = None

    def settle(self) -> None:
        """Make the scale a constant again."""
        if self.log_scale is not None:
            self.scale, self.log_scale = self.step, None

    @property
    def step(self) -> Tensor:
        """The scale, learnable or not, detached: what exporters read."""
        return self._scale().detach()

    @property
    def amax(self) -> Tensor:
        """The greatest magnitude represented, shaped like `scale` (for a zero point of 0)."""
        return self.step * self.high

    @property
    def unsigned(self) -> bool:
        """Whether the codes are uint8."""
        return int(self.low) == 0

    def forward(self, values: Tensor) -> Tensor:
        """`values` rounded, same shape and dtype; half precision, which has no 256 exact codes, in float32."""
        scale, zero_point = self._scale(), self.zero_point
        dtype = values.dtype
        values = values.to(torch.promote_types(dtype, scale.dtype))
        if self.training and self.log_scale is not None:
            # LSQ section 2.2: keeps the step's updates in proportion to the weights'.
            factor = (values.numel() / scale.numel() * int(self.high)) ** -0.5
            scale = scale * factor + (scale * (1 - factor)).detach()
        if self.axis is not None:
            shape = [-1 if dim == self.axis else 1 for dim in range(values.dim())]
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        codes, low, high = values / scale, self.low - zero_point, self.high - zero_point
        if not codes.requires_grad:  # in place: one tensor instead of four
            return codes.clamp_(low, high).round_().mul_(scale).to(dtype)
        codes = torch.clamp(codes, low, high)
        return ((codes + (codes.round() - codes).detach()) * scale).to(dtype)

    def _scale(self) -> Tensor:
        if self.log_scale is not None:
            return self.log_scale.exp()
        assert self.scale is not None
        return self.scale

    def extra_repr(self) -> str:
        """Code type, granularity and scale."""
        kind = "uint8" if self.unsigned else "int8"
        if self.axis is not None:
            return f"{kind}, {self.step.numel()} channels along axis {self.axis}"
        return f"{kind}, scale={float(self.step):.6g}, zero_point={int(self.zero_point)}"


def peaks(weight: Tensor, axis: int, groups: int | None) -> Tensor:
    """What code 127 is to stand for in every channel of `weight` along `axis`: the greatest magnitude where `groups` is
    None.

    Else codes of activations, up to 255, are multiplied by those of two neighbouring inputs and added in 16 bits: as
    codes are rounded, no two of one sign may then be over 128 together, which is 127 and a half twice. Neighbours are
    the inputs 2n and 2n + 1 of a group at one position of the window (oneDNN), or in the window unrolled, inputs last
    (ONNX Runtime, and oneDNN where a group has one input); depthwise kernels, of as many outputs as inputs, have none.
    """
    inputs = 1 if axis == 0 else axis - 1
    greatest = weight.abs().amax([dim for dim in range(weight.dim()) if dim != axis])
    if groups is None or (groups > 1 and weight.shape[0] == groups and weight.shape[1] == 1):
        return greatest
    lines = weight.movedim((axis, inputs), (0, -1))
    if axis != 0:  # a transposed convolution's inputs are those of all groups
        lines = lines.reshape(*lines.shape[:-1], groups, -1).movedim(-2, 1)
    for each in (lines, lines.flatten(1)) if lines.shape[-1] % 2 else (lines,):
        greatest = torch.maximum(greatest, _neighbours(each))
    return greatest


def _neighbours(lines: Tensor) -> Tensor:
    """The greatest magnitude of what two neighbours along the last axis add up to, for each of the first. Those of two
    signs add up to less than one of them."""
    sums = lines[..., :-1:2] + lines[..., 1::2]
    return sums.flatten(1).abs().amax(1) if sums.numel() else sums.new_zeros(len(lines))


class Clipped(nn.Module):
    """Clips values from above, at its buffer `ceiling`."""

    ceiling: Tensor

    def __init__(self, ceiling: Tensor) -> None:
        super().__init__()
        self.register_buffer("ceiling", ceiling)

    def forward(self, values: Tensor) -> Tensor:
        """`values` clipped, same shape and dtype."""
        return torch.minimum(values, self.ceiling.to(values.dtype))


def swapped(module: Owner, made: Callable[[FakeQuantize], nn.Module]) -> Owner:
    """`module` with what is `made` of each quantizer in its place; everything else is shared with it."""
    clone = copy.copy(module)
    if isinstance(module, fx.GraphModule):
        clone.meta = dict(module.meta)  # type: ignore[assignment]
    clone._modules = {
        name: made(child)
        if isinstance(child, FakeQuantize)
        else swapped(child, made)
        if child is not None and child._modules
        else child
        for name, child in module._modules.items()
    }
    return clone


class QuantizedConv2d(nn.Conv2d):
    """A convolution whose weight is rounded per output channel; bias and input stay as they come."""

    weight_quantizer: FakeQuantize

    @classmethod
    def from_float(cls, module: nn.Conv2d, *, saturating: bool = False) -> QuantizedConv2d:
        """Takes over `module`'s parameters."""
        quantized = cls(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            module.groups,
            module.bias is not None,
            module.padding_mode,
            device="meta",
        )
        return _take_over(quantized, module, 0, module.groups if saturating else None)

    def forward(self, input: Tensor) -> Tensor:
        """What `nn.Conv2d` computes, with the rounded weight."""
        result: Tensor = self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)
        return result


class QuantizedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution whose weight (in, out / groups, h, w) is rounded along axis 1."""

    weight_quantizer: FakeQuantize

    @classmethod
    def from_float(cls, module: nn.ConvTranspose2d, *, saturating: bool = False) -> QuantizedConvTranspose2d:
        """Takes over `module`'s parameters."""
        quantized = cls(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.output_padding,  # type: ignore[arg-type]
            module.groups,
            module.bias is not None,
            module.dilation,  # type: ignore[arg-type]
            module.padding_mode,
            device="meta",
        )
        return _take_over(quantized, module, 1, module.groups if saturating else None)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """What `nn.ConvTranspose2d` computes, with the rounded weight; `output_size` is not supported."""
        result: Tensor = F.conv_transpose2d(
            input,
            self.weight_quantizer(self.weight),
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.output_padding,
            self.groups,
            self.dilation,
        )
        return result


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight (out, in) is rounded per output feature."""

    weight_quantizer: FakeQuantize

    @classmethod
    def from_float(cls, module: nn.Linear, *, saturating: bool = False) -> QuantizedLinear:
        """Takes over `module`'s parameters."""
        quantized = cls(module.in_features, module.out_features, module.bias is not None, device="meta")
        return _take_over(quantized, module, 0, 1 if saturating else None)

    def forward(self, input: Tensor) -> Tensor:
        """What `nn.Linear` computes, with the rounded weight."""
        return F.linear(input, self.weight_quantizer(self.weight), self.bias)


M = TypeVar("M", QuantizedConv2d, QuantizedConvTranspose2d, QuantizedLinear)
Layer = QuantizedConv2d | QuantizedConvTranspose2d | QuantizedLinear


def with_rounded_weight(layer: nn.Module) -> nn.Module:
    """A copy of a quantized layer with its weight rounded once instead of in every call; any other layer itself."""
    if not isinstance(layer, Layer):
        return layer
    clone = with_exact_weight(layer)
    clone.weight = nn.Parameter(layer.weight_quantizer(layer.weight.detach()), requires_grad=False)
    return clone


def rounded_once(module: fx.GraphModule) -> fx.GraphModule:
    """A quantized `module` to be called more than once, its layers' weights rounded already; what stays is shared."""
    clone = swapped(module, lambda quantizer: quantizer)
    for name, layer in list(clone.named_modules()):
        if (rounded := with_rounded_weight(layer)) is not layer:
            clone.set_submodule(name, rounded)
    return clone


def sharing(layer: Owner) -> Owner:
    """A copy of `layer` that shares its tensors and modules until others are set."""
    clone = copy.copy(layer)
    clone._parameters, clone._modules, clone._buffers = (
        dict(layer._parameters), dict(layer._modules), dict(layer._buffers),
    )  # fmt: skip
    return clone


def with_exact_weight(layer: Layer) -> Layer:
    """A copy of a quantized layer that does not round its weight, which it shares."""
    clone = sharing(layer)
    clone.weight_quantizer = nn.Identity()  # type: ignore[assignment]
    return clone


def channel_axis(layer: nn.Module) -> int:
    """The axis of a layer's operand and of its result along which channels lie."""
    return -1 if isinstance(layer, nn.Linear) else 1


def _take_over(quantized: M, module: nn.Module, axis: int, groups: int | None) -> M:
    quantized.weight = module.weight  # type: ignore[assignment]
    quantized.bias = module.bias  # type: ignore[assignment]
    quantized.weight_quantizer = FakeQuantize.of_weight(quantized.weight, axis, groups=groups)
    return quantized.train(module.training)
