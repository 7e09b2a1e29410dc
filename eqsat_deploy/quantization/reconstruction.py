"""What repairs rounding, kernel by kernel: scales that move into weights, ranges and biases.

They are chosen in graph order on a bounded sample of real inputs, each by the error at a kernel's output, with
everything before it rounded already.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import Scaled, copied, deployment, device_of, flat_outputs, record
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.noise import Fidelity
from eqsat_deploy.quantization.absorption import Scalable, scalable
from eqsat_deploy.quantization.biases import corrected
from eqsat_deploy.quantization.calibrate import GREAT
from eqsat_deploy.quantization.fake_quantize import (
    FakeQuantize,
    Layer,
    QuantizedLinear,
    channel_axis,
    with_rounded_weight,
)
from eqsat_deploy.quantization.observers import Extremes, Observer
from eqsat_deploy.quantization.reference import Reference, exact_layers
from eqsat_deploy.quantization.rounding import Expected, Readers, Rounding, roundings

ROWS = 128
"""As many rows of them at most, evenly spread, where only products of matrices read the tensor (MiniLM, five sets of
data: cosines of 0.9981 with 256 as with 128)."""

Choices = dict[tuple[str, ...], int]
"""Which of the ways to round a tensor was chosen, by the names of its quantizer and of the layers that read it."""


@dataclass(frozen=True)
class Draft:
    """What makes a quantized module of a draft, which has ranges to run with and may never be needed in earnest.

    Attributes:
        axes: the channels' axis, if any, of every quantizer whose range is to be chosen, by its name.
        inputs: the sample, in the order of the module's placeholders.
        grid: the codes that the target reads.
    """

    axes: Mapping[str, int | None]
    inputs: tuple[Tensor, ...]
    grid: IntegerGrid

    def to(self, device: torch.device) -> Draft:
        """The same on `device`."""
        return replace(self, inputs=tuple(value.to(device) for value in self.inputs))


def finished(module: fx.GraphModule) -> fx.GraphModule:
    """A quantized `module` calibrated and reconstructed: itself where it is already, else a copy."""
    draft = deployment(module).draft
    if draft is None:
        return module
    module = copied(module)
    seen = {target: Extremes(axis) for target, axis in draft.axes.items()}
    reference = Reference(module, draft.inputs, seen)
    place_first_ranges(module, seen, draft.grid)
    fidelity = reconstruct(module, seen, reference, draft.grid)
    module.recompile()
    record(module, draft=None, fidelity=fidelity)
    return module


def place_first_ranges(module: fx.GraphModule, seen: Mapping[str, Observer], grid: IntegerGrid) -> None:
    """Put quantizers at these names, for what is seen, whole: zero points are worth their price only where the error
    says so, which `reconstruct` sees.

    Half of the codes cover it where a second operand takes the place of a weight: no two of them saturate 16 bits then,
    at least within what was seen."""
    device = device_of(module)
    for target, observer in seen.items():
        found = FakeQuantize.of_grid(observer.grid(symmetric=True, unsigned=grid.unsigned))
        module.set_submodule(target, found.to(device))
    for target in _second_operands(module) if grid.saturating else ():
        fake = module.get_submodule(target)
        assert isinstance(fake, FakeQuantize)
        fake.scale = 2 * fake.step


def _second_operands(module: fx.GraphModule) -> set[str]:
    """The quantizers of what INT8 products of two activations read second, by their names."""
    nodes = {node.name: node for node in module.graph.nodes}
    placed = deployment(module).placement.kernels
    anchors = [
        nodes[kernel.anchor]
        for kernel in placed
        if kernel.precision == "int8" and kernel.channels is not None
    ]
    found = set()
    for anchor in anchors:
        read = anchor.args[1] if len(anchor.args) > 1 else None
        while isinstance(read, fx.Node) and read.op != "call_module" and len(read.all_input_nodes) == 1:
            (read,) = read.all_input_nodes
        if isinstance(read, fx.Node) and read.op == "call_module":
            child = module.get_submodule(str(read.target))
            if isinstance(child, FakeQuantize) and child.axis is None:
                found.add(str(read.target))
    return found


class _Run(fx.Interpreter):
    """Computes nodes of the quantized module, some layers as they are in `layers`."""

    def __init__(self, module: fx.GraphModule, layers: Mapping[str, nn.Module]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.layers = layers

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (self.layers.get(target) or self.fetch_attr(target))(*args, **kwargs)


class _Sample:
    """A sample in parts, and what nodes make of each with everything up to them rounded."""

    def __init__(self, module: fx.GraphModule, parts: Sequence[tuple[Tensor, ...]]) -> None:
        self.layers: dict[str, nn.Module] = {}
        self.runs = [_Run(module, self.layers) for _ in parts]
        self.inputs = zip(*parts, strict=True)
        self.left: dict[fx.Node, int] = {}

    def take_input(self, node: fx.Node) -> None:
        """The next of the inputs, for the next of the placeholders."""
        for run, value in zip(self.runs, next(self.inputs), strict=True):
            run.env[node] = value

    def round(self, node: fx.Node) -> None:
        """`node` as the module computes it, with its weight rounded once."""
        target = str(node.target)
        if node.op == "call_module" and isinstance(layer := self.runs[0].fetch_attr(target), Layer):
            self.layers[target] = with_rounded_weight(layer)
        for run in self.runs:
            run.env[node] = run.run_node(node)

    def take(self, node: fx.Node, codes: Callable[[Tensor], Tensor], operand: fx.Node) -> None:
        """`node` as the `codes` of an operand."""
        for run in self.runs:
            run.env[node] = codes(run.env[operand])

    def values(self, node: fx.Node) -> list[Tensor]:
        """What `node` is of each part."""
        return [run.env[node] for run in self.runs]

    def forget(self, operands: Sequence[fx.Node]) -> None:
        """Drop what nobody reads any more, now that one more has read `operands`."""
        for operand in operands:
            self.left[operand] = self.left.get(operand, len(operand.users)) - 1
            if not self.left[operand]:
                for run in self.runs:
                    del run.env[operand]


def reconstruct(
    module: fx.GraphModule,
    seen: Mapping[str, Extremes],
    reference: Reference,
    grid: IntegerGrid,
    choices: Choices | None = None,
) -> Fidelity:
    """Choose scales, ranges and biases of `module`, in graph order, in place.

    Args:
        module: quantized, with first ranges.
        seen: the extremes in calibration of every quantizer whose range may be chosen, by its name.
        reference: the sample, and what the module gives of it in float.
        grid: the codes that the target reads.
        choices: what was chosen before, of this module with other kernels in float; added to.

    Returns:
        How near the outputs on the sample are to those in float.
    """
    choices = {} if choices is None else choices
    if grid.saturating:
        settled = _second_operands(module)
        seen = {target: extremes for target, extremes in seen.items() if target not in settled}
    sample, originals = _Sample(module, reference.parts), exact_layers(module)
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    scales = {scale.tensor: scale for scale in deployment(module).placement.scales}
    scaled: list[Scaled] = []
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                sample.take_input(node)
                continue
            operands, target = node.all_input_nodes, str(node.target)
            child = module.get_submodule(target) if node.op == "call_module" else None
            chosen = None
            if isinstance(child, FakeQuantize) and calls[target] == 1 and target in seen:
                readers = _layers(module, node, calls)
                free = scales.get(operands[0].name)
                by = None if free is None else scalable(free, module, node, readers, calls)
                given = sample.values(operands[0])[0]
                chosen = _chosen(node, readers, originals, seen[target], grid, given, choices, by)
            if chosen is None:
                sample.round(node)
            else:
                chosen.place(module, node)
                scaled += chosen.scaled
                sample.take(node, chosen.codes, operands[0])
            if isinstance(child, Layer) and (exact := reference.layers.get(target)) is not None:
                corrected(child, exact.parts, sample.values(node), exact.after)
            sample.forget(operands)
    record(module, scaled=tuple(scaled))
    rounded = [sample.values(node) for node in flat_outputs(module)]
    expected = zip(*reference.outputs, strict=True)
    return Fidelity.of((_whole(e), _whole(r)) for e, r in zip(expected, rounded, strict=True))


def _whole(parts: Sequence[Tensor]) -> Tensor:
    """An output of all samples: scores in rows, anything else flat."""
    return torch.cat([part if part.dim() == 2 else part.flatten() for part in parts])


def _layers(module: fx.GraphModule, node: fx.Node, calls: Mapping[str, int]) -> Readers:
    """The layers that read the quantizer `node` and are called nowhere else, by the names of their submodules."""
    found = Readers()
    for user in node.users:
        child = module.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(child, Layer) and calls[str(user.target)] == 1:
            found[str(user.target)] = child
    return found


def _chosen(
    node: fx.Node,
    layers: Readers,
    originals: Mapping[str, nn.Module],
    seen: Extremes,
    grid: IntegerGrid,
    given: Tensor,
    choices: Choices,
    by: Scalable | None,
) -> Rounding | None:
    """The way of least error to round what the quantizer `node` is `given`, whose channels may be scaled as `by` says;
    None where no layer reads its codes."""
    if not layers:
        return None
    if all(isinstance(layer, QuantizedLinear) for layer in layers.values()):
        rows = given.reshape(-1, given.shape[-1])
        given = rows[:: math.ceil(len(rows) / ROWS)]
    elif given[0].numel() >= GREAT:
        given = given[: math.ceil(len(given) / 2)]
    read_whole = len(layers) < len(node.users)
    ways = list(roundings(layers, seen, grid, read_whole=read_whole, scalable=by))
    for way in ways:
        way.quantizer.to(given.device)
    if len(ways) == 1:
        return ways[0]
    key = (str(node.target), *layers)
    if key not in choices:
        # Of what is read, not of what would be read in float: what has been lost before is the same for every way.
        expected = {
            name: Expected(originals[name](given), channel_axis(layer)) for name, layer in layers.items()
        }
        read = Expected(given, None)
        errors = [way.doubted(read, expected, read_whole=read_whole) for way in ways]
        choices[key] = errors.index(min(errors))
    return ways[choices[key]]
