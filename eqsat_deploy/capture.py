"""Capture: a model becomes one functional ATen graph with a symbolic batch, attention kept whole.

Works on a copy that shares parameters with the caller's model, in eval mode; the model itself is not touched.
"""

from __future__ import annotations

import copy
import inspect
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from eqsat_deploy.attention import keep_attention_whole
from eqsat_deploy.deployment import InputSpec
from eqsat_deploy.errors import CaptureError, InputError

BATCH_DIMENSION = Dim("batch")
FUNCTIONAL_IN_PLACE = frozenset({"relu_", "relu6_", "hardtanh_", "silu_", "hardswish_", "hardsigmoid_", "sigmoid_",
                                 "tanh_", "leaky_relu_", "elu_", "celu_", "selu_", "mish_", "add_", "sub_", "mul_",
                                 "div_", "clamp_"})  # fmt: skip
VIEWS = frozenset({"view", "reshape", "permute", "transpose", "t", "slice", "select", "unsqueeze", "squeeze", "expand",
                   "flatten", "unflatten", "split", "chunk", "unbind", "narrow", "alias", "detach", "contiguous",
                   "to", "movedim", "expand_as", "split_with_sizes", "view_as", "unfold", "diagonal", "as_strided",
                   "swapaxes", "dropout", "clone", "lift_fresh_copy"})  # fmt: skip


@dataclass(frozen=True)
class Captured:
    """A functional ATen graph, and what is needed to call and to rebuild it.

    `graph` has a placeholder per parameter, buffer, constant and input; `constants` maps placeholder names to
    (original dotted name, tensor); `inputs` are the remaining placeholders in order. `example` are the flat
    example inputs it was traced with. `in_spec` and `out_spec` are pytree structures of call and result.
    """

    graph: fx.Graph
    constants: dict[str, tuple[str, Tensor]]
    inputs: tuple[str, ...]
    batch_axes: tuple[int | None, ...]
    input_specs: tuple[InputSpec | None, ...]
    arguments: tuple[tuple[str, tuple[tuple[Any, ...], ...]], ...]
    example: tuple[tuple[Any, ...], dict[str, Any]]
    out_spec: pytree.TreeSpec
    batch_symbol: Any
    module: nn.Module

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The example's tensors, in the order of `inputs`."""
        return tuple(leaf for leaf in pytree.tree_leaves(self.example) if isinstance(leaf, Tensor))


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every parameter and buffer with `model`."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Captured:
    """Export `model` with a symbolic batch (axis 0 of every input unless `dynamic_shapes` says otherwise).

    Raises:
        CaptureError: the model does not export; the message names the line of the model that stopped it.
        InputError: the example inputs do not fit the model.
    """
    kwargs = dict(kwargs or {})
    module: nn.Module
    if isinstance(model, ExportedProgram):
        program, module = model, model.module()
        args, kwargs = model.example_inputs or (args, kwargs)
    else:
        module = shared_copy(model)
        module.eval()  # whose result is None where a model's own `train` forgets to return it
        keep_attention_whole(module)
        args, kwargs = pytree.tree_map(_at_least_two, (args, kwargs))
        program = _export(module, args, dict(kwargs), dynamic_shapes)
        _read_each_sample(program.graph)
    program = _functional(_inlined(program))
    return _captured(program, module, args, kwargs)


def _at_least_two(value: Any) -> Any:
    """Exporting at batch 1 specializes the batch: examples of one are repeated."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1:
        return value.repeat_interleave(2, 0)
    return value


def _batch_of(value: Any) -> Any:
    return {0: BATCH_DIMENSION} if isinstance(value, Tensor) and value.dim() else None


def _export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    try:
        with torch.no_grad(), _quiet():
            module(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except Exception as error:
        raise InputError(
            f"the model does not run on the example inputs ({_describe(args, kwargs)}): "
            f"{type(error).__name__}: {error}{_model_line(error)}. Pass example_inputs= that its forward accepts."
        ) from error
    if dynamic_shapes is None:  # by argument, as forward binds them: *args is one, a tuple
        positional, named = pytree.tree_map(_batch_of, (args, kwargs))
        dynamic_shapes = dict(inspect.signature(module.forward).bind(*positional, **named).arguments)
    try:
        with torch.no_grad(), _quiet():
            return export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CaptureError(
            f"torch.export cannot export {type(module).__name__}: {type(error).__name__}: {first}"
            f"{_model_line(error)}. Make that line independent of tensor values, or move it out of forward."
        ) from error


def _model_line(error: BaseException) -> str:
    """Where in the model's own source the error arose: the innermost frame outside torch and this package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f for f in frames
        if "/torch/" not in f.filename and not f.filename.startswith("<") and f.name == "forward"
    ] or [f for f in frames if "/torch/" not in f.filename and "/eqsat_deploy/" not in f.filename]  # fmt: skip
    if not own:
        return ""
    return f" (at {own[-1].filename}:{own[-1].lineno}, in {own[-1].name}: {own[-1].line})"


def _describe(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
    return ", ".join(
        f"{str(v.dtype).removeprefix('torch.')}{list(v.shape)}" if isinstance(v, Tensor) else repr(v)
        for v in leaves
    )


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _inlined(program: ExportedProgram) -> ExportedProgram:
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
        (output,) = graph.find_nodes(op="output")
        for spec, value in zip(program.graph_signature.output_specs, output.args[0], strict=True):
            if isinstance(value, fx.Node):
                spec.arg.name = value.name
        owner.recompile()
    return program


def _region(node: fx.Node) -> int | None:
    """Where a node that runs a submodule as it is has it among its arguments."""
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return 1
    if node.target is torch.ops.higher_order.wrap_with_autocast and not node.args[2]:
        return 4
    return None


def _functional(program: ExportedProgram) -> ExportedProgram:
    """`program` without mutation. Plain in-place activations are left to lowering, which is free."""
    if all(
        _is_functional(n) or _is_plain_in_place(n) for n in program.graph.nodes if n.op == "call_function"
    ):
        return program
    inputs = tuple(map(str, program.graph_signature.user_inputs))
    symbol = _batch_symbol(program.graph, inputs)
    _view_one_by_one(program.graph)
    with _quiet():
        functional: ExportedProgram = program.run_decompositions({})
    if symbol is not None and _batch_symbol(functional.graph, inputs) is None:
        raise CaptureError(
            "torch fixes the batch while it takes in-place operators on views out of the graph. Use the out-of-place "
            "form of what changes a part of a tensor."
        )
    return functional


def _view_one_by_one(graph: fx.Graph) -> None:
    """Parts of a tensor as selections and slices: where one of several views of a call is changed in place, torch 2.13
    fixes symbolic sizes."""
    aten = torch.ops.aten
    splits = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
    for node in list(graph.nodes):
        if node.target is not aten.unbind.int and node.target not in splits:
            continue
        source, axis = node.args[0], _argument(node, "dim")
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


def _read_each_sample(graph: fx.Graph) -> None:
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


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of an ATen call, given or default."""
    for position, argument in enumerate(_schema(node).arguments):
        if argument.name == name:
            return (
                node.args[position]
                if position < len(node.args)
                else node.kwargs.get(name, argument.default_value)
            )
    raise KeyError(name)


def _schema(node: fx.Node) -> Any:
    return getattr(node.target, "_schema", None)


def _is_functional(node: fx.Node) -> bool:
    schema = _schema(node)
    return schema is None or not schema.is_mutable


def _base_name(node: fx.Node) -> str:
    return _schema(node).name.split("::")[1] if _schema(node) is not None else ""


def _is_plain_in_place(node: fx.Node) -> bool:
    """Whether replacing the call by its functional form, and later uses of its first argument, is all there is.

    True when the mutated tensor is fresh: computed by an operator that makes no view, and never viewed before.
    """
    if _base_name(node) in ("dropout_", "feature_dropout_"):  # the identity in eval mode, whatever it views
        return not node.args[2]
    base = node.args[0]
    return (
        _base_name(node) in FUNCTIONAL_IN_PLACE
        and isinstance(base, fx.Node)
        and base.op == "call_function"
        and _schema(base) is not None
        and (_base_name(base) in FUNCTIONAL_IN_PLACE or _base_name(base) not in VIEWS)
        and not any(_base_name(user) in VIEWS for user in base.users)
        and not (_base_name(base) in FUNCTIONAL_IN_PLACE and not _is_plain_in_place(base))
    )


def _captured(
    program: ExportedProgram, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Captured:
    signature = program.graph_signature
    mutated = {**signature.buffers_to_mutate, **signature.user_inputs_to_mutate}
    if mutated:
        raise CaptureError(
            f"the model changes {next(iter(mutated.values()))!r} when it runs; only models whose forward leaves "
            "buffers and inputs alone can be optimized. Put the module in eval mode or remove the assignment."
        )
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers,
             **signature.inputs_to_lifted_tensor_constants}  # fmt: skip
    values = {**program.state_dict, **program.constants}
    constants = {k: (name, values[name].detach()) for k, name in names.items()}
    inputs = tuple(n.name for n in program.graph.nodes if n.op == "placeholder" and n.name not in constants)
    return Captured(
        graph=program.graph,
        constants=constants,
        inputs=inputs,
        batch_axes=_batch_axes(program.graph, inputs),
        input_specs=_input_specs(program.graph, inputs),
        arguments=_arguments(module, args, kwargs),
        example=(tuple(args), dict(kwargs)),
        out_spec=program.call_spec.out_spec,
        batch_symbol=_batch_symbol(program.graph, inputs),
        module=module,
    )


def _arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[str, tuple[tuple[Any, ...], ...]], ...]:
    """Arguments of forward in order, each with the key paths of its leaves."""
    names = [
        p.name for p in inspect.signature(module.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    names += [f"input_{i}" for i in range(len(names), len(args))]
    given = [*zip(names, args, strict=False), *kwargs.items()]
    return tuple(
        (name, tuple(tuple(_key(k) for k in path) for path, _ in pytree.tree_flatten_with_path(value)[0]))
        for name, value in given
    )


def _batch_axes(graph: fx.Graph, inputs: tuple[str, ...]) -> tuple[int | None, ...]:
    axes: dict[str, int | None] = dict.fromkeys(inputs)
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in axes and isinstance(value, Tensor):
            dynamic = [i for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
            axes[node.name] = dynamic[0] if dynamic else None
    return tuple(axes.values())


def _input_specs(graph: fx.Graph, inputs: tuple[str, ...]) -> tuple[InputSpec | None, ...]:
    specs: dict[str, InputSpec | None] = dict.fromkeys(inputs)
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in specs and isinstance(value, Tensor):
            shape = tuple(None if isinstance(size, torch.SymInt) else int(size) for size in value.shape)
            specs[node.name] = InputSpec(node.name, shape, value.dtype)
    return tuple(specs.values())


def _key(entry: Any) -> Any:
    return entry.idx if isinstance(entry, pytree.SequenceKey) else getattr(entry, "key", None) or entry.name


def _batch_symbol(graph: fx.Graph, inputs: tuple[str, ...]) -> Any:
    """The symbol of the first axis 0 that may vary, else of any axis that may; None where all is fixed."""
    sizes = [
        (position, size)
        for node in graph.nodes
        if node.op == "placeholder" and node.name in inputs and isinstance(node.meta.get("val"), Tensor)
        for position, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt)
    ]
    ordered = sorted(sizes, key=lambda pair: pair[0])
    return next((symbol for _, size in ordered for symbol in size.node.expr.free_symbols), None)
