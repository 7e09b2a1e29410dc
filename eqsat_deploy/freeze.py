"""Freezing: the saturated e-graph as plain data, and what extraction may choose for each of its classes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from eqsat_deploy.errors import EqsatError
from eqsat_deploy.kernels import CONSTANT, QUANTIZE, ENode, Step
from eqsat_deploy.language import OPERATORS, Operator, concat_all, decode
from eqsat_deploy.lower import Lowered, Term
from eqsat_deploy.saturate import Saturation
from eqsat_deploy.tables import Frozen

Member = tuple[int, ENode]
"""An e-class, and an e-node of it."""
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
    choices: tuple[Member, ...]
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


def freeze(lowered: Lowered, saturation: Saturation) -> Space:
    """Decode the e-graph's tables. Deterministic: classes are numbered in order of the model's rows, then of rows."""
    tables = _Tables(saturation.frozen)
    row_class = tables.rows_of(lowered)
    fired = _fired(tables)
    nodes = tuple(_plain(tables))
    parts = _anchors(tables), _steps(tables)
    kernels = [*_kernels(tables, nodes, *parts), *_integer_kernels(tables, *parts)]
    classes = _classes(tables, lowered, row_class, nodes)
    leaves = [(c, ENode(CONSTANT)) for c, known in enumerate(classes) if known.constant]
    choices = [(c, n) for c, n in kernels if not classes[c].constant and c not in n.children]
    choices = sorted(dict.fromkeys([*choices, *leaves]), key=lambda member: (member[0], member[1].sort_key))
    return Space(
        classes=classes,
        nodes=nodes,
        choices=tuple(choices),
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
        return tuple(
            self.decoders.get(s, _same)(v) for s, v in zip(self.sorts(function), values, strict=True)
        )


def _same(value: Any) -> Any:
    return value


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


def _kernels(
    tables: _Tables, nodes: Iterable[Member], anchors: Anchors, steps: Epilogues
) -> Iterator[Member]:
    """What may provide an exact tensor: operators, anchors with an epilogue, INT8 kernels with a float result."""
    yield from ((number, node) for number, node in nodes if node.operator.launched)
    yield from _applications(tables, concat_all)
    for (anchor, epilogue), out in tables.rows("Run"):
        if steps[epilogue]:
            yield tables.number(out), anchors[anchor].then(steps[epilogue])
    for (value, anchor, epilogue), _ in tables.rows("integer-kernel"):
        yield tables.number(value), anchors[anchor].then(steps[epilogue])


def _integer_kernels(tables: _Tables, anchors: Anchors, steps: Epilogues) -> Iterator[Member]:
    """What may provide INT8 codes: a conversion, a kernel that writes them, an operator that hands them on."""
    for (value,), out in tables.applications("Quant"):
        yield tables.number(out), ENode(QUANTIZE, (value,))
    for (anchor, epilogue), out in tables.rows("QRun"):
        yield tables.number(out), anchors[anchor].then(steps[epilogue])
    codes = {tables.number(value): tables.number(out) for (value,), out in tables.rows("Quant")}
    for operator in OPERATORS.values():
        for args, out in tables.applications("Q" + operator.constructor):
            operands, attributes = operator.split(args)
            read = tuple(codes.get(o, o) for o in operands)  # a list is of tensors
            if operator.launched and not codes.keys() & set(read):
                yield tables.number(out), ENode(operator, operator.join(read, attributes), integer=True)


def _anchors(tables: _Tables) -> dict[Any, ENode]:
    return {
        out: ENode(operator, args, integer=integer)
        for operator in OPERATORS.values()
        for prefix, integer in (("A", False), ("I", True))
        for args, out in tables.applications(prefix + operator.constructor)
    }


def _steps(tables: _Tables) -> dict[Any, tuple[Step, ...]]:
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
    shapes = [(tables.number(value), shape) for (value,), shape in tables.rows("shape")]
    constants = [tables.number(value) for (value,), _ in tables.rows("const")]
    classes = [EClass()] * len(tables.numbers)

    def learn(number: int, **facts: Any) -> None:
        classes[number] = replace(classes[number], **facts)

    for row, number in enumerate(row_class):
        if classes[number].origin is None:
            learn(number, origin=lowered.origin[row])
    for number, shape in shapes:
        learn(number, shape=decode(shape))
    for number in constants:
        learn(number, constant=True)
    for number, meta in zip(row_class, lowered.metas, strict=True):
        if meta is not None:
            learn(number, dtype=meta.dtype)
            if classes[number].shape is None:
                learn(number, shape=tuple(meta.shape))
    _learn_dtypes(classes, nodes, _floating(lowered))
    for (value,), out in tables.rows("Quant"):
        source, number = tables.number(value), tables.number(out)
        known, codes = classes[source], classes[number]
        of = source if codes.quantized_of is None else min(source, codes.quantized_of)
        learn(
            number, quantized_of=of, shape=known.shape, dtype=torch.int8, origin=codes.origin or known.origin
        )
    return tuple(classes)


def _floating(lowered: Lowered) -> torch.dtype:
    """The precision that the model computes in."""
    metas = (meta for meta in lowered.metas if meta is not None and meta.dim())
    return next((meta.dtype for meta in metas if meta.is_floating_point()), torch.float64)


def _learn_dtypes(classes: list[EClass], nodes: Iterable[Member], floating: torch.dtype) -> None:
    """Dtypes follow from those torch reported for the model's own tensors. A number has no precision of its own,
    whatever shape it was given."""
    pending = [(c, n) for c, n in nodes if classes[c].dtype is None]
    while pending:
        left = []
        for number, node in pending:
            known = classes[number]
            operands = tuple(classes[o] for o in node.operands)
            dtype = known.dtype or node.operator.dtype(*node.operator.join(operands, node.attributes))
            numbers = bool(operands) and all(o.shape == () for o in operands)
            if dtype == torch.float64 and known.shape and numbers:
                dtype = floating
            classes[number] = replace(known, dtype=dtype)
            if dtype is None:
                left.append((number, node))
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
