"""A module as the exported program that engines convert: flat outputs, symbolic batch, node origins."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from eqsat_deploy.deployment import HALVES, Batch, Signature, flat_outputs
from eqsat_deploy.errors import EngineError


def export_program(module: fx.GraphModule, signature: Signature) -> ExportedProgram:
    """`module` through `torch.export`, returning the tuple of its `flat_outputs`; see `node_origins`.

    Parameters are shared with `module`. Raises `EngineError` when torch cannot export the module.
    """
    flat = flat_module(module)
    for node in flat.graph.nodes:
        node.meta = {
            "custom": {"node": node.name}
        }  # "custom" is what torch copies to the nodes traced from it
    batch = Dim.DYNAMIC
    dynamic = tuple(
        {axis: batch for axis, size in enumerate(spec.shape) if size is None} for spec in signature.inputs
    )
    # Two: torch specializes a dimension whose example is 0 or 1.
    examples = signature.zeros(2)
    try:
        with warnings.catch_warnings(), torch.fx.traceback.preserve_node_meta(), _whole_attention():
            warnings.simplefilter("ignore")
            return torch.export.export(_Interpreted(flat), examples, dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:  # torch.export raises whatever an operator's tracing raises
        raise EngineError(f"torch.export cannot export the module: {error}") from error


def prepared(module: fx.GraphModule, batch: Batch) -> tuple[fx.GraphModule, Signature]:
    """A copy of `module` for an engine: on the CPU, in eval mode, in float32 where it is in half precision.

    The signature is the module's own; its `wide` is the copy's.
    """
    signature = Signature.of(module, batch)
    copied = copy.deepcopy(module).cpu().eval()
    tensors = (*copied.parameters(), *copied.buffers())
    if not any(
        dtype in HALVES for dtype in (*(t.dtype for t in tensors), *(s.dtype for s in signature.inputs))
    ):
        return copied, signature
    with torch.no_grad():
        results = flat_module(copied)(*signature.zeros(signature.batch.typical))
    for node in copied.graph.nodes:
        node.args, node.kwargs = (fx.node.map_aggregate(given, _wider) for given in (node.args, node.kwargs))
    copied.recompile()
    return copied.float(), replace(signature, narrow=tuple(value.dtype for value in results))


def _wider(argument: Any) -> Any:
    return torch.float32 if isinstance(argument, torch.dtype) and argument in HALVES else argument


def node_origins(program: ExportedProgram) -> dict[str, str]:
    """For every computing node of an `export_program`, decomposed or not, the module's node it is from."""
    return {
        node.name: str(node.meta["custom"]["node"])
        for node in program.graph.nodes
        if "node" in (node.meta.get("custom") or {})
    }


def flat_module(module: fx.GraphModule) -> fx.GraphModule:
    """`module` returning the tuple of its `flat_outputs`; parameters and submodules are shared with it."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in flat_outputs(module)))
    flat = fx.GraphModule(module, graph)
    flat.meta = dict(module.meta)
    return flat


class _Interpreted(nn.Module):
    """Runs a graph node by node, so that the nodes traced from each carry its name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return fx.Interpreter(self.module).run(*inputs)


@contextmanager
def _whole_attention() -> Iterator[None]:
    # The eager fast path of nn.MultiheadAttention is one private operator that no converter knows.
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
