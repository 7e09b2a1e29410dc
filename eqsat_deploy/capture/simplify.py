"""Exported graphs as lowering wants them: without regions of their own, and samples read one by one as they are."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.export import ExportedProgram


def inlined(program: ExportedProgram) -> ExportedProgram:
    """`program` with the regions that export keeps apart, under `no_grad` or a disabled autocast, in its graph."""
    graph, owner = program.graph, program.graph_module
    found = False
    while regions := [n for n in graph.nodes if _region(n) is not None]:
        found = True
        for node in regions:
            body, *operands = node.args[_region(node) :]
            inner = getattr(owner, body.target)
            for nested in inner.graph.find_nodes(op="get_attr"):
                name = f"{body.target}_{nested.target}"
                setattr(owner, name, getattr(inner, nested.target))
                nested.target = name
            placeholders = inner.graph.find_nodes(op="placeholder")
            with graph.inserting_before(node):
                results = graph.graph_copy(inner.graph, dict(zip(placeholders, operands, strict=True)))
            for user in list(node.users):
                user.replace_all_uses_with(results[user.args[1]])
                graph.erase_node(user)
            graph.erase_node(node)
            if not body.users:
                graph.erase_node(body)
    if found:
        rename_outputs(program)
    return program


def rename_outputs(program: ExportedProgram) -> None:
    """Tell the signature of `program`, whose graph was edited, what its outputs are called now."""
    (output,) = program.graph.find_nodes(op="output")
    for spec, value in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        if isinstance(value, fx.Node):
            spec.arg.name = value.name
    program.graph_module.recompile()


def _region(node: fx.Node) -> int | None:
    """Where a node that runs a submodule as it is has it among its arguments."""
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return 1
    if node.target is torch.ops.higher_order.wrap_with_autocast and not node.args[2]:
        return 4
    return None


def read_each_sample(graph: fx.Graph) -> None:
    """`x[arange(batch)[:, None], j]`, as masks of transformers are written, reads every sample at `j`: it becomes an
    index of axis 1, which does not see the batch."""
    aten = torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.index.Tensor):
        x, indices = node.args
        if len(indices) != 2 or None in indices or any(user.op == "output" for user in node.users):
            continue
        samples, places = indices
        sizes = list(places.meta["val"].shape)
        alike = 1 < len(sizes) == samples.meta["val"].dim() and sizes[0] == 1
        if not alike or not all(isinstance(s, int) for s in sizes) or not _numbers_samples(samples, x):
            continue
        with graph.inserting_before(node):
            flat = _insert(graph, aten.reshape.default, places, [-1])
            read = _insert(graph, aten.index.Tensor, x, [None, flat])
            apart = _insert(graph, aten.unflatten.int, read, 1, sizes[1:])
        node.replace_all_uses_with(apart)
        graph.erase_node(node)


def _numbers_samples(index: fx.Node, x: fx.Node) -> bool:
    """Whether `index` is 0, 1, 2, ... along its first axis, as long as that of `x`, and its other axes are one."""
    aten = torch.ops.aten
    length = x.meta["val"].shape[0]
    if not isinstance(length, torch.SymInt) or any(s != 1 for s in index.meta["val"].shape[1:]):
        return False
    while _along(index, length) and index.target in (
        aten.unsqueeze.default, aten.view.default, aten.reshape.default, aten.slice.Tensor, aten.alias.default,
    ):  # fmt: skip
        index = index.args[0]  # type: ignore[assignment]
    return _along(index, length) and index.target is aten.arange.default


def _along(index: fx.Node, length: torch.SymInt) -> bool:
    first = index.meta["val"].shape[0] if index.op == "call_function" else None
    return isinstance(first, torch.SymInt) and first.node.expr == length.node.expr


def _insert(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], args))
    return node
