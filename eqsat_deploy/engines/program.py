"""A module as engines convert it: a copy on the CPU in float32, its flat outputs, an exported program."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from eqsat_deploy.deployment import HALVES, Batch, Signature, copied, flat_outputs
from eqsat_deploy.errors import EngineError


def export_program(
    module: fx.GraphModule, examples: Sequence[Tensor], dynamic: Sequence[Sequence[bool]]
) -> ExportedProgram:
    """`module` through `torch.export`, for inputs like `examples`, whose axes that are `dynamic` have any size.

    Parameters are shared with `module`. Raises `EngineError` when torch cannot export the module.
    """
    sizes = tuple({axis: Dim.DYNAMIC for axis, free in enumerate(axes) if free} for axes in dynamic)
    try:
        with warnings.catch_warnings(), whole_attention():
            warnings.simplefilter("ignore")
            return torch.export.export(module, tuple(examples), dynamic_shapes=sizes, strict=False)
    except Exception as error:  # torch.export raises whatever an operator's tracing raises
        raise EngineError(f"torch.export cannot export the module: {error}") from error


def prepared(module: fx.GraphModule, batch: Batch) -> tuple[fx.GraphModule, Signature]:
    """A copy of `module` for an engine: on the CPU, in eval mode, in float32 where it is in half precision.

    The signature is the module's own; its `wide` is the copy's.
    """
    signature = Signature.of(module, batch)
    clone = copied(module).cpu().eval()
    tensors = (*clone.parameters(), *clone.buffers())
    if not any(
        dtype in HALVES for dtype in (*(t.dtype for t in tensors), *(s.dtype for s in signature.inputs))
    ):
        return clone, signature
    with torch.no_grad():
        results = flat_module(clone)(*signature.zeros(signature.batch.typical))
    for node in clone.graph.nodes:
        node.args, node.kwargs = (fx.node.map_aggregate(given, _wider) for given in (node.args, node.kwargs))
    clone.recompile()
    return clone.float(), replace(signature, narrow=tuple(value.dtype for value in results))


def _wider(argument: Any) -> Any:
    return torch.float32 if isinstance(argument, torch.dtype) and argument in HALVES else argument


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


@contextmanager
def whole_attention() -> Iterator[None]:
    """Without the eager fast path of nn.MultiheadAttention: one private operator that no converter knows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
