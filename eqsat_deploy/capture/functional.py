"""Graphs without mutation: who shares memory with whom, and what an in-place operator therefore changes.

What shares memory is read from the operators' schemas. Some compositions hand their argument on without their schema
saying so (`dropout` in eval mode, `einsum` of one operand, `type_as`); for these it is seen on meta tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.export import ExportedProgram

from eqsat_deploy.capture.exporting import silent
from eqsat_deploy.capture.graph import batch_symbol
from eqsat_deploy.capture.simplify import rename_outputs
from eqsat_deploy.errors import CaptureError

DROPOUTS = frozenset({"dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_"})


def functional(program: ExportedProgram) -> ExportedProgram:
    """`program` without mutation, except for what lowering can take out itself, which is free (`_is_plain`).

    Raises:
        CaptureError: torch fixes the batch on the way.
    """
    if _is_plain(program.graph):
        return program
    symbol = batch_symbol(program.graph)
    _drop_what_is_handed_on(program)
    _view_one_by_one(program.graph)
    try:
        with silent():
            result: ExportedProgram = program.run_decompositions({})
    except RuntimeError as error:  # such as: a tensor that is no buffer is changed
        raise CaptureError(
            f"torch cannot take in-place operators out of the graph: {str(error).splitlines()[0]}. Use their "
            "out-of-place forms, and keep no tensors that forward changes."
        ) from error
    if symbol is not None and batch_symbol(result.graph) is None:
        raise CaptureError(
            "torch fixes the batch while it takes in-place operators on views out of the graph. Use the out-of-place "
            "form of what changes a part of a tensor."
        )
    return result


def _drop_what_is_handed_on(program: ExportedProgram) -> None:
    """Take out compositions that return their argument, or refuse those that return another view of it without their
    schema saying so: torch would take the result for a tensor of its own."""
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not _is_composed(node.target) or _marked(node):
            continue
        for source in _seen_to_alias(node):
            values, result = _simulated(node.target, node)
            if result is None:
                continue
            if not isinstance(result, Tensor) or _layout(result) != _layout(values[source]):
                raise CaptureError(
                    f"node {node.name!r} ({node.target}) returns a view of {source.name!r}, and the model changes "
                    "tensors in place: torch loses track of such changes. Use out-of-place operators."
                )
            node.replace_all_uses_with(source)
            program.graph.erase_node(node)
            break
    rename_outputs(program)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return (
        tensor.untyped_storage()._cdata,
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
    )


def _is_plain(graph: fx.Graph) -> bool:
    """Whether every in-place operator is its functional form, whose result is what later readers of the changed
    tensor read: that tensor is a result of this graph, and nothing shares its memory.
    """
    changed: dict[fx.Node, fx.Node] = {}  # results of in-place operators, and the tensors that they are
    shared: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            shared.add(node)  # parameters, buffers and inputs are the caller's
            continue
        if is_mutable(node):
            base = changed.get(node.args[0], node.args[0])
            changed[node] = base
            if _changes_nothing(node):
                continue
            if base in shared or not _has_functional_form(node):
                return False
            continue
        sources = {changed.get(n, n) for n in _aliased(node)}
        shared |= sources
        if sources:
            shared.add(node)
    return True


def is_mutable(node: fx.Node) -> bool:
    """Whether a call writes to one of its arguments."""
    schema = schema_of(node.target)
    return schema is not None and schema.is_mutable


def writes_first(node: fx.Node) -> bool:
    """Whether a call writes to its first argument alone."""
    first, *others = schema_of(node.target).arguments
    return first.is_write and not any(other.is_write for other in others)


def schema_of(target: Any) -> Any:
    """The schema of an ATen overload or custom operator; None for any other function."""
    return getattr(target, "_schema", None)


def functional_target(target: Any) -> Any:
    """The overload that computes what an in-place one writes to its first argument; None where there is none."""
    schema = schema_of(target)
    namespace, _, name = schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    found = getattr(packet, schema.overload_name or "default", None)
    if found is None or found is target or found._schema.is_mutable:
        return None
    return found


def _changes_nothing(node: fx.Node) -> bool:
    """Dropout in eval mode is the identity, whatever it is told to change."""
    name = schema_of(node.target).name.split("::")[1]
    return name in DROPOUTS and not argument(node, "train")


def _has_functional_form(node: fx.Node) -> bool:
    """Whether a call changes its first argument alone, to the result of a functional overload: of the same dtype, and
    in memory of its own."""
    schema = schema_of(node.target)
    target = functional_target(node.target)
    if target is None or not writes_first(node) or len(schema.returns) != 1:
        return False
    if any(r.alias_info is not None for r in target._schema.returns):
        return False
    values, result = _simulated(target, node)
    base = values[node.args[0]]  # type: ignore[index]
    return isinstance(result, Tensor) and result.dtype == base.dtype and result.shape == base.shape


def _aliased(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that the result of a call may share memory with."""
    schema = schema_of(node.target)
    if schema is None:  # an item of a tuple, a higher-order operator, arithmetic on sizes
        yield from (n for n in node.all_input_nodes if _has_tensor(n.meta.get("val")))
        return
    marked = _marked(node)
    for declared in marked:
        given = argument(node, declared.name)
        yield from (n for n in pytree.tree_leaves(given) if isinstance(n, fx.Node))
    if not marked and _is_composed(node.target):
        yield from _seen_to_alias(node)


def _marked(node: fx.Node) -> list[Any]:
    """The arguments that the schema of a call says its result shares memory with."""
    return [a for a in schema_of(node.target).arguments if a.alias_info is not None]


def _is_composed(target: Any) -> bool:
    """Whether an operator is made of others, so that it may return what one of them does."""
    return isinstance(target, torch._ops.OpOverload) and target.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd
    )


def _seen_to_alias(node: fx.Node) -> Iterator[fx.Node]:
    sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    values, result = _simulated(node.target, node)
    seen = {t.untyped_storage()._cdata for t in pytree.tree_leaves(result) if isinstance(t, Tensor)}
    for source in sources:
        value = values[source]
        if result is None or value is None or value.untyped_storage()._cdata in seen:
            yield source


def _simulated(target: Any, node: fx.Node) -> tuple[dict[fx.Node, Any], Any]:
    """Meta tensors for the arguments of a call, and what `target` returns for them; None where it does not run.

    They have the sizes of the example: symbolic ones would be narrowed down by what the operator asks of them.
    """
    values = {n: pytree.tree_map(_on_meta, n.meta.get("val")) for n in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return values, None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    try:
        with torch.no_grad():
            return values, target(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError):  # not every operator runs on meta tensors
        return values, None


def _on_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return _number(value)
    sizes, strides = ([_number(n) for n in numbers] for numbers in (value.shape, value.stride()))
    if None in sizes or None in strides:  # known only when the model runs
        return None
    return torch.empty_strided(sizes, strides, dtype=value.dtype, device="meta")


def _number(value: Any) -> Any:
    return value.node.hint if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else value


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def argument(node: fx.Node, name: str) -> Any:
    """An argument of an ATen call, given or default."""
    for position, declared in enumerate(schema_of(node.target).arguments):
        if declared.name == name:
            return (
                node.args[position]
                if position < len(node.args)
                else node.kwargs.get(name, declared.default_value)
            )
    raise KeyError(name)


def _view_one_by_one(graph: fx.Graph) -> None:
    """Parts of a tensor as selections and slices: where one of several views of a call is changed in place, torch 2.13
    fixes symbolic sizes."""
    aten = torch.ops.aten
    splits = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
    for node in list(graph.nodes):
        if node.target is not aten.unbind.int and node.target not in splits:
            continue
        source, axis = node.args[0], argument(node, "dim")
        lengths = [1 if node.target is aten.unbind.int else v.shape[axis] for v in node.meta["val"]]
        if not all(isinstance(length, int) for length in lengths):
            continue
        for part in list(node.users):
            index = part.args[1]
            start = sum(lengths[:index])
            with graph.inserting_before(part):
                view = (
                    graph.call_function(aten.select.int, (source, axis, index))
                    if node.target is aten.unbind.int
                    else graph.call_function(aten.slice.Tensor, (source, axis, start, start + lengths[index]))
                )
            view.meta = dict(part.meta)
            part.replace_all_uses_with(view)
            graph.erase_node(part)
        graph.erase_node(node)
