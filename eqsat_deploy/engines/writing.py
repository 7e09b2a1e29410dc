"""A module written node by node in an engine's operators, each torch function as the one that it is.

An engine has a table of `Functions`. Calls run on `Written` tensors, each of which adds operators; what the table does
not have, or is called in a way that it does not know, raises `Unwritten`: nothing is guessed, the node is converted by
itself by what converts graphs for the engine, which takes a hundred times as long.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import InputSpec
from eqsat_deploy.engines.program import flat_module, whole_attention
from eqsat_deploy.errors import EngineError
from eqsat_deploy.language.attention import SelfAttention, attended
from eqsat_deploy.language.shapes import BATCH

FREE = -1
"""A size that is not known: the batch, or a multiple of it. A reshape infers it; nothing may be computed with it."""


class Unwritten(Exception):
    """A function, or a way to call one, that nothing writes."""


class Functions(dict[Any, Callable[..., Any]]):
    """What writes each torch function, by the function, and by the name of the tensor's method.

    A body has the function's parameters, and returns an operator of the engine, a list of them, or a number.

    Args:
        result: the value of an operator that `Written` holds.
        shape: the sizes of such a value, `FREE` where one is not known; None where the engine does not tell, so that
            torch has to, which takes a millisecond a call.
        dtype: likewise, its dtype.
    """

    def __init__(
        self,
        result: Callable[[Any], Any],
        shape: Callable[[Any], tuple[int, ...]] | None = None,
        dtype: Callable[[Any], torch.dtype] | None = None,
    ) -> None:
        super().__init__()
        self.result, self.shape, self.dtype = result, shape, dtype

    def writes(self, *functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register what writes these functions, or methods by their names."""

        def register(body: Callable[..., Any]) -> Callable[..., Any]:
            self.update(dict.fromkeys(functions, body))
            return body

        return register

    def write(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of a torch function, or of the method of that name, on what is written."""
        known = self.get(function)
        if known is None:
            raise Unwritten(f"{function}")
        try:
            made = known(*args, **kwargs)
        except (TypeError, RuntimeError) as error:  # other arguments than it knows
            raise Unwritten(f"{function}: {error}") from error
        if isinstance(made, Written | int | torch.dtype):
            return made
        call = _Call(function, tuple(args), kwargs)
        if isinstance(made, list):
            return tuple(self._written(part, replace(call, part=i)) for i, part in enumerate(made))
        return self._written(made, call)

    def _written(self, made: Any, call: _Call) -> Written:
        found = Written(self, self.result(made), call)
        if self.shape is None and found.like is None:
            raise Unwritten(f"{call.function}: torch does not compute that")
        return found


@dataclass(frozen=True)
class _Call:
    """What a tensor is the result of, or one of the results."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    part: int | None = None

    @property
    def operands(self) -> list[Written]:
        return [value for value in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(value, Written)]


@dataclass(eq=False)
class Written:
    """A tensor that an engine is to compute: torch functions on it write more of the model.

    Attributes:
        functions: of the engine.
        value: the engine's.
        known: what `like` is, or the call that tells it.
    """

    functions: Functions
    value: Any
    known: Any

    @property
    def like(self) -> Any:
        """A tensor without values, whose shape has `BATCH` for the batch; the number itself of a size; None where torch
        refuses."""
        pending = [self]
        while pending:
            call = pending[-1].known
            before = (
                [v for v in call.operands if isinstance(v.known, _Call)] if isinstance(call, _Call) else []
            )
            if not before:
                written = pending.pop()
                written.known = _like(call) if isinstance(call, _Call) else call
            pending += before
        return self.known

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, `FREE` where one is not known."""
        if self.functions.shape is not None:
            return self.functions.shape(self.value)
        return tuple(map(_size, self.like.shape)) if isinstance(self.like, Tensor) else (1,)

    @property
    def is_readable(self) -> bool:
        """Whether it is a tensor whose sizes are known, or multiples of the batch."""
        return isinstance(self.like, Tensor) and not any(map(_comes_of_batch, self.like.shape))

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        if self.functions.dtype is not None:
            return self.functions.dtype(self.value)
        return self.like.dtype if isinstance(self.like, Tensor) else torch.int64

    def dim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = next(v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Written))
        return given.functions.write(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self.functions:
            raise Unwritten(f"{name} of a tensor")
        return lambda *args, **kwargs: self.functions.write(name, (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        return self.functions.write(operator.add, (self, other), {})

    def __sub__(self, other: Any) -> Any:
        return self.functions.write(operator.sub, (self, other), {})

    def __mul__(self, other: Any) -> Any:
        return self.functions.write(operator.mul, (self, other), {})


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
        return [[_size(size) == FREE for size in value.like.shape] for value in self.read]

    def like(self) -> Any:
        """What it returns, without values, for a batch of `BATCH`."""
        from torch._subclasses.fake_tensor import FakeTensorMode  # which loading an engine has no use for

        with FakeTensorMode(allow_non_fake_inputs=True), whole_attention():
            given = [torch.empty(v.like.shape, dtype=v.dtype) for v in self.read]
            return pytree.tree_map_only(Tensor, lambda value: value.to("meta"), self.module(*given))

    def examples(self) -> list[Tensor]:
        """Zeros for a batch of two: torch specializes a dimension whose example is 0 or 1."""
        return [
            torch.zeros(
                [size * 2 // BATCH if size % BATCH == 0 else size for size in v.like.shape], dtype=v.dtype
            )
            for v in self.read
        ]


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
        given = _is_written((args, kwargs))
        return (
            self.functions.write(target, args, kwargs)
            if given
            else super().call_function(target, args, kwargs)
        )

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Likewise."""
        given = _is_written((args, kwargs))
        return (
            self.functions.write(target, args, kwargs) if given else super().call_method(target, args, kwargs)
        )

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module's forward writes."""
        module = self.fetch_attr(target)
        return (
            _self_attention(module, *args) if isinstance(module, SelfAttention) else module(*args, **kwargs)
        )

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


def _like(call: _Call) -> Any:
    """What a function returns, or the method of that name, of tensors without values; None where torch refuses."""

    def bare(value: Any) -> Any:
        if isinstance(value, Written):
            return value.like
        return value.to("meta") if isinstance(value, Tensor) else value

    args, kwargs = pytree.tree_map(bare, (call.args, call.kwargs))
    function = getattr(args[0], call.function) if isinstance(call.function, str) else call.function
    try:
        found = function(*(args[1:] if isinstance(call.function, str) else args), **kwargs)
    except (TypeError, RuntimeError):
        return None
    return found if call.part is None else found[call.part]


def _size(size: int) -> int:
    if _comes_of_batch(size):
        raise Unwritten("a size that comes of the batch's")
    return FREE if size and size % BATCH == 0 else size


def _comes_of_batch(size: int) -> bool:
    """Whether it is no multiple of it: half of the batch, or one more, is great, too."""
    return size > BATCH // 64 and size % BATCH != 0


def _is_written(given: Any) -> bool:
    return any(isinstance(value, Written) for value in pytree.tree_leaves(given))


def _self_attention(module: SelfAttention, x: Any) -> Any:
    """`nn.MultiheadAttention` on one tensor, (batch, positions, width)."""
    held = module.attention
    qkv = torch.nn.functional.linear(x, held.in_proj_weight, held.in_proj_bias)
    joined = attended(qkv, held.num_heads)
    return torch.nn.functional.linear(joined, held.out_proj.weight, held.out_proj.bias)


# -- for bodies --------------------------------------------------------------------------------------------------------


def listed(values: Sequence[Any]) -> Sequence[Any]:
    """What may be given as one sequence or one by one."""
    return values[0] if len(values) == 1 and isinstance(values[0], list | tuple | torch.Size) else values


def spread(value: Any, axes: int) -> list[int]:
    """A window's size along as many axes."""
    if isinstance(value, str):
        raise Unwritten(f"padding {value!r}")
    return [value] * axes if isinstance(value, int) else list(value) * (axes if len(value) == 1 else 1)


def pair(value: Any) -> list[int]:
    """A window's size along both axes of an image."""
    return spread(value, 2)


def index_of(index: Any) -> tuple[int, Any]:
    """The axis and the integers of `x[:, :, integers]`."""
    axis = len(index) - 1 if isinstance(index, tuple) else -1
    integers = index[-1] if axis >= 0 else None
    plain = (
        all(isinstance(part, slice) and part == slice(None) for part in index[:axis]) if axis >= 0 else False
    )
    if not plain or getattr(integers, "dtype", None) not in (torch.int64, torch.int32):
        raise Unwritten("an index")
    return axis, integers


def axis_of(x: Written, dim: int) -> int:
    """`dim` from the front."""
    return dim % x.dim()


def refuse(*unusual: Any) -> None:
    """Only for calls in which these are absent, 0 or False."""
    if any(unusual):
        raise Unwritten(f"an argument {unusual}")


def is_float(*values: Any) -> None:
    """Only for tensors of float32."""
    for value in values:
        if isinstance(value, Written) and value.dtype != torch.float32:
            raise Unwritten(f"a function of {value.dtype}")


def alike(*values: Any) -> list[Any]:
    """Tensors and numbers in the dtype that a function of them computes in; only where what is written has it."""
    dtype = torch.result_type(*map(_typed, values))

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype)
        if isinstance(value, int | float):
            return torch.tensor(value, dtype=dtype)
        if not isinstance(value, Written) or value.dtype != dtype:
            raise Unwritten(f"a function of {dtype} on {getattr(value, 'dtype', type(value))}")
        return value

    return list(map(cast, values))


def _typed(value: Any) -> Any:
    """What torch finds dtypes of."""
    return torch.empty([1] * value.dim(), dtype=value.dtype) if isinstance(value, Written) else value
