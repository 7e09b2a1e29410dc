"""Rows: hash-consed operator applications, and the tables their indices point into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqsat_deploy.capture import Captured
from eqsat_deploy.language import BATCH, Operator, parameter
from eqsat_deploy.language.operator import Unsupported
from eqsat_deploy.language.shapes import MAX_RANK

UNKNOWN = "the shape of what it reads is not known before the model runs"
PER_CHANNEL = 1 << 16
"""Elements up to which the signs of a parameter are looked at."""
BESIDE = 1 << 15
"""The largest number that a size beside a multiple of the batch is told by."""


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


@dataclass(frozen=True)
class Lowered:
    """The graph as rows, and the tables their indices point into.

    `nonnegative` are rows of small parameters without a negative element.
    `origin` maps a row to the FX node it first came from: its name, and the path of the module it ran in.
    `outputs` are terms, or plain values where the model returns something that is no tensor.
    `calls` are those that stayed opaque. `nodes` counts the calls of the captured graph.
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


class Rows:
    """Interprets operators as rows; `current` is the origin that new rows get."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]] = (), calls: Iterable[Call] = ()) -> None:
        self.rows: list[Row] = []
        self.metas: list[Tensor | None] = []
        self.constants: list[bool] = []
        self.nonnegative: set[int] = set()
        self.origin: dict[int, tuple[str, str]] = {}
        self.parameters = list(parameters)
        self.calls = list(calls)
        self.current: tuple[str, str] = ("", "")
        self._seen: dict[tuple[Any, ...], Term] = {}
        self._stored: dict[Any, int] = {}
        self._called: dict[tuple[Any, ...], int] = {}
        self._computed: dict[tuple[Any, ...], Tensor] = {}

    def apply(self, operator: Operator, args: tuple[Any, ...]) -> Term:
        """A row for `operator` on terms and attributes in declaration order; torch's body gives its shape."""
        operands, attributes = operator.split(args)
        metas = [o.meta for o in operands]
        if any(m is None for m in metas):
            raise Unsupported(UNKNOWN)
        meta = self._meta(operator, metas, attributes)
        if meta.dim() > MAX_RANK:
            raise Unsupported(f"rank above {MAX_RANK}")
        if any(_beside_the_batch(d) for d in meta.shape):
            raise Unsupported(UNKNOWN)
        row = operator.join(tuple(o.row for o in operands), attributes)
        batched = any(d % BATCH == 0 for d in meta.shape if d)
        return self.add(Row(operator, row), meta, not batched and all(o.constant for o in operands))

    def _meta(self, operator: Operator, metas: Sequence[Tensor], attributes: tuple[Any, ...]) -> Tensor:
        """What an operator makes of tensors like these: asked of torch once."""
        key = (operator.name, attributes, *((m.shape, m.dtype) for m in metas))
        if key not in self._computed:
            value = operator.body(*operator.join(tuple(metas), attributes))
            self._computed[key] = torch.empty(value.shape, dtype=value.dtype, device="meta")
        return self._computed[key]

    def add(self, row: Row, meta: Tensor | None, constant: bool) -> Term:
        """The term of `row`, which is appended unless it is there already."""
        key = (row.operator.name, repr(row.args))
        if key not in self._seen:
            number = len(self.rows)
            self.rows.append(row)
            self.metas.append(meta)
            self.constants.append(constant)
            self.origin[number] = self.current
            self._seen[key] = Term(number, meta, constant)
        return self._seen[key]

    def parameter(self, name: str, tensor: Tensor) -> Term:
        """The term of a parameter, buffer or constant: one for each memory, however many names it has."""
        index = self._stored.setdefault(_storage(tensor), len(self.parameters))
        if index == len(self.parameters):
            self.parameters.append((name, tensor))
        meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        term = self.add(Row(parameter, (index,)), meta, constant=True)
        if tensor.is_floating_point() and tensor.numel() <= PER_CHANNEL and bool((tensor >= 0).all()):
            self.nonnegative.add(term.row)
        return term

    def call(self, call: Call, pure: bool) -> int:
        """The number of an opaque call; two impure ones never have the same."""
        key = (call.target, repr((call.args, call.kwargs)))
        number = self._called.get(key) if pure else None
        if number is None:
            number = self._called[key] = len(self.calls)
            self.calls.append(call)
        return number

    def forget(self, since: int) -> None:
        """Drop the rows from `since` on, which nothing reads."""
        for row in range(since, len(self.rows)):
            self._seen.popitem()  # one for every row, in their order
            self.origin.pop(row)
            self.nonnegative.discard(row)
        del self.rows[since:], self.metas[since:], self.constants[since:]

    def lowered(
        self, captured: Captured, outputs: Sequence[Any], *, nodes: int, warnings: Iterable[str] = ()
    ) -> Lowered:
        """The rows so far, as the lowering of `captured`."""
        return Lowered(
            captured, self.rows, self.metas, self.constants, self.nonnegative, self.parameters, self.calls,
            self.origin, list(outputs), list(warnings), nodes,
        )  # fmt: skip


def _beside_the_batch(size: int) -> bool:
    """Whether a size is a multiple of the batch and a number, such as what a padded batch has: none is written so."""
    return size % BATCH != 0 and size > BATCH // 2 and (size + BESIDE) % BATCH < 2 * BESIDE


def _storage(tensor: Tensor) -> Any:
    """What two names of one parameter have in common."""
    if not tensor.data_ptr():
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
