"""Lowering: a captured graph becomes rows of operator applications, hash-consed, ready for the e-graph."""

from __future__ import annotations

import operator as python_operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from eqsat_deploy.capture import Captured
from eqsat_deploy.errors import CaptureError
from eqsat_deploy.language import (
    BATCH,
    IMPORTERS,
    Operator,
    encode,
    input_,
    ones,
    opaque,
    parameter,
    result,
    zeros,
)
from eqsat_deploy.language.operator import Unsupported, interpreted_by
from eqsat_deploy.language.shapes import MAX_RANK

UNKNOWN = "the shape of what it reads is not known before the model runs"
IMPURE = frozenset({torch.Tag.nondeterministic_seeded})
SHAPE_ONLY = frozenset({"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"})


@dataclass(frozen=True, eq=False)
class Term:
    """A lowered tensor: its row, its shape with the batch as `BATCH`, and its dtype.

    An opaque call that returns several tensors has no shape of its own, and neither has a tensor whose shape is not
    known before the model runs; nothing but opaque calls can read them.
    """

    row: int
    meta: Tensor | None
    constant: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; a multiple of `BATCH` is a multiple of the batch."""
        return tuple(self._value.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype."""
        return self._value.dtype

    @property
    def _value(self) -> Tensor:
        if self.meta is None:
            raise Unsupported(UNKNOWN)
        return self.meta


@dataclass(frozen=True)
class Row:
    """One operator application; tensor operands are row numbers, attributes are ints, floats, strings, tuples."""

    operator: Operator
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """An opaque call: its target, and its arguments with `Hole(i)` where the i-th tensor operand stands."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reason: str
    node: str


@dataclass(frozen=True)
class Hole:
    """The place of a tensor operand in an opaque call."""

    index: int


PER_CHANNEL = 1 << 16
"""Elements up to which the signs of a parameter are looked at."""
BESIDE = 1 << 15
"""The largest number that a size beside a multiple of the batch is told by."""


@dataclass
class Lowered:
    """The graph as rows, and the tables their indices point into.

    `nonnegative` are rows of small parameters without a negative element.
    `origin` maps a row to the FX node it first came from: its name, and the path of the module it ran in.
    `outputs` are row numbers, or plain values where the model returns something that is no tensor.
    """

    captured: Captured
    rows: list[Row] = field(default_factory=list)
    metas: list[Tensor | None] = field(default_factory=list)
    constants: list[bool] = field(default_factory=list)
    nonnegative: set[int] = field(default_factory=set)
    parameters: list[tuple[str, Tensor]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    origin: dict[int, tuple[str, str]] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    nodes: int = 0

    @property
    def opaque(self) -> list[Call]:
        """Calls that stayed opaque."""
        return self.calls


def lower(captured: Captured) -> Lowered:
    """Lower every node of the graph; what the language does not model becomes an opaque row.

    Warns where a node is left opaque for a reason a user can act on. Constant calls that no operator models are
    evaluated once, here.
    """
    lowering = _Lowering(captured)
    with torch.no_grad(), interpreted_by(lowering):
        for node in _alive(captured.graph):
            lowering.visit(node)
    for message in lowering.lowered.warnings:
        warnings.warn(message, stacklevel=2)
    return lowering.lowered


def _alive(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that a result depends on, in order: inputs, mutations, and what is read."""
    alive: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        kept = node.op != "call_function" or getattr(
            getattr(node.target, "_schema", None), "is_mutable", False
        )
        if kept or any(user in alive for user in node.users):
            alive.add(node)
    return [node for node in graph.nodes if node in alive]


def _beside_the_batch(size: int) -> bool:
    """Whether a size is a multiple of the batch and a number, such as what a padded batch has: none is written so."""
    return size % BATCH != 0 and size > BATCH // 2 and (size + BESIDE) % BATCH < 2 * BESIDE


class Rows:
    """Interprets operators as hash-consed rows of a `Lowered`; `current` is the origin that new rows get."""

    def __init__(self, captured: Captured) -> None:
        self.lowered = Lowered(captured)
        self.seen: dict[tuple[Any, ...], Term] = {}
        self.stored: dict[Any, int] = {}
        self.current: tuple[str, str] = ("", "")

    def apply(self, operator: Operator, args: tuple[Any, ...]) -> Term:
        """A row for `operator` on terms and attributes in declaration order; torch's body gives its shape."""
        operands, attributes = operator.split(args)
        metas = [o.meta for o in operands]
        if any(m is None for m in metas):
            raise Unsupported(UNKNOWN)
        value = operator.body(*operator.join(tuple(metas), attributes))
        meta = torch.empty(value.shape, dtype=value.dtype, device="meta")
        if meta.dim() > MAX_RANK:
            raise Unsupported(f"rank above {MAX_RANK}")
        if any(_beside_the_batch(d) for d in meta.shape):
            raise Unsupported(UNKNOWN)
        row = operator.join(tuple(o.row for o in operands), attributes)
        batched = any(d % BATCH == 0 for d in meta.shape if d)
        return self.add(Row(operator, row), meta, not batched and all(o.constant for o in operands))

    def add(self, row: Row, meta: Tensor | None, constant: bool) -> Term:
        """The term of `row`, which is appended unless it is there already."""
        key = (row.operator.name, repr(row.args))
        if key not in self.seen:
            number = len(self.lowered.rows)
            self.lowered.rows.append(row)
            self.lowered.metas.append(meta)
            self.lowered.constants.append(constant)
            self.lowered.origin[number] = self.current
            self.seen[key] = Term(number, meta, constant)
        return self.seen[key]

    def forget(self, since: int) -> None:
        """Drop the rows from `since` on, which nothing reads."""
        lowered = self.lowered
        for row in range(since, len(lowered.rows)):
            self.seen.popitem()  # one for every row, in their order
            lowered.origin.pop(row)
            lowered.nonnegative.discard(row)
        del lowered.rows[since:], lowered.metas[since:], lowered.constants[since:]


class _Lowering(Rows):
    """Visits FX nodes in order and interprets operators as rows."""

    def __init__(self, captured: Captured) -> None:
        super().__init__(captured)
        self.captured = captured
        self.values: dict[fx.Node, Any] = {}
        self.mutates: dict[fx.Node, fx.Node] = {}
        self.symbol = captured.batch_symbol

    # -- FX nodes ------------------------------------------------------------------------------------------

    def visit(self, node: fx.Node) -> None:
        self.current = (node.name, _module_path(node))
        if node.op == "placeholder":
            self.values[node] = self._placeholder(node)
        elif node.op == "output":
            self.lowered.outputs = [self._output(node, a) for a in node.args[0]]  # type: ignore[union-attr]
        elif node.op == "call_function":
            self.lowered.nodes += 1
            self.values[node] = self._call(node)
            self._mutate(node)
        else:
            raise CaptureError(
                f"node {node.name!r} ({node.op} {node.target}) has control flow, which is not supported"
            )

    def _placeholder(self, node: fx.Node) -> Any:
        if node.name in self.captured.constants:
            name, tensor = self.captured.constants[node.name]
            return self._parameter(name, tensor)
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        row = Row(input_, (self.captured.inputs.index(node.name),))
        return self.add(row, self._known_meta(value), constant=False)

    def _parameter(self, name: str, tensor: Tensor) -> Term:
        index = self.stored.setdefault(_storage(tensor), len(self.lowered.parameters))
        if index == len(self.lowered.parameters):
            self.lowered.parameters.append((name, tensor))
        meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        term = self.add(Row(parameter, (index,)), meta, constant=True)
        if tensor.is_floating_point() and tensor.numel() <= PER_CHANNEL and bool((tensor >= 0).all()):
            self.lowered.nonnegative.add(term.row)
        return term

    def _output(self, node: fx.Node, value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        term = self.values[value]
        if not isinstance(term, Term):
            raise CaptureError(f"output {value.name!r} is {term!r}, not a tensor")
        return term

    def _call(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if node.target is python_operator.getitem:
            return self._getitem(node)
        args, kwargs = self._argument(node.args), self._argument(node.kwargs)
        if not _has_tensor(value):
            return self._integer(node, args, kwargs, value)
        importer = _importer(node)
        if _has_unknown((args, kwargs)):
            return self._opaque(node, args, kwargs, value, UNKNOWN)
        if importer is not None:
            before = len(self.lowered.rows)
            try:
                return self._checked(node, _call_importer(importer, node.target, args, kwargs), value)
            except Unsupported as unsupported:
                reason = unsupported.reason
                self.forget(before)  # what it was half taken apart into
        else:
            reason = "the language has no such operator"
        return self._opaque(node, args, kwargs, value, reason)

    def _getitem(self, node: fx.Node) -> Any:
        source, index = node.args
        value = self.values[source]  # type: ignore[index]
        if isinstance(value, tuple):
            return value[index]  # type: ignore[index]
        return self.add(Row(result, (value.row, index)), self._known_meta(node.meta["val"]), value.constant)

    def _checked(self, node: fx.Node, terms: Any, value: Any) -> Any:
        """What an importer returned, if every result that is read has the shape and dtype that torch reports."""
        several = isinstance(terms, tuple)
        read = {u.args[1] for u in node.users if u.users} if several else {0}
        for index, term in enumerate(terms if several else (terms,)):
            if index not in read:
                continue
            expected = self._meta(value[index] if several else value)  # Unsupported where it is not known
            if term is None:
                raise Unsupported(f"{_name(node)} is left whole: its result {index} is read")
            if tuple(expected.shape) != term.shape or expected.dtype != term.dtype:
                raise Unsupported(f"its result is {expected.dtype}{list(expected.shape)}")
        return terms

    def _opaque(self, node: fx.Node, args: Any, kwargs: Any, value: Any, reason: str) -> Any:
        operands: list[Term] = []

        def hole(leaf: Any) -> Any:
            if isinstance(leaf, Term):
                operands.append(leaf)
                return Hole(len(operands) - 1)
            return leaf

        target = _functional_target(node.target)
        held = _map((args, kwargs), hole)
        pure = not (getattr(target, "tags", ()) and IMPURE & set(target.tags))
        known = all(o.constant for o in operands) or _packet(target) in SHAPE_ONLY
        constant = pure and known and not _has_batch(held) and not self._depends(value)
        if constant:
            return self._evaluate(node, target, held, operands)
        call = Call(target, held[0], held[1], reason, node.name)
        unknown = reason == UNKNOWN and any(word in _packet(target) for word in ("pool", "attention"))
        if "left whole" in reason or unknown:
            self.lowered.warnings.append(f"{node.name} ({_packet(target)}): {reason}")
        same = [i for i, c in enumerate(self.lowered.calls)
                if (c.target, repr((c.args, c.kwargs))) == (target, repr(held)) and pure]  # fmt: skip
        index = same[0] if same else len(self.lowered.calls)
        if not same:
            self.lowered.calls.append(call)
        row = Row(opaque, (index, tuple(o.row for o in operands)))
        return self.add(row, self._known_meta(value), constant=False)

    def _evaluate(self, node: fx.Node, target: Any, held: Any, operands: list[Term]) -> Any:
        """A constant call that no operator models: its value becomes a parameter named after the node."""
        values = [self._value(o) if o.constant else torch.empty(o.shape, dtype=o.dtype, device="meta")
                  for o in operands]  # fmt: skip
        if any(v.is_meta for v in values):  # only the shape of the operand matters, and that is known
            held = (held[0], held[1] | {"device": torch.device("cpu")})
        args, kwargs = _map(held, lambda leaf: values[leaf.index] if isinstance(leaf, Hole) else leaf)
        value = target(*args, **kwargs)
        if isinstance(value, Tensor):
            return self._constant(node.name, value)
        return tuple(self._constant(f"{node.name}_{i}", v) for i, v in enumerate(value))

    def _constant(self, name: str, value: Tensor) -> Term:
        """A computed constant. All zeros or ones are said to be: a mask that keeps all can go."""
        if value.numel() and value.dim() <= MAX_RANK:
            for uniform, number in ((zeros, 0), (ones, 1)):
                if bool((value == number).all()):
                    return uniform(encode(tuple(value.shape)), str(value.dtype).removeprefix("torch."))  # type: ignore[no-any-return]
        return self._parameter(name, value)

    def _value(self, term: Term) -> Tensor:
        row = self.lowered.rows[term.row]
        if row.operator is parameter:
            return self._parameter_value(row.args[0])
        operands, attributes = row.operator.split(row.args)
        values = tuple(self._value(Term(o, self.lowered.metas[o], True)) for o in operands)
        value: Tensor = row.operator.body(*row.operator.join(values, attributes))
        return value if term.meta is None else value.to(term.dtype)

    def _parameter_value(self, index: int) -> Tensor:
        return self.lowered.parameters[index][1]

    def _depends(self, value: Any) -> bool:
        leaves = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(v, torch.SymInt | torch.SymFloat | torch.SymBool) for v in leaves):
            return True
        return any(isinstance(s, torch.SymInt) for v in leaves if isinstance(v, Tensor) for s in v.shape)

    def _mutate(self, node: fx.Node) -> None:
        """After an in-place operator, later readers of the mutated tensor see its result."""
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            return
        base: Any = node.args[0]
        self.mutates[node] = base
        while base is not None:
            self.values[base] = self.values[node]
            base = self.mutates.get(base)

    # -- values --------------------------------------------------------------------------------------------

    def _integer(self, node: fx.Node, args: Any, kwargs: Any, value: Any) -> Any:
        """A number: a multiple of the batch as an integer, one not known before the model runs as an opaque call."""
        if isinstance(value, torch.SymInt):
            try:
                return self._size(value)
            except Unsupported as unsupported:
                return self._opaque(node, args, kwargs, value, unsupported.reason)
        if isinstance(value, torch.SymFloat | torch.SymBool):
            return self._opaque(node, args, kwargs, value, UNKNOWN)
        return value

    def _size(self, size: Any) -> int:
        """A size as an integer, the batch as `BATCH`."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        number = expression.subs(self.symbol, BATCH) if self.symbol is not None else expression
        if not number.is_Integer or (expression.free_symbols and expression.subs(self.symbol, 0) != 0):
            raise Unsupported(UNKNOWN)
        return int(number)

    def _known_meta(self, value: Any) -> Tensor | None:
        """The meta tensor of a tensor whose shape is known; None for anything else."""
        try:
            return self._meta(value) if isinstance(value, Tensor) else None
        except Unsupported:
            return None

    def _meta(self, value: Tensor) -> Tensor:
        return torch.empty([self._size(s) for s in value.shape], dtype=value.dtype, device="meta")

    def _argument(self, argument: Any) -> Any:
        def convert(leaf: Any) -> Any:
            if isinstance(leaf, fx.Node):
                return self.values[leaf]
            return leaf

        return _map(argument, convert)


def _storage(tensor: Tensor) -> Any:
    """What two names of one parameter have in common."""
    if not tensor.data_ptr():
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    match value:
        case tuple() | list() if not isinstance(value, torch.Size):
            return tuple(_map(v, function) for v in value)
        case dict():
            return {k: _map(v, function) for k, v in value.items()}
        case _:
            return function(value)


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_has_tensor, value)))


def _has_unknown(arguments: Any) -> bool:
    found: list[Any] = []
    _map(arguments, lambda leaf: found.append(leaf) if isinstance(leaf, Term) and leaf.meta is None else None)
    return bool(found)


def _has_batch(held: Any) -> bool:
    found = False

    def look(leaf: Any) -> Any:
        nonlocal found
        found |= isinstance(leaf, int) and not isinstance(leaf, bool) and leaf != 0 and leaf % BATCH == 0
        return leaf

    _map(held, look)
    return found


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""


def _packet(target: Any) -> str:
    schema = getattr(target, "_schema", None)
    return schema.name.split("::")[1] if schema is not None else ""


def _name(node: fx.Node) -> str:
    return str(node.target).split(".default")[0]


def _importer(node: fx.Node) -> Any:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return None
    namespace, _, base = schema.name.partition("::")
    if namespace != "aten":
        return IMPORTERS.get(schema.name)
    overload = schema.overload_name or "default"
    return IMPORTERS.get(f"{base}.{overload}") or IMPORTERS.get(f"{base.removesuffix('_')}.{overload}")


def _functional_target(target: Any) -> Any:
    """The overload that computes what an in-place one writes."""
    schema = getattr(target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return target
    base = schema.name.split("::")[1].removesuffix("_")
    packet = getattr(torch.ops.aten, base, None)
    overload = schema.overload_name or "default"
    if packet is None or not hasattr(packet, overload):
        raise CaptureError(f"{target} mutates its input and has no functional form")
    return getattr(packet, overload)


def _call_importer(importer: Any, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    schema = target._schema
    if schema.name.startswith("eqsat_deploy::"):
        names = [a.name for a in schema.arguments]
        return importer(**dict(zip(names, args, strict=False)), **kwargs)
    known = set(
        importer.__code__.co_varnames[: importer.__code__.co_argcount + importer.__code__.co_kwonlyargcount]
    )
    takes_any = bool(importer.__code__.co_flags & 0x08)
    extra = {k: v for k, v in kwargs.items() if not takes_any and k not in known}
    if any(v not in (None, False) for v in extra.values()):
        raise Unsupported(f"argument {next(iter(extra))!r}")
    return importer(*args, **{k: v for k, v in kwargs.items() if k not in extra})
