"""What repairs rounding, kernel by kernel: scales that move into weights, ranges and biases.

They are chosen in graph order on a bounded sample of real inputs, each by the error at a kernel's output, with
everything before it rounded already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import checksum, fingerprint, flat_outputs
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.language.pointwise import UNARY
from eqsat_deploy.noise import Fidelity
from eqsat_deploy.quantization.absorption import giver
from eqsat_deploy.quantization.biases import corrected
from eqsat_deploy.quantization.equalization import ChannelScale
from eqsat_deploy.quantization.fake_quantize import (
    FakeQuantize,
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLinear,
)
from eqsat_deploy.quantization.observers import Extremes
from eqsat_deploy.quantization.rounding import Expected, Readers, Rounding, roundings

POINTWISE = frozenset(UNARY.values())

SEARCHED = 8
"""Samples that ways to round are compared on; biases take the whole sample."""

ANCHORS = (QuantizedConv2d, QuantizedConvTranspose2d, QuantizedLinear)


class _Float(fx.Interpreter):
    """Computes nodes of the quantized module as they were in float."""

    def __init__(self, module: fx.GraphModule, originals: Mapping[str, nn.Module]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.originals = originals

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        child = self.originals.get(target) or self.fetch_attr(target)
        return args[0] if isinstance(child, FakeQuantize | ChannelScale) else child(*args, **kwargs)


def reconstruct(
    module: fx.GraphModule,
    originals: Mapping[str, nn.Module],
    seen: Mapping[str, Extremes],
    inputs: Sequence[Tensor],
    grid: IntegerGrid,
    choices: dict[Any, int] | None = None,
) -> Fidelity:
    """Choose scales, ranges and biases of `module`, in graph order, in place.

    Args:
        module: quantized, with first ranges.
        originals: the float layer of every quantized one, by name.
        seen: the extremes in calibration of every quantizer whose range may be chosen, by its name.
        inputs: the sample, in the order of the module's placeholders.
        grid: the codes that the target reads.
        choices: what was chosen of the ways to round a tensor, by the tensor and its readers; added to. Another form of
            the module begins with the same tensors as a rule.

    Returns:
        How near the outputs on the sample are to those in float.
    """
    choices = {} if choices is None else choices
    exact, rounded = _Float(module, originals), fx.Interpreter(module, garbage_collect_values=False)
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    left: dict[fx.Node, int] = {}
    values = iter(inputs)
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                exact.env[node] = rounded.env[node] = next(values)
                continue
            operands, target = node.all_input_nodes, str(node.target)
            child = module.get_submodule(target) if node.op == "call_module" else None
            exact.env[node] = exact.run_node(node)
            once = calls[target] == 1
            if isinstance(child, FakeQuantize) and once and target in seen:
                layers = _layers(module, node, calls)
                by = giver(module, node, layers, calls)
                chosen = _chosen(node, layers, originals, seen[target], grid, rounded, choices, by)
                if chosen is not None:
                    chosen.place(module, node)
                    rounded.env[node] = chosen.codes(rounded.env[operands[0]])
            if node not in rounded.env:
                rounded.env[node] = rounded.run_node(node)
            if isinstance(child, ANCHORS) and once:
                rounded.env[node] = corrected(child, exact.env[node], rounded.env[node], _after(node))
            for operand in operands:
                left[operand] = left.get(operand, len(operand.users)) - 1
                if not left[operand]:
                    del exact.env[operand], rounded.env[operand]
    return Fidelity.of((exact.env[node], rounded.env[node]) for node in flat_outputs(module))


def _after(node: fx.Node) -> Callable[[Tensor], Tensor] | None:
    """The pointwise function that is all that reads a node."""
    users = list(node.users)
    if len(users) != 1 or users[0].target not in POINTWISE or users[0].all_input_nodes != [node]:
        return None
    (user,) = users
    function: Any = user.target
    return lambda values: function(values, *user.args[1:], **user.kwargs)


def _layers(module: fx.GraphModule, node: fx.Node, calls: Mapping[str, int]) -> Readers:
    """The layers that read the quantizer `node` and are called nowhere else, by the names of their submodules."""
    found = Readers()
    for user in node.users:
        child = module.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(child, ANCHORS) and calls[str(user.target)] == 1:
            found[str(user.target)] = child
    return found


def _chosen(
    node: fx.Node,
    layers: Readers,
    originals: Mapping[str, nn.Module],
    seen: Extremes,
    grid: IntegerGrid,
    rounded: fx.Interpreter,
    choices: dict[Any, int],
    by: str | None,
) -> Rounding | None:
    """The way of least error to round what the quantizer `node` reads, whose channels the layer `by` can scale; None
    where no layer reads its codes."""
    if not layers:
        return None
    source = node.all_input_nodes[0]
    given = rounded.env[source][:SEARCHED]
    read_whole = len(layers) < len(node.users)
    ways = list(roundings(layers, seen, grid, read_whole=read_whole, giver=by))
    for way in ways:
        way.quantizer.to(given.device)
    key = (
        seen.checksum,
        read_whole,
        by,
        checksum(given),
        *((repr(m), fingerprint(m)) for m in layers.values()),
    )
    if key not in choices:
        # Of what is read, not of what would be read in float: what has been lost before is the same for every way.
        expected = {
            name: Expected(originals[name](given), -1 if isinstance(layer, QuantizedLinear) else 1)
            for name, layer in layers.items()
        }
        read = Expected(given, None)
        errors = [way.doubted(read, expected, read_whole=read_whole) for way in ways]
        choices[key] = errors.index(min(errors))
    return ways[choices[key]]
