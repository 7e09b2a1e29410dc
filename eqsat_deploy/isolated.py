"""Kernels of an e-graph side by side in one module, each with what feeds it and what reads it, for an engine to time.

A kernel reads inputs of its own (INT8 codes through a quantizer) and writes an output, or codes that a small INT8
product reads. So each runs in the precision that it has within a model, and what conversions and changes of layout its
lonely position takes are layers of their own, which nobody is charged for: within a model, the neighbours' layouts fit,
or the change is a kernel with a price. Inputs are each kernel's own because an engine computes what two kernels have in
common once, and fuses it with neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.calling import InputSpec
from eqsat_deploy.deployment import PlacedKernel, record
from eqsat_deploy.freeze import Space
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.kernels import QUANTIZE, ENode
from eqsat_deploy.language import conv2d, opaque
from eqsat_deploy.language.operator import Evaluate, interpreted_by
from eqsat_deploy.language.shapes import BATCH, batch_size
from eqsat_deploy.lower import Lowered
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.rebuild import Emitter
from eqsat_extraction.kernel import CostModel

CHANNELS = 4  # that the reader of codes makes
TOKENS = (
    3  # the rank of tensors whose values have both signs, as a rule: others are of images, after activations
)


@dataclass(frozen=True)
class Isolated:
    """A module of kernels, inputs for it, and the graph nodes of every kernel, in the order they were given."""

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    nodes: tuple[frozenset[str], ...]


@dataclass(frozen=True)
class Source:
    """Where kernels are from: an e-graph at a batch size, and the grid of the target's INT8."""

    lowered: Lowered
    space: Space
    model: CostModel
    batch: int
    grid: IntegerGrid | None = None

    def can_isolate(self, number: int, node: ENode) -> bool:
        """Whether a choice of class `number` can stand alone: conversions are done by what writes or reads the tensor,
        and calls that no operator models may depend on their arguments' values."""
        if node.operator in (QUANTIZE, opaque) or not node.is_launch:
            return False
        sources = [self.space.classes[self.space.exact(c)] for c in (number, *node.children)]
        return all(source.shape is not None and source.dtype is not None for source in sources)

    def isolate(self, kernels: Iterable[tuple[int, ENode]]) -> Isolated:
        """The module of `kernels`: choices, each with the class that it provides."""
        emitter = Emitter(self.lowered, self.space, self.model, self.batch)
        chosen = list(kernels)
        inputs: list[InputSpec] = []
        given = [self._inputs(emitter, node, inputs) for _, node in chosen]
        outputs: list[fx.Node] = []
        nodes: list[frozenset[str]] = []
        with torch.no_grad(), interpreted_by(Evaluate()), batch_size(self.batch):
            for (number, node), read in zip(chosen, given, strict=True):
                before = len(emitter.placed.kernels)
                emitter.values, emitter.modules, emitter.anchors = {}, {}, {}
                for operand, placeholder in read.items():
                    emitter.input(operand, placeholder)
                    if self.space.classes[operand].quantized_of is not None:
                        emitter.placed.quantize(operand, placeholder)
                emitter.emit(number, node, 0.0)
                nodes.append(frozenset(emitter.placed.kernels[before].nodes))
                outputs.append(self._read(emitter, number))
        graph = emitter.graph
        graph.output(tuple(outputs))
        module = OptimizedModule(emitter.tree.root, graph, "Kernels").eval()
        values = tuple(map(_values, inputs))
        record(
            module,
            inputs=tuple(inputs),
            placement=emitter.placed.placement(graph),
            grid=self.grid,
            samples=values,
        )
        return Isolated(module, values, tuple(nodes))

    def _inputs(self, emitter: Emitter, node: ENode, inputs: list[InputSpec]) -> dict[int, fx.Node]:
        """An input for every tensor that `node` reads and that is not there before anything runs."""
        given: dict[int, fx.Node] = {}
        for operand in dict.fromkeys(node.children):
            known = self.space.classes[operand]
            if known.constant:
                continue
            source = self.space.classes[self.space.exact(operand)]
            assert source.dtype is not None
            inputs.append(InputSpec(f"input_{len(inputs)}", self._shape(operand), source.dtype))
            given[operand] = emitter.graph.placeholder(inputs[-1].name)
        return given

    def _read(self, emitter: Emitter, number: int) -> fx.Node:
        """The kernel's result, or where it is codes what an INT8 product makes of them."""
        written, shape = emitter.values[number].node, self._shape(number)
        if self.space.classes[number].quantized_of is None or len(shape) < 2:
            return written
        image = len(shape) == 4
        reader: nn.Module = (
            nn.Conv2d(int(shape[1] or 1), CHANNELS, 1) if image else nn.Linear(int(shape[-1] or 1), CHANNELS)
        )
        called = emitter.graph.call_module(emitter.tree.add_module("reader", reader), (written,))
        emitter.placed.read(number, called, conv2d)
        emitter.placed.kernels.append(
            PlacedKernel(called.name, (called.name,), "int8", emitter.floating, 0.0, 0)
        )
        return called

    def _shape(self, number: int) -> tuple[int, ...]:
        shape = self.space.classes[number].shape or ()
        return tuple(d // BATCH * self.batch if d and d % BATCH == 0 else d for d in shape)


def _values(spec: InputSpec) -> Tensor:
    """Values of the sign that they have as a rule: what engines read as unsigned is faster for some."""
    shape: Sequence[Any] = spec.shape
    generator = torch.Generator().manual_seed(0)
    if not spec.dtype.is_floating_point:
        return torch.zeros(shape, dtype=spec.dtype)
    draw = torch.randn if len(shape) == TOKENS else torch.rand
    return draw(shape, generator=generator).to(spec.dtype)
