"""Freezing: the saturated e-graph as plain data, and what extraction may choose for each of its classes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from eqsat_deploy.egraph import Frozen
from eqsat_deploy.errors import EqsatError
from eqsat_deploy.language import OPERATORS, Operator, decode
from eqsat_deploy.lower import Lowered, Term
from eqsat_deploy.saturate import Saturation

CONCAT = "concat_all"
QUANTIZE = "quantize"
CONSTANT = "constant"
UNKNOWN_SHAPE = frozenset({"opaque", "result", "input"})


@dataclass(frozen=True)
class Step:
    """One step of an epilogue: a function, and for a binary one what it reads and on which side (0: value first)."""

    function: str
    operand: int | None = None
    side: int = 0
    quantized: bool = False


@dataclass(frozen=True)
class ENode:
    """An operator application: operands are e-class numbers, in declaration order among the attributes.

    `steps` is the epilogue of a kernel. `integer` marks a kernel that reads its first operand as INT8. A concat
    kernel and an opaque call hold all their operands in one tuple.
    """

    operator: Operator | None
    kind: str
    args: tuple[Any, ...]
    steps: tuple[Step, ...] = ()
    integer: bool = False

    @cached_property
    def operands(self) -> tuple[int, ...]:
        """E-classes the anchor reads."""
        if self.kind in (CONCAT, "opaque"):
            return tuple(self.args[-1])
        if self.operator is None:
            return self.args
        return self.operator.split(self.args)[0]

    @cached_property
    def children(self) -> tuple[int, ...]:
        """E-classes the kernel reads: the anchor's operands, then the epilogue's."""
        return self.operands + tuple(s.operand for s in self.steps if s.operand is not None)

    @cached_property
    def attributes(self) -> tuple[Any, ...]:
        """The anchor's attributes."""
        if self.kind in (CONCAT, "opaque"):
            return self.args[:-1]
        return self.operator.split(self.args)[1] if self.operator is not None else ()

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """A stable order among e-nodes."""
        return (self.kind, self.integer, repr(self.args), repr(self.steps))


@dataclass
class EClass:
    """What is known of an e-class. `quantized_of` is the class that an INT8 class holds the codes of."""

    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    constant: bool = False
    quantized_of: int | None = None
    origin: tuple[str, str] | None = None


@dataclass
class Space:
    """The frozen e-graph.

    `nodes` are all plain operator applications as (e-class, e-node): the equalities. `choices` are what
    extraction may choose from: kernels, views and leaves. `original` are the e-nodes of the model as lowered,
    and `fired` says which rules acted on which class. `terms` maps a constant class to the e-node that computes it.
    """

    lowered: Lowered
    saturation: Saturation
    classes: list[EClass] = field(default_factory=list)
    nodes: list[tuple[int, ENode]] = field(default_factory=list)
    choices: list[tuple[int, ENode]] = field(default_factory=list)
    row_class: list[int] = field(default_factory=list)
    fired: dict[int, tuple[int, ...]] = field(default_factory=dict)
    terms: dict[int, ENode] = field(default_factory=dict)

    @property
    def roots(self) -> list[int]:
        """E-classes of the tensors that the model returns."""
        return [self.row_class[o.row] for o in self.lowered.outputs if isinstance(o, Term)]

    @cached_property
    def original(self) -> set[tuple[int, ENode]]:
        """E-nodes that the model came with, by class."""
        found = set()
        for number, row in enumerate(self.lowered.rows):
            if row.operator.name == "opaque":
                args: tuple[Any, ...] = (row.args[0], tuple(self.row_class[r] for r in row.args[1]))
            else:
                operands, attributes = row.operator.split(row.args)
                args = row.operator.join(tuple(self.row_class[r] for r in operands), attributes)
            found.add((self.row_class[number], ENode(row.operator, row.operator.name, args)))
        return found


def freeze(lowered: Lowered, saturation: Saturation) -> Space:
    """Decode the e-graph's tables. Deterministic: classes are numbered in order of the model's rows, then of rows."""
    return _Freezer(lowered, saturation).space


class _Freezer:
    def __init__(self, lowered: Lowered, saturation: Saturation) -> None:
        self.space = Space(lowered, saturation)
        self.frozen: Frozen = saturation.frozen
        self.numbers: dict[Any, int] = {}
        self.lists = self._lists()
        self._handles()
        self._facts()
        self._plain()
        self._dtypes()
        self._kernels()
        self._constants()
        self._sort()

    def number(self, value: Any) -> int:
        if value not in self.numbers:
            self.numbers[value] = len(self.numbers)
            self.space.classes.append(EClass())
        return self.numbers[value]

    def _handles(self) -> None:
        handles = {args[0]: out for args, out in self.frozen.rows("Node")}
        for row in range(len(self.space.lowered.rows)):
            number = self.number(handles[row])
            self.space.row_class.append(number)
            origin = self.space.lowered.origin[row]
            known = self.space.classes[number]
            known.origin = known.origin or origin

    def _facts(self) -> None:
        for (value,), shape in self.frozen.rows("shape"):
            self.space.classes[self.number(value)].shape = decode(shape)
        for (value,), _ in self.frozen.rows("const"):
            self.space.classes[self.number(value)].constant = True
        fired: dict[int, set[int]] = {}
        for (index, value), _ in self.frozen.rows("fired"):
            fired.setdefault(self.number(value), set()).add(index)
        self.space.fired = {k: tuple(sorted(v)) for k, v in sorted(fired.items())}

    def _lists(self) -> dict[Any, tuple[Any, ...]]:
        lists: dict[Any, tuple[Any, ...]] = {out: () for _, out in self.frozen.rows("Nil")}
        waiting = deque(self.frozen.rows("Snoc"))
        while waiting:
            (head, item), out = waiting.popleft()
            if head in lists:
                lists[out] = (*lists[head], item)
            else:
                waiting.append(((head, item), out))
        return lists

    def _args(self, sorts: tuple[str, ...], values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            self.number(v) if s in ("T", "Q")
            else tuple(self.number(i) for i in self.lists[v]) if s == "L"
            else v
            for s, v in zip(sorts, values, strict=True)
        )  # fmt: skip

    def _plain(self) -> None:
        for operator in OPERATORS.values():
            sorts = self.frozen.sorts(operator.constructor)
            for values, out in self.frozen.rows(operator.constructor):
                node = ENode(operator, operator.name, self._args(sorts, values))
                self.space.nodes.append((self.number(out), node))
        sorts = self.frozen.sorts("ConcatAll")
        for values, out in self.frozen.rows("ConcatAll"):
            self._choose(self.number(out), ENode(OPERATORS["concat"], CONCAT, self._args(sorts, values)))

    def _choose(self, number: int, node: ENode) -> None:
        if not self.space.classes[number].constant and number not in node.children:
            self.space.choices.append((number, node))

    def _dtypes(self) -> None:
        """Dtypes follow from those torch reported for the model's own tensors."""
        classes = self.space.classes
        for row, number in enumerate(self.space.row_class):
            meta = self.space.lowered.metas[row]
            if meta is not None:
                classes[number].dtype = meta.dtype
                if classes[number].shape is None:
                    classes[number].shape = tuple(meta.shape)
        metas = [m for m in self.space.lowered.metas if m is not None and m.dim()]
        floating = next((m.dtype for m in metas if m.is_floating_point()), torch.float64)
        pending = [(c, n) for c, n in self.space.nodes if classes[c].dtype is None]
        while pending:
            left = []
            for number, node in pending:
                known = classes[number]
                assert node.operator is not None
                known.dtype = known.dtype or node.operator.dtype(*self._known(node))
                if known.dtype == torch.float64 and known.shape and self._of_numbers(node):
                    known.dtype = (
                        floating  # a number has no precision of its own, whatever shape it was given
                    )
                if known.dtype is None:
                    left.append((number, node))
            if len(left) == len(pending) and all(n.kind in UNKNOWN_SHAPE for _, n in left):
                return
            if len(left) == len(pending):
                raise EqsatError(f"no dtype follows for e-node {left[0][1]}")
            pending = left

    def _of_numbers(self, node: ENode) -> bool:
        return bool(node.operands) and all(self.space.classes[o].shape == () for o in node.operands)

    def _known(self, node: ENode) -> tuple[Any, ...]:
        """The arguments of an e-node, its operands as what is known of their e-classes."""
        assert node.operator is not None
        if node.kind == "opaque":
            return node.args
        return node.operator.join(tuple(self.space.classes[o] for o in node.operands), node.attributes)

    # -- kernels -------------------------------------------------------------------------------------------

    def _kernels(self) -> None:
        anchors = dict(self._anchors())
        steps = self._steps()
        runs: dict[Any, list[tuple[Any, Any]]] = {out: [] for _, out in self.frozen.rows("Run")}
        for (anchor, epilogue), out in self.frozen.rows("Run"):
            runs[out].append((anchor, epilogue))
        for number, node in list(self.space.nodes):
            if node.kind == "concat":  # the kernels are the chains
                continue
            self._choose(number, node)
        for out, kernels in runs.items():
            for anchor, epilogue in kernels:
                if steps[epilogue]:
                    self._choose(self.number(out), self._kernel(anchors[anchor], steps[epilogue]))
        for (value, anchor, epilogue), _ in self.frozen.rows("integer-kernel"):
            self._choose(self.number(value), self._kernel(anchors[anchor], steps[epilogue]))
        self._quantized(anchors, steps)

    def _kernel(self, anchor: ENode, steps: tuple[Step, ...]) -> ENode:
        return ENode(anchor.operator, anchor.kind, anchor.args, steps, anchor.integer)

    def _anchors(self) -> Iterator[tuple[Any, ENode]]:
        for operator in OPERATORS.values():
            for prefix, integer in (("A", False), ("I", True)):
                for values, out in self.frozen.rows(prefix + operator.constructor):
                    args = self._args(self.frozen.sorts(prefix + operator.constructor), values)
                    yield out, ENode(operator, operator.name, args, integer=integer)

    def _steps(self) -> dict[Any, tuple[Step, ...]]:
        steps: dict[Any, tuple[Step, ...]] = {out: () for _, out in self.frozen.rows("EpNone")}
        waiting = deque(
            [(values[-1], Step(values[0]), out) for values, out in self.frozen.rows("EpUnary")]
            + [(v[-1], Step(v[0], self.number(v[2]), v[1]), out) for v, out in self.frozen.rows("EpBinary")]
            + [
                (v[-1], Step(v[0], self.number(v[2]), v[1], True), out)
                for v, out in self.frozen.rows("EpQuant")
            ]
        )
        while waiting:
            before, step, out = waiting.popleft()
            if before in steps:
                steps[out] = (*steps[before], step)
            else:
                waiting.append((before, step, out))
        return steps

    def _quantized(self, anchors: dict[Any, ENode], steps: dict[Any, tuple[Step, ...]]) -> None:
        classes = self.space.classes
        for (value,), out in self.frozen.rows("Quant"):
            source, number = self.number(value), self.number(out)
            known = classes[number]
            known.quantized_of = source if known.quantized_of is None else min(source, known.quantized_of)
            known.shape, known.dtype = classes[source].shape, torch.int8
            known.origin = known.origin or classes[source].origin
            self._choose(number, ENode(None, QUANTIZE, (source,)))
        for (anchor, epilogue), out in self.frozen.rows("QRun"):
            self._choose(self.number(out), self._kernel(anchors[anchor], steps[epilogue]))
        for operator in OPERATORS.values():
            function = "Q" + operator.constructor
            for values, out in self.frozen.rows(function):
                args = self._args(self.frozen.sorts(function), values)
                self._choose(self.number(out), ENode(operator, operator.name, args, integer=True))

    # -- constants -----------------------------------------------------------------------------------------

    def _constants(self) -> None:
        """A constant class is one free leaf; the smallest term that computes it is what rebuild evaluates."""
        sizes: dict[int, int] = {}
        candidates = [(c, n) for c, n in self.space.nodes if self.space.classes[c].constant]
        candidates.sort(key=lambda pair: (pair[0], pair[1].sort_key))
        changed = True
        while changed:
            changed = False
            for number, node in candidates:
                if all(o in sizes for o in node.operands):
                    size = 1 + sum(sizes[o] for o in node.operands)
                    if size < sizes.get(number, 1 << 60):
                        sizes[number], self.space.terms[number] = size, node
                        changed = True
        for number, known in enumerate(self.space.classes):
            if known.constant:
                self.space.choices.append((number, ENode(None, CONSTANT, ())))

    def _sort(self) -> None:
        unique = dict.fromkeys(self.space.choices)
        self.space.choices = sorted(unique, key=lambda pair: (pair[0], pair[1].sort_key))
