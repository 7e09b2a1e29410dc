"""The ways to round one tensor: what its channels are divided by, its codes, and the weights that read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import Scaled
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization.absorption import Scalable, taken_in
from eqsat_deploy.quantization.equalization import ChannelScale, divisor
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, Layer, QuantizedLinear, with_rounded_weight
from eqsat_deploy.quantization.observers import Extremes, Grid

CLIPPED = (0.9, 0.8)
"""Parts of the observed range that codes of a product's operand may cover."""

SHARES = (0.5, 1.0)
"""How far channels may be divided."""

DOUBT = 4.0
"""How much less error dividing fully must leave, and its root halfway: a divided channel covers little more than
calibration has shown of it, and other data goes further (on EfficientNet-Lite, photographs of another kind)."""


SHIFTED = 1.5
"""How much less error a zero point must leave: it costs time (on OpenVINO, DeiT-Tiny ran 15 % longer with one wherever
that left any less, 5 % with this), and what calibration has shown of a range says less than what is near in it (MiniLM:
cosines of 0.9984 with this, of 0.9981 with a zero point wherever it left less)."""


class Expected:
    """A tensor in float that others are measured by, channel by channel along `axis`, or as a whole."""

    def __init__(self, values: Tensor, axis: int | None) -> None:
        self.values = values
        self.others = [] if axis is None else [d for d in range(values.dim()) if d != axis % values.dim()]

    @cached_property
    def variance(self) -> float:
        """About the mean of each channel, or of the whole."""
        values = self.values.float()
        means = values.mean(self.others, keepdim=True) if self.others else values.mean()
        return float((values - means).square_().mean().clamp_min(1e-30))

    def missed_by(self, found: Tensor) -> float:
        """The variance of the error of `found` as a part of the tensor's; as a whole, the error's mean counts, too."""
        error = (found - self.values).float()
        if self.others:
            error -= error.mean(self.others, keepdim=True)
        return float(error.square_().mean()) / self.variance


class Readers(dict[str, Layer]):
    """The layers that read a tensor, by the names of their submodules."""

    @cached_property
    def rounded(self) -> dict[str, nn.Module]:
        """They with weights rounded already, to be called more than once."""
        return {name: with_rounded_weight(layer) for name, layer in self.items()}


@dataclass(frozen=True)
class Rounding:
    """One way to round a tensor that `layers` read. `divided`, where its channels are divided first, has their
    divisors in the shape that broadcasts over the tensor; `share` is how far; `scalable` is what has taken that in, and
    what may."""

    quantizer: FakeQuantize
    layers: Readers
    divided: Tensor | None = None
    share: float = 0.0
    scalable: Scalable | None = None

    @property
    def scaled(self) -> Iterator[Scaled]:
        """The tensor, where its channels are divided."""
        if self.divided is not None and self.scalable is not None:
            yield self.scalable.scaled(float(self.divided.min()))

    def codes(self, values: Tensor) -> Tensor:
        """What `layers` read of the tensor `values`."""
        read: Tensor = self.quantizer(
            values if self.divided is None else values * (1 / self.divided).to(values.dtype)
        )
        return read

    def restored(self, codes: Tensor) -> Tensor:
        """What other readers read of it."""
        return codes if self.divided is None else codes * self.divided.to(codes.dtype)

    def doubted(self, given: Expected, expected: Mapping[str, Expected], *, read_whole: bool) -> float:
        """`error` as it has to be to be chosen."""
        doubt = float(DOUBT**self.share) * (SHIFTED if int(self.quantizer.zero_point) else 1.0)
        return self.error(given, expected, read_whole=read_whole) * doubt

    def error(self, given: Expected, expected: Mapping[str, Expected], *, read_whole: bool) -> float:
        """The variance of the error at each reader, as a part of its output's, summed; biases take back its mean.

        Args:
            given: the tensor.
            expected: the output in float of every layer.
            read_whole: something else reads the rounded tensor, too.
        """
        codes = self.codes(given.values)
        total = given.missed_by(self.restored(codes)) if read_whole else 0.0
        for name, layer in self.layers.rounded.items():
            total += expected[name].missed_by(layer(codes))
        return total

    def place(self, module: fx.GraphModule, node: fx.Node) -> None:
        """Make the quantizer `node` of `module`, and the layers, what this is."""
        module.set_submodule(str(node.target), self.quantizer)
        for name, layer in self.layers.items():
            module.set_submodule(name, layer)
        if self.divided is None or self.scalable is None:
            return
        if self.scalable.writers:
            self.scalable.divide(module, node.all_input_nodes[0], self.divided)
            return
        others = [user for user in node.users if str(user.target) not in self.layers]
        with module.graph.inserting_before(node):
            node.replace_input_with(
                node.all_input_nodes[0], _scaled(module, node.all_input_nodes[0], 1 / self.divided, "divided")
            )
        if others:
            with module.graph.inserting_after(node):
                restored = _scaled(module, node, self.divided, "restored")
            for user in others:
                user.replace_input_with(node, restored)


def roundings(
    layers: Readers, seen: Extremes, grid: IntegerGrid, *, read_whole: bool, scalable: Scalable | None = None
) -> Iterator[Rounding]:
    """Ways to round a tensor that `layers` read, of which calibration has `seen` the extremes. Where it is `scalable`,
    its channels are divided by what writes it, which costs no time; else by the target, where that can.

    What products of matrices alone read may have a zero point and be clipped. Convolutions lose more by values clipped
    in what calibration has not shown than they gain by finer steps, and run slower with zero points.
    """
    product = not read_whole and all(isinstance(layer, QuantizedLinear) for layer in layers.values())
    whole = seen.whole
    means = [(seen.mean_minimum, seen.mean_maximum)] if product else []
    for covered in _grids([whole, *means], grid, product):
        yield Rounding(FakeQuantize.of_grid(covered), layers)
    if scalable is not None and (grid.equalized or scalable.writers) and seen.lows.numel():
        lows, highs = seen.channels
        ceiling = scalable.ceiling
        if ceiling is not None:
            highs = highs.clamp_max(ceiling)
        peaks, readers = torch.maximum(lows.abs(), highs.abs()), list(layers.values())
        for share in SHARES:
            divided = divisor(peaks, readers, share)
            if ceiling is not None:  # no code may stand for more than what would have been clipped
                divided = torch.maximum(divided, peaks / ceiling)
            shape = divided.reshape(scalable.free.shape)
            taking = Readers(
                {name: taken_in(layer, scalable.readers[name], shape) for name, layer in layers.items()}
            )
            whole = (float((lows / divided).min()), float((highs / divided).max()))
            for covered in _grids([whole], grid, product):
                quantizer = FakeQuantize.of_grid(covered)
                if ceiling is not None:
                    quantizer.ceiling = ceiling / shape
                yield Rounding(quantizer, taking, shape, share, scalable)


def _grids(ranges: list[tuple[float, float]], grid: IntegerGrid, product: bool) -> Iterator[Grid]:
    """The codes that might cover `ranges`, of which the first is the whole one; without a zero point first."""
    low, high = ranges[0]
    clipped = [(ratio * low, ratio * high) for ratio in CLIPPED] if product else []
    for symmetric in (True, False) if product and grid.asymmetric and low < 0 else (True,):
        for least, greatest in (*ranges, *clipped):
            yield Grid.covering(least, greatest, symmetric=symmetric, unsigned=grid.unsigned)


def _scaled(module: fx.GraphModule, node: fx.Node, factor: Tensor, name: str) -> fx.Node:
    """`node` times `factor`, as a node of its own at the graph's insertion point."""
    target = f"{node.name}_{name}"
    module.add_submodule(target, ChannelScale(factor))
    return module.graph.create_node("call_module", target, (node,), name=target)
