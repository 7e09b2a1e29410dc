"""A module written node by node in an engine's operators, and what nothing writes exported by itself."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import InputSpec
from eqsat_deploy.engines.program import flat_module, whole_attention
from eqsat_deploy.engines.writing import FREE, Functions, Unwritten, Written, size_of
from eqsat_deploy.errors import EngineError
from eqsat_deploy.language.attention import SelfAttention, attended
from eqsat_deploy.language.shapes import BATCH


class Region(NamedTuple):
    """Nodes that nothing writes: a module that returns the tuple of their results, and the tensors it is called with,
    which have an axis for the batch where `dynamic` says so."""

    module: fx.GraphModule
    read: list[Written]

    @property
    def nodes(self) -> list[str]:
        """The names of what computes something."""
        computing = ("call_function", "call_method", "call_module")
        nodes = (node for node in self.module.graph.nodes if node.op in computing)
        return [node.name for node in nodes if node.target is not operator.getitem]

    @property
    def dynamic(self) -> list[list[bool]]:
        """For every tensor and axis."""
        return [[size_of(size) == FREE for size in value.like.shape] for value in self.read]

    def like(self) -> Any:
        """What it returns, without values, for a batch of `BATCH`."""
        from torch._subclasses.fake_tensor import FakeTensorMode  # which loading an engine has no use for

        with FakeTensorMode(allow_non_fake_inputs=True), whole_attention():
            given = [torch.empty(v.like.shape, dtype=v.dtype) for v in self.read]
            return pytree.tree_map_only(Tensor, lambda value: value.to("meta"), self.module(*given))

    def examples(self) -> list[Tensor]:
        """Zeros for a batch of two: torch specializes a dimension whose example is 0 or 1."""
        shapes = (
            [size * 2 // BATCH if size % BATCH == 0 else size for size in v.like.shape] for v in self.read
        )
        return [torch.zeros(shape, dtype=v.dtype) for shape, v in zip(shapes, self.read, strict=True)]


class _Deferred:
    """What comes of a function the shape of whose results is not known: it is converted with all that reads it."""


class Writer(fx.Interpreter):
    """Writes a module of flat outputs node by node; what depends on no input is computed.

    An engine says how a `Region` is converted, and what comes of a node that is written.
    """

    def __init__(self, module: fx.GraphModule, functions: Functions, rounding: type[nn.Module]) -> None:
        super().__init__(flat_module(module), garbage_collect_values=False)
        self.extra_traceback = False  # which would change what errors say
        self.functions, self.rounding = functions, rounding

    def converted(self, region: Region) -> list[Any]:
        """The values of what `region` returns; `EngineError` when it has no form."""
        raise NotImplementedError

    def finished(self, node: str, results: list[Written]) -> None:
        """Called with each node's results in turn."""

    def outputs(self, inputs: Sequence[Any], specs: Sequence[InputSpec]) -> list[Any]:
        """The results for inputs with these values, written tensors and tensors that no input changes."""
        shapes = ([BATCH if size is None else size for size in spec.shape] for spec in specs)
        likes = (
            torch.empty(shape, dtype=spec.dtype, device="meta")
            for shape, spec in zip(shapes, specs, strict=True)
        )
        given = (Written(self.functions, *each) for each in zip(inputs, likes, strict=True))
        with torch.no_grad():
            return list(self.run(*given))

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        if n.op == "output":
            return self._settled(n)
        if any(isinstance(self.env[argument], _Deferred) for argument in n.all_input_nodes):
            return _Deferred()
        try:
            value = super().run_node(n)
        except Unwritten:
            value = self._alone(n)
        if n.op.startswith("call"):
            parts = value if isinstance(value, tuple) else (value,)
            self.finished(n.name, [part for part in parts if isinstance(part, Written)])
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As torch has it where nothing is written yet."""
        if _is_written((args, kwargs)):
            return self.functions.write(target, args, kwargs)
        return super().call_function(target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Likewise."""
        if _is_written((args, kwargs)):
            return self.functions.write(target, args, kwargs)
        return super().call_method(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module's forward writes."""
        module = self.fetch_attr(target)
        if isinstance(module, SelfAttention):
            return _self_attention(module, *args)
        return module(*args, **kwargs)

    def _settled(self, output: fx.Node) -> list[Any]:
        """What the module returns, converting what was deferred."""
        nodes: tuple[fx.Node, ...] = output.args[0]  # type: ignore[assignment]
        if late := [node for node in nodes if isinstance(self.env[node], _Deferred)]:
            region = self._region(late)
            results = [Written(self.functions, value, None) for value in self.converted(region)]
            self.finished(late[-1].name, results)
            self.env |= dict(zip(late, results, strict=True))
        return [self.env[node] for node in nodes]

    def _alone(self, n: fx.Node) -> Any:
        """What is converted by itself."""
        region = self._region([n])
        try:
            like = region.like()[0]
        except Exception:  # what an operator raises that has to see values
            return _Deferred()
        several = isinstance(like, tuple | list)
        parts = list(like) if several else [like]
        kept = [place for place, part in enumerate(parts) if isinstance(part, Tensor)]
        if any(isinstance(part, int) and part > BATCH // 64 for part in parts):
            return _Deferred()  # a number that comes of the batch
        if not kept:
            return like
        if several:
            _unpack(region.module, kept)
        values = dict(zip(kept, self.converted(region), strict=True))
        made = [
            Written(self.functions, values[i], part) if i in values else part for i, part in enumerate(parts)
        ]
        return tuple(made) if several else made[0]

    def _region(self, results: Sequence[fx.Node]) -> Region:
        """What computes `results` from written tensors."""
        needed, read, inside = set(results), [], []
        for node in reversed(self.graph.nodes):
            value = self.env.get(node)
            if node in needed and isinstance(value, Written) and value.is_readable:
                read.append((node, value))
            elif node in needed:
                self._check(node)
                needed.update(node.all_input_nodes)
                inside.append(node)
        graph = fx.Graph()
        copies = {node: graph.placeholder(node.name) for node, _ in read}
        for node in reversed(inside):
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in results))
        return Region(fx.GraphModule(self.module, graph), [value for _, value in read])

    def _check(self, node: fx.Node) -> None:
        if node.op == "call_module":
            module = self.fetch_attr(str(node.target))
            if any(isinstance(part, self.rounding) for part in module.modules()):
                raise EngineError(
                    f"{node.name!r} quantizes what this engine has no INT8 form of: keep it in float"
                )


def _unpack(module: fx.GraphModule, places: Sequence[int]) -> None:
    """Let `module`, which returns one sequence, return what is at these places of it."""
    graph = module.graph
    output = graph.output_node()
    sequence: Any = output.args[0][0]  # type: ignore[index]
    with graph.inserting_before(output):
        output.args = (tuple(graph.call_function(operator.getitem, (sequence, place)) for place in places),)
    module.recompile()


def _is_written(given: Any) -> bool:
    return any(isinstance(value, Written) for value in pytree.tree_leaves(given))


def _self_attention(module: SelfAttention, x: Any) -> Any:
    """`nn.MultiheadAttention` on one tensor, (batch, positions, width)."""
    held = module.attention
    qkv = torch.nn.functional.linear(x, held.in_proj_weight, held.in_proj_bias)
    joined = attended(qkv, held.num_heads)
    return torch.nn.functional.linear(joined, held.out_proj.weight, held.out_proj.bias)
