"""Freezing: the saturated e-graph as plain data, and what extraction may choose for each of its classes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from eqsat_deploy.choices import Choices, Member, Table, table
from eqsat_deploy.errors import EqsatError
from eqsat_deploy.kernels import CONSTANT, QUANTIZE, ENode, Step
from eqsat_deploy.language import OPERATORS, Operator, concat_all, decode
from eqsat_deploy.lower import Lowered, Term
from eqsat_deploy.saturate import Saturation
from eqsat_deploy.stages import no_collection
from eqsat_deploy.tables import Frozen

Anchors = dict[Any, ENode]
Epilogues = dict[Any, tuple[Step, ...]]


@dataclass(frozen=True)
class EClass:
    """What is known of an e-class. `quantized_of` is the class that an INT8 class holds the codes of."""

    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    constant: bool = False
    quantized_of: int | None = None
    origin: tuple[str, str] | None = None


@dataclass(frozen=True)
class Space:
    """The frozen e-graph.

    `nodes` are all plain operator applications: the equalities. `choices` are what extraction may choose from:
    kernels, views and leaves. `row_class` has the e-class of every row of the model, `roots` those of the tensors that
    it returns, `original` its own e-nodes; `fired` says which rules (as indices) acted on which class. `terms` maps a
    constant class to the e-node that computes it.
    """

    classes: tuple[EClass, ...]
    nodes: tuple[Member, ...]
    choices: Choices
    row_class: tuple[int, ...]
    roots: tuple[int, ...]
    original: frozenset[Member]
    fired: Mapping[int, tuple[int, ...]]
    terms: Mapping[int, ENode]

    def exact(self, number: int) -> int:
        """The e-class of the exact tensor that an e-class is, or holds the codes of."""
        of = self.classes[number].quantized_of
        return number if of is None else of

    @cached_property
    def owner(self) -> Mapping[ENode, int]:
        """The e-class of every e-node of the language."""
        return {node: number for number, node in self.nodes}


@no_collection()
def freeze(lowered: Lowered, saturation: Saturation) -> Space:
    """Decode the e-graph's tables. Deterministic: classes are numbered in order of the model's rows, then of rows."""
    tables = _Tables(saturation.frozen)
    row_class = tables.rows_of(lowered)
    fired = _fired(tables)
    nodes = tuple(_plain(tables))
    anchors, epilogues = _anchors(tables), _epilogues(tables)
    alone, launches = list(_alone(tables, nodes)), _launches(tables, anchors, epilogues)
    classes = _classes(tables, lowered, row_class, nodes)
    return Space(
        classes=classes,
        nodes=nodes,
        choices=_choices(classes, anchors, epilogues, alone, launches),
        row_class=row_class,
        roots=tuple(row_class[o.row] for o in lowered.outputs if isinstance(o, Term)),
        original=frozenset(_original(lowered, row_class)),
        fired=fired,
        terms=_terms(nodes, classes),
    )


def decoded(
    lowered: Lowered, frozen: Frozen, functions: Iterable[str]
) -> tuple[tuple[Member, ...], dict[str, list[tuple[Any, ...]]]]:
    """The e-nodes of the language, and arguments of the rows of other functions, e-classes numbered as by `freeze`."""
    tables = _Tables(frozen)
    tables.rows_of(lowered)
    _fired(tables)
    nodes = tuple(_plain(tables))
    return nodes, {name: [args for args, _ in tables.applications(name)] for name in functions}


def recognized(frozen: Frozen, space: Space) -> set[Member]:
    """The e-nodes of `space` that an earlier state of its e-graph has already."""
    tables = _Tables(frozen)
    numbers = {out: space.row_class[row] for (row,), out in frozen.rows("Node")}
    tables.decoders["T"] = numbers.get
    tables.decoders["L"] = lambda handle: tuple(map(numbers.get, tables.lists[handle]))
    found: set[Member] = set()
    waiting = [
        (o, row) for o in OPERATORS.values() if o is not concat_all for row in frozen.rows(o.constructor)
    ]
    while waiting:
        left = []
        for operator, (values, out) in waiting:
            node = ENode(operator, tables.decode(operator.constructor, values))
            number = space.owner.get(node)
            if number is None:
                left.append((operator, (values, out)))
            else:
                numbers[out] = number
                found.add((number, node))
        if len(left) == len(waiting):
            break
        waiting = left
    return found


class _Tables:
    """The e-graph's tables, with its handles as numbers of e-classes, given in the order they are met."""

    def __init__(self, frozen: Frozen) -> None:
        self.rows, self.sorts = frozen.rows, frozen.sorts
        self.numbers: dict[Any, int] = {}
        empty = {out: () for _, out in frozen.rows("Nil")}
        self.lists = lists = _resolved(
            empty,
            [(head, item, out) for (head, item), out in frozen.rows("Snoc")],
            lambda before, item: (*before, item),
        )
        self.decoders: dict[str, Callable[[Any], Any]] = {
            "T": self.number, "Q": self.number, "L": lambda handle: tuple(map(self.number, lists[handle])),
        }  # fmt: skip

    def number(self, handle: Any) -> int:
        return self.numbers.setdefault(handle, len(self.numbers))

    def rows_of(self, lowered: Lowered) -> tuple[int, ...]:
        handles = {args[0]: out for args, out in self.rows("Node")}
        return tuple(self.number(handles[row]) for row in range(len(lowered.rows)))

    def applications(self, function: str) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Decoded arguments and handle of every row of a function."""
        for values, out in self.rows(function):
            yield self.decode(function, values), out

    def decode(self, function: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments with e-classes as numbers."""
        decoders = self.decoders
        return tuple(
            decoders[s](v) if s in decoders else v for s, v in zip(self.sorts(function), values, strict=True)
        )


def _resolved(
    known: dict[Any, Any], links: Iterable[tuple[Any, Any, Any]], extend: Callable[[Any, Any], Any]
) -> dict[Any, Any]:
    """Values of chained terms: every link (before, item, result) once what is before it is known."""
    waiting = deque(links)
    while waiting:
        before, item, out = waiting.popleft()
        if before in known:
            known[out] = extend(known[before], item)
        else:
            waiting.append((before, item, out))
    return known


def _fired(tables: _Tables) -> dict[int, tuple[int, ...]]:
    fired: dict[int, set[int]] = {}
    for (index, value), _ in tables.rows("fired"):
        fired.setdefault(tables.number(value), set()).add(index)
    return {number: tuple(sorted(indices)) for number, indices in sorted(fired.items())}


def _plain(tables: _Tables) -> Iterator[Member]:
    """Applications of the operators that rules are about; nested concatenations as one are a kernel of theirs."""
    for operator in OPERATORS.values():
        if operator is not concat_all:
            yield from _applications(tables, operator)


def _applications(tables: _Tables, operator: Operator) -> Iterator[Member]:
    for args, out in tables.applications(operator.constructor):
        yield tables.number(out), ENode(operator, args)


def _original(lowered: Lowered, row_class: tuple[int, ...]) -> Iterator[Member]:
    """E-nodes that the model came with."""
    for number, row in enumerate(lowered.rows):
        operands, attributes = row.operator.split(row.args)
        args = row.operator.join(tuple(row_class[r] for r in operands), attributes)
        yield row_class[number], ENode(row.operator, args)


# -- kernels -----------------------------------------------------------------------------------------------


def _alone(tables: _Tables, nodes: Iterable[Member]) -> Iterator[Member]:
    """What is a kernel, a view or a leaf by itself: operators, conversions to codes, operators that hand codes on."""
    yield from ((number, node) for number, node in nodes if node.operator.launched)
    yield from _applications(tables, concat_all)
    codes = {}
    for (value,), out in tables.applications("Quant"):
        codes[value] = tables.number(out)
        yield codes[value], ENode(QUANTIZE, (value,))
    for operator in OPERATORS.values():
        for args, out in tables.applications("Q" + operator.constructor):
            operands, attributes = operator.split(args)
            read = tuple(codes.get(o, o) for o in operands)  # a list is of tensors
            if operator.launched and not codes.keys() & set(read):
                yield tables.number(out), ENode(operator, operator.join(read, attributes), integer=True)


def _launches(tables: _Tables, anchors: Anchors, epilogues: Epilogues) -> Table:
    """Anchors with an epilogue, an INT8 kernel's perhaps empty, by what they provide, a tensor or its codes: e-class,
    place of the anchor and of the epilogue."""
    anchor_at = {handle: place for place, handle in enumerate(anchors)}
    epilogue_at = {handle: place for place, handle in enumerate(epilogues)}

    def launches() -> Iterator[tuple[int, int, int]]:
        for (anchor, epilogue), out in tables.rows("Run"):
            if epilogues[epilogue]:
                yield tables.number(out), anchor_at[anchor], epilogue_at[epilogue]
        for (value, anchor, epilogue), _ in tables.rows("integer-kernel"):
            yield tables.number(value), anchor_at[anchor], epilogue_at[epilogue]
        for (anchor, epilogue), out in tables.rows("QRun"):
            yield tables.number(out), anchor_at[anchor], epilogue_at[epilogue]

    return table(launches())


def _choices(
    classes: Sequence[EClass],
    anchors: Anchors,
    epilogues: Epilogues,
    alone: Iterable[Member],
    launches: Table,
) -> Choices:
    """Leaves, and whatever is not a constant's; in order of e-class, then of what they are."""
    leaves = [(number, ENode(CONSTANT)) for number, known in enumerate(classes) if known.constant]
    alone = [*leaves, *(member for member in alone if not classes[member[0]].constant)]
    heads = sorted({*anchors.values(), *(node for _, node in alone)}, key=lambda node: node.sort_key)
    tails = sorted({(), *epilogues.values()})
    head_of, tail_of = ({part: place for place, part in enumerate(parts)} for parts in (heads, tails))
    anchor_at = np.array([head_of[node] for node in anchors.values()], dtype=np.int64)
    epilogue_at = np.array([tail_of[steps] for steps in epilogues.values()], dtype=np.int64)
    owner, anchor, epilogue = launches[~np.array([known.constant for known in classes])[launches[:, 0]]].T
    launched = np.stack([owner, anchor_at[anchor], epilogue_at[epilogue]], axis=1)
    by_themselves = table((number, head_of[node], 0) for number, node in alone)
    return Choices.ordered(np.concatenate([by_themselves, launched]), heads, tails)


def _anchors(tables: _Tables) -> dict[Any, ENode]:
    return {
        out: ENode(operator, args, integer=integer)
        for operator in OPERATORS.values()
        for prefix, integer in (("A", False), ("I", True))
        for args, out in tables.applications(prefix + operator.constructor)
    }


def _epilogues(tables: _Tables) -> Epilogues:
    links = [(v[-1], Step(v[0]), out) for v, out in tables.rows("EpUnary")]
    for function, quantized in (("EpBinary", False), ("EpQuant", True)):
        links += [
            (v[-1], Step(v[0], tables.number(v[2]), v[1], quantized), out) for v, out in tables.rows(function)
        ]
    empty = {out: () for _, out in tables.rows("EpNone")}
    return _resolved(empty, links, lambda before, step: (*before, step))


# -- what is known of classes ------------------------------------------------------------------------------


def _classes(
    tables: _Tables, lowered: Lowered, row_class: tuple[int, ...], nodes: Iterable[Member]
) -> tuple[EClass, ...]:
    shapes = {tables.number(value): decode(shape) for (value,), shape in tables.rows("shape")}
    constants = {tables.number(value) for (value,), _ in tables.rows("const")}
    codes = [(tables.number(out), tables.number(value)) for (value,), out in tables.rows("Quant")]
    origins: dict[int, tuple[str, str]] = {}
    dtypes: dict[int, torch.dtype] = {}
    for row, (number, meta) in enumerate(zip(row_class, lowered.metas, strict=True)):
        origins.setdefault(number, lowered.origin[row])
        if meta is not None:
            dtypes[number] = meta.dtype
            shapes.setdefault(number, tuple(meta.shape))
    _learn_dtypes(dtypes, shapes, nodes, _floating(lowered))
    quantized_of: dict[int, int] = {}
    for number, source in codes:
        quantized_of[number] = min(source, quantized_of.get(number, source))
        dtypes[number] = torch.int8
        if source in shapes:
            shapes[number] = shapes[source]
        if source in origins:
            origins.setdefault(number, origins[source])
    return tuple(
        EClass(shapes.get(c), dtypes.get(c), c in constants, quantized_of.get(c), origins.get(c))
        for c in range(len(tables.numbers))
    )


def _floating(lowered: Lowered) -> torch.dtype:
    """The precision that the model computes in."""
    metas = (meta for meta in lowered.metas if meta is not None and meta.dim())
    return next((meta.dtype for meta in metas if meta.is_floating_point()), torch.float64)


def _learn_dtypes(
    dtypes: dict[int, torch.dtype], shapes: Mapping[int, tuple[int, ...]], nodes: Iterable[Member],
    floating: torch.dtype,
) -> None:  # fmt: skip
    """Dtypes follow from those torch reported for the model's own tensors. A number has no precision of its own,
    whatever shape it was given."""
    pending = [(c, n) for c, n in nodes if c not in dtypes]
    while pending:
        left = []
        for number, node in pending:
            operands = tuple(EClass(shapes.get(o), dtypes.get(o)) for o in node.operands)
            dtype = dtypes.get(number) or node.operator.dtype(*node.operator.join(operands, node.attributes))
            if dtype is None:
                left.append((number, node))
                continue
            numbers = bool(operands) and all(o.shape == () for o in operands)
            dtypes[number] = floating if dtype == torch.float64 and shapes.get(number) and numbers else dtype
        if len(left) == len(pending):
            if any(node.operator.shape is not None for _, node in left):
                raise EqsatError(f"no dtype follows for e-node {left[0][1]}")
            return
        pending = left


def _terms(nodes: Iterable[Member], classes: tuple[EClass, ...]) -> dict[int, ENode]:
    """For every constant class the smallest term that computes it, which rebuilding evaluates."""
    candidates = sorted((m for m in nodes if classes[m[0]].constant), key=lambda m: (m[0], m[1].sort_key))
    sizes: dict[int, int] = {}
    terms: dict[int, ENode] = {}
    changed = True
    while changed:
        changed = False
        for number, node in candidates:
            if all(o in sizes for o in node.operands):
                size = 1 + sum(sizes[o] for o in node.operands)
                if number not in sizes or size < sizes[number]:
                    sizes[number], terms[number] = size, node
                    changed = True
    return terms
