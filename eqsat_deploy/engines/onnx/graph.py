"""An ONNX graph on its way from torch to a lane, and edits on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from eqsat_deploy.quantization import FakeQuantize

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]

# The private domain of nodes that mark where an activation is rounded, until a lane replaces them.
DOMAIN = "eqsat_deploy"


@dataclass
class Exported:
    """A float32 ONNX graph with markers, and the quantizers by marker and by initializer.

    `changes` is what a lane computes otherwise than the module, on purpose, a sentence each.
    """

    model: ir.Model
    activations: list[FakeQuantize]
    weights: dict[str, FakeQuantize]
    changes: list[str] = field(default_factory=list)

    @property
    def graph(self) -> ir.Graph:
        """The model's graph."""
        return self.model.graph


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs, initializers and results, those of subgraphs too, once each."""
    import onnx_ir as ir

    seen: set[int] = set()
    candidates = itertools.chain(
        graph.inputs,
        graph.initializers.values(),
        (value for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs),
    )
    for value in candidates:
        if id(value) not in seen:
            seen.add(id(value))
            yield value


def constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """An initializer called `name`, which is reused when it exists."""
    import onnx_ir as ir

    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name))
    graph.register_initializer(value)
    return value


def insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: Mapping[str, int] | None = None,
) -> ir.Value:
    """The result of a new node called `name`, like its result, in front of `before`."""
    import onnx_ir as ir

    node = ir.node(op_type, inputs, attributes or {}, name=name)
    node.outputs[0].name = name
    graph.insert_before(before, node)
    return node.outputs[0]


def replace(node: ir.Node, value: ir.Value) -> None:
    """Reads `value` wherever `node`'s result was read, and removes `node`."""
    import onnx_ir as ir

    graph = cast("ir.Graph", node.graph)
    old = node.outputs[0]
    if old.is_graph_output():
        if value.producer() is None or value.is_graph_output():
            value = insert(graph, node, "Identity", [value], f"{node.name}:value")
        name, value.shape, value.type = old.name, old.shape, old.type
        old.name, value.name = f"{name}:old", name
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def array_of(value: ir.Value) -> Array:
    """The elements of a constant."""
    assert value.const_value is not None
    array: Array = value.const_value.numpy()
    return array
