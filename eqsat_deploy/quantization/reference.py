"""What a module computes in float on a sample: what rounding is measured by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import deployment, flat_outputs, split
from eqsat_deploy.language.pointwise import UNARY
from eqsat_deploy.quantization.biases import known
from eqsat_deploy.quantization.calibrate import channels_last, enough
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, Layer, channel_axis, with_exact_weight
from eqsat_deploy.quantization.observers import Observer

POINTWISE = frozenset(UNARY.values())

SEARCHED = 8
"""Samples that are computed at once, half of great ones. Small parts, since tensors of 32 MiB and more are memory that
the system clears anew for each of them."""


@dataclass(frozen=True)
class Output:
    """What is `known` of a layer's output in every part, and the function `after` that alone reads it."""

    after: Callable[[Tensor], Tensor] | None
    parts: list[Tensor] = field(default_factory=list)


class Reference:
    """What a module gives in float on a sample, part by part.

    Attributes:
        parts: the sample, about `SEARCHED` in each, in the order of the placeholders.
        layers: what is `known` of every layer whose bias can take back what rounding adds, by its name.
        outputs: the values of the nodes that the module returns (`flat_outputs`).
    """

    def __init__(
        self, module: fx.GraphModule, inputs: Sequence[Tensor], seen: Mapping[str, Observer] | None = None
    ) -> None:
        """Run `module`, quantized or not, on `inputs`; what quantizers of these names would round is shown to those who
        have `seen` it."""
        specs = deployment(module).inputs
        self.parts = [
            tuple(map(channels_last, part)) for part in split(specs, inputs, enough(SEARCHED, specs, inputs))
        ]
        self.layers = {name: Output(_after(node)) for name, node in _correctable(module).items()}
        self.outputs: list[list[Tensor]] = []
        run = _FloatRun(module, self.layers, seen or {})
        with torch.no_grad():
            for part in self.parts:
                self.outputs.append(run.run(*part))


class _FloatRun(fx.Interpreter):
    """Computes a module without its rounding, and keeps what is known of its `layers`."""

    def __init__(
        self, module: fx.GraphModule, layers: Mapping[str, Output], seen: Mapping[str, Observer]
    ) -> None:
        super().__init__(module)
        self.module: fx.GraphModule
        self.layers, self.seen, self.exact = layers, seen, exact_layers(module)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        child = self.fetch_attr(target)
        if target in self.seen:
            self.seen[target].update(args[0])
        if isinstance(child, FakeQuantize):
            return args[0]
        values = self.exact.get(target, child)(*args, **kwargs)
        if (output := self.layers.get(target)) is not None:
            output.parts.append(known(values, channel_axis(child), output.after))
        return values

    def output(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return [self.env[node] for node in flat_outputs(self.module)]


def exact_layers(module: fx.GraphModule) -> dict[str, nn.Module]:
    """The module's quantized layers as they were in float, by their names."""
    return {
        name: with_exact_weight(layer) for name, layer in module.named_modules() if isinstance(layer, Layer)
    }


def _correctable(module: fx.GraphModule) -> dict[str, fx.Node]:
    """The layers of INT8 kernels that are called once, by their names."""
    called = [node for node in module.graph.nodes if node.op == "call_module"]
    calls = Counter(str(node.target) for node in called)
    anchors = {kernel.anchor for kernel in deployment(module).placement.kernels if kernel.precision == "int8"}
    return {
        str(node.target): node
        for node in called
        if node.name in anchors
        and calls[str(node.target)] == 1
        and isinstance(module.get_submodule(str(node.target)), nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }


def _after(node: fx.Node) -> Callable[[Tensor], Tensor] | None:
    """The pointwise function that is all that reads a node."""
    users = list(node.users)
    if len(users) != 1 or users[0].target not in POINTWISE or users[0].all_input_nodes != [node]:
        return None
    (user,) = users
    function: Any = user.target
    # With the arguments of now: a scale that moves through the node may change them.
    return partial(_applied, function, user.args[1:], dict(user.kwargs))


def _applied(function: Callable[..., Tensor], args: Any, kwargs: Any, values: Tensor) -> Tensor:
    return function(values, *args, **kwargs)
