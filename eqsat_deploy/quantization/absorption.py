"""Layers that take in a scale of the channels of a tensor between them, as the rules have it (`eqsat_deploy.scales`).

What divides the channels before they are rounded takes time, unless the layers that write the tensor take the division
in. Exact in float, and of rounded weights too: their scales are those of the rows.

ReLU6 that is divided would be clipped at 6 over the divisors. Where it stands right before the rounding, whose greatest
code stands for no more than that in any channel, the rounding clips: ReLU is enough then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import FreeScale, Scaled, Taking
from eqsat_deploy.language.normalization import Standardize
from eqsat_deploy.quantization.fake_quantize import Layer, sharing

Owner = TypeVar("Owner", bound=nn.Module)


@dataclass(frozen=True)
class Scalable:
    """A tensor whose channels may be scaled, and the names of the submodules that take that in: of all `readers`, and
    of the `writers`, where nothing else reads the tensor; there may be none."""

    free: FreeScale
    readers: Mapping[str, Taking]
    writers: Mapping[str, Taking]

    @property
    def ceiling(self) -> float | None:
        """What the node of the tensor clips at; where the writers divide the tensor, that is left to the rounding."""
        return self.free.ceiling if self.writers else None

    def scaled(self, least: float) -> Scaled:
        """For the report, where the channels are divided by numbers down to `least`."""
        readers, writers = tuple(self.readers.values()), tuple(self.writers.values())
        rules = dict.fromkeys(rule for taking in (*writers, *readers) for rule in taking.rules)
        read, written = (tuple(taking.node for taking in takings) for takings in (readers, writers))
        return Scaled(self.free.tensor, least, read, written, tuple(rules))

    def divide(self, module: fx.GraphModule, tensor: fx.Node, divided: Tensor) -> None:
        """Divide the channels of the node `tensor` of `module` in what writes it."""
        for name, taking in self.writers.items():
            layer = module.get_submodule(name)
            if isinstance(layer, Standardize):  # `Applied.of` has it as what it becomes
                layer = layer.weighted(torch.ones_like(divided, dtype=_dtype(module, self.readers)))
            module.set_submodule(name, taken_in(layer, taking, 1 / divided))
        if self.ceiling is not None:
            tensor.op, tensor.target = "call_function", torch.relu
            tensor.args, tensor.kwargs = (tensor.all_input_nodes[0],), {}


def scalable(
    free: FreeScale,
    module: fx.GraphModule,
    quantizer: fx.Node,
    readers: Mapping[str, Layer],
    calls: Mapping[str, int],
) -> Scalable | None:
    """How the tensor that the node `quantizer` rounds may be scaled; None where one of its readers cannot take that in.

    Args:
        free: what the placement says of the tensor.
        module: quantized.
        quantizer: the node that rounds.
        readers: the layers that read it and nothing else, by their names.
        calls: how often every submodule is called.
    """
    reading = _by_target(quantizer.users, free.readers)
    if not readers or not readers.keys() <= reading.keys():
        return None
    alone = len(quantizer.all_input_nodes[0].users) == 1 and len(readers) == len(quantizer.users)
    writing = _by_target(module.graph.nodes, free.writers) if alone else {}
    once = len(writing) == len(free.writers) and all(calls[name] == 1 for name in writing)
    return Scalable(free, {name: reading[name] for name in readers}, writing if once else {})


def _dtype(module: fx.GraphModule, readers: Iterable[str]) -> torch.dtype:
    """The precision of what layers read."""
    return next(module.get_parameter(f"{name}.weight").dtype for name in readers)


def _by_target(nodes: Iterable[fx.Node], takings: tuple[Taking, ...]) -> dict[str, Taking]:
    """Those of `takings` that are done by submodules which the nodes call, by the names of these."""
    known = {taking.node: taking for taking in takings}
    called = (node for node in nodes if node.op == "call_module" and node.name in known)
    return {str(node.target): known[node.name] for node in called}


def taken_in(layer: Owner, taking: Taking, scale: Tensor) -> Owner:
    """`layer` with parameters that have taken in `scale`, in the shape that broadcasts over what is scaled."""
    clone = sharing(layer)
    held = {name: value.detach() for name, value in layer.named_parameters(recurse=False)}
    for name, formula in taking.parameters.items():
        if name not in held:
            continue
        given = held | {"scale": scale.to(held[name].dtype)}
        trained = getattr(layer, name).requires_grad
        setattr(clone, name, nn.Parameter(formula.value(given), requires_grad=trained))
        correction = getattr(layer, "correction", None)
        if name == "bias" and isinstance(correction, Tensor):
            clone.correction = formula.value(given | {"bias": correction})
    if isinstance(clone, Layer):
        clone.weight_quantizer = clone.weight_quantizer.fitted(clone.weight)
    return clone
