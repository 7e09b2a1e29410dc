"""Tensors that a model makes of numbers and fills in place, as masks of windows are: constants of its graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from eqsat_deploy.capture.functional import is_mutable, writes_first
from eqsat_deploy.capture.simplify import rename_outputs

MADE_LIKE = frozenset(
    {
        torch.ops.aten.new_zeros.default,
        torch.ops.aten.new_ones.default,
        torch.ops.aten.new_full.default,
        torch.ops.aten.new_empty.default,
    }
)
"""What takes nothing but a dtype from the tensor that it is asked of."""


def filled(program: ExportedProgram) -> ExportedProgram:
    """`program`, edited: tensors that are made of numbers, and filled in place by numbers before anything reads them,
    are constants. Taking such filling apart, write by write, takes torch longer than the export itself."""
    made = _Made(program)
    for node in program.graph.nodes:
        made.take(node)
    whole = set(made.writes.values()) & set(made.bases.values()) - made.refused
    if not whole:
        return program
    for node, memory in reversed(made.writes.items()):
        if memory in whole:
            changed: Any = node.args[0]
            node.replace_all_uses_with(changed)
            program.graph.erase_node(node)
    for base, memory in made.bases.items():
        if memory in whole:
            _hold(program, base, made.values[base])
    program.graph.eliminate_dead_code()
    rename_outputs(program)
    return program


class _Made:
    """What is known of the tensors that are made of numbers, up to a node.

    Attributes:
        values: the tensors, by the nodes that make them or a view of them.
        bases: the memory, by the nodes that make it.
        writes: the memory that is written to, by the nodes that do.
        read: memory that something has read.
        refused: memory that was read before it was filled, or is filled by what is not known.
    """

    def __init__(self, program: ExportedProgram) -> None:
        constants = program.graph_signature.inputs_to_lifted_tensor_constants
        self.values: dict[fx.Node, Tensor] = {
            node: program.constants[constants[node.name]].clone()
            for node in program.graph.find_nodes(op="placeholder")
            if node.name in constants
        }
        self.bases: dict[fx.Node, int] = {}
        self.writes: dict[fx.Node, int] = {}
        self.read = set[int]()
        self.refused = set[int]()

    def take(self, node: fx.Node) -> None:
        """The next node of the graph."""
        if node.op == "placeholder":
            return
        memory = {_memory(self.values[operand]) for operand in node.all_input_nodes if operand in self.values}
        if is_mutable(node):
            written: Any = node.args[0] if writes_first(node) else None
            if written in self.values and not self.read & memory and self.is_known(node):
                self.writes[node] = _memory(self.values[written])
                self.values[node] = self.run(node)
            else:
                self.refused |= memory
            return
        result = self.run(node) if self.is_known(node) else None
        if isinstance(result, Tensor):
            self.values[node] = result
            if _memory(result) in memory:
                return  # a view is no reading
            self.bases[node] = _memory(result)
        self.read |= memory

    def is_known(self, node: fx.Node) -> bool:
        """Whether a call makes the same of numbers in every run."""
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in target.tags:
            return False
        operands = node.all_input_nodes[1:] if target in MADE_LIKE else node.all_input_nodes
        return all(n in self.values and _memory(self.values[n]) not in self.refused for n in operands)

    def run(self, node: fx.Node) -> Any:
        """What a call makes of the values."""
        target: Any = node.target
        if target in MADE_LIKE:
            like: Any = node.args[0]
            stand_in = torch.empty(0, dtype=like.meta["val"].dtype)
            return target(stand_in, *node.args[1:], **node.kwargs)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        return target(*args, **kwargs)


def _memory(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _hold(program: ExportedProgram, node: fx.Node, value: Tensor) -> None:
    """Put a constant of `value` in the place of `node`."""
    signature, graph = program.graph_signature, program.graph
    position = next(i for i, spec in enumerate(signature.input_specs) if spec.kind == InputKind.USER_INPUT)
    placeholder = graph.find_nodes(op="placeholder")[position]
    with graph.inserting_before(placeholder):
        constant = graph.placeholder(f"{node.name}_filled")
    constant.meta = dict(node.meta)
    spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(constant.name), constant.name)
    signature.input_specs.insert(position, spec)
    program.constants[constant.name] = value
    node.replace_all_uses_with(constant)
    graph.erase_node(node)
