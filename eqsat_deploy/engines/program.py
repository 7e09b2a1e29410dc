"""A module as the exported program that engines convert: flat outputs, symbolic batch, node origins."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.fx.traceback
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen

from eqsat_deploy.deployment import HALVES, Batch, InputSpec, Signature, copied, flat_outputs
from eqsat_deploy.errors import EngineError
from eqsat_deploy.language.shapes import BATCH


def export_program(module: fx.GraphModule, signature: Signature) -> ExportedProgram:
    """`module` through `torch.export`, returning the tuple of its `flat_outputs`; see `node_origins`.

    Parameters are shared with `module`. Raises `EngineError` when torch cannot export the module.
    """
    flat = _marked_nodes(module)
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


def traced(
    module: fx.GraphModule, signature: Signature, decompositions: Mapping[Any, Callable[..., Any]]
) -> fx.GraphModule:
    """`module` as a graph of aten operators, those in `decompositions` taken apart, for every batch size.

    It returns the tuple of its `flat_outputs`; see `node_origins`. Parameters are shared with `module`. What
    `torch.export` and its decompositions come to for a module without state, in one tracing instead of three.
    Raises whatever an operator's tracing raises, and what changes tensors in place is refused.

    The batch is a symbol where something reads its size. Elsewhere that would take two to three times as long: it is a
    size that no model has, which nothing in the graph may come of.
    """
    root = _Interpreted(_marked_nodes(module))
    reading = any(node.op == "call_method" and node.target == "size" for node in root.module.graph.nodes)
    if not reading:
        graph = _traced(root, signature, decompositions, symbolic=False)
        if not any(map(_is_of_batch, graph.graph.nodes)):
            return graph
    return _traced(root, signature, decompositions, symbolic=True)


def _is_of_batch(node: fx.Node) -> bool:
    """Whether an argument may come of `BATCH`: half of it, or one less, is great too."""
    numbers = (leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, int))
    return any(BATCH // 64 < abs(number) < sys.maxsize for number in numbers)


def _traced(
    root: _Interpreted,
    signature: Signature,
    decompositions: Mapping[Any, Callable[..., Any]],
    *,
    symbolic: bool,
) -> fx.GraphModule:
    # Here, and not above: it takes seconds, and what loads an engine traces nothing.
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    fakes = FakeTensorMode(shape_env=ShapeEnv() if symbolic else None, allow_non_fake_inputs=True)
    state = {**dict(root.named_parameters()), **dict(root.named_buffers())}
    held = [fakes.from_tensor(value.detach(), static_shapes=True) for value in state.values()]
    examples = _symbolic(fakes, signature) if symbolic else _great(fakes, signature)

    def call(held: Sequence[Tensor], examples: Sequence[Tensor]) -> Any:
        return torch.func.functional_call(root, dict(zip(state, held, strict=True)), tuple(examples))

    with torch.no_grad(), torch.fx.traceback.preserve_node_meta(), _whole_attention():
        graph: fx.GraphModule = make_fx(
            call, dict(decompositions), pre_dispatch=True, _allow_non_fake_inputs=True
        )(held, examples)
    for node in graph.graph.nodes:
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
            raise EngineError(f"{node.name!r} changes a tensor in place")
    _hold(graph, state)
    return graph


def _symbolic(fakes: FakeTensorMode, signature: Signature) -> list[Tensor]:
    """Inputs whose batch is a symbol."""
    from torch._dynamo.source import ConstantSource

    return [
        # Two: torch specializes a dimension whose example is 0 or 1.
        fakes.from_tensor(value, source=ConstantSource(spec.name), symbolic_context=_sizes(spec))
        for spec, value in zip(signature.inputs, signature.zeros(2), strict=True)
    ]


def _great(fakes: FakeTensorMode, signature: Signature) -> list[Tensor]:
    """Inputs whose batch is `BATCH`; they have no values, and take no memory."""
    with fakes:
        return [
            torch.empty([BATCH if size is None else size for size in spec.shape], dtype=spec.dtype)
            for spec in signature.inputs
        ]


def composites(kept: Iterable[OpOverload]) -> dict[OpOverload, Callable[..., Any]]:
    """What takes apart the operators that torch itself takes apart, but for those `kept`: among them views and casts
    (`narrow`, `contiguous`, `to`), which are in no table of decompositions since export never meets them."""
    names = (name.removeprefix("aten::").partition(".") for name in torch._C._dispatch_get_all_op_names()
             if name.startswith("aten::"))  # fmt: skip
    aten, left = torch.ops.aten, set(kept)
    found = (getattr(getattr(aten, name, None), overload or "default", None) for name, _, overload in names)
    return {
        operator: operator.decompose
        for operator in found
        if operator is not None and operator not in left
        if operator._can_decompose() and not operator._schema.is_mutable
    }


def _hold(graph: fx.GraphModule, state: Mapping[str, Tensor]) -> None:
    """Turn the first placeholders of `graph` into the tensors of `state`, held as buffers."""
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for placeholder, (name, value) in zip(placeholders, state.items(), strict=False):
        if placeholder.users:
            target = name.replace(".", "_")
            while hasattr(graph, target):  # `a.b_c` and `a_b.c` are two
                target += "_"
            graph.register_buffer(target, value.detach())
            with graph.graph.inserting_before(placeholder):
                placeholder.replace_all_uses_with(graph.graph.get_attr(target))
        graph.graph.erase_node(placeholder)
    graph.graph.set_codegen(CodeGen())
    graph.recompile()


def _sizes(spec: InputSpec) -> Any:
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    return StatelessSymbolicContext(
        dynamic_sizes=[DimDynamic.DYNAMIC if size is None else DimDynamic.STATIC for size in spec.shape]
    )


def _marked_nodes(module: fx.GraphModule) -> fx.GraphModule:
    """`flat_module` whose nodes carry their names in what torch copies to the nodes traced from them."""
    flat = flat_module(module)
    for node in flat.graph.nodes:
        node.meta = {"custom": {"node": node.name}}
    return flat


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


def node_origins(graph: fx.Graph) -> dict[str, str]:
    """For every computing node of an `export_program`, decomposed or not, or of what was `traced`, the module's node
    it is from."""
    return {
        node.name: str(node.meta["custom"]["node"])
        for node in graph.nodes
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
