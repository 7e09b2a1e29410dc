"""What goes into an e-graph and comes out of it, as plain tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eqsat_deploy.errors import EqsatError
from eqsat_deploy.language import BY_CONSTRUCTOR
from eqsat_deploy.language.shapes import encode
from eqsat_deploy.lower import Lowered

TableRow = tuple[tuple[Any, ...], Any]


@dataclass(frozen=True)
class Frozen:
    """A snapshot of an e-graph: argument sorts, result sort and rows by function. Base values are decoded, values of
    eq-sorts are hashable handles."""

    functions: dict[str, tuple[tuple[str, ...], str, list[TableRow]]]

    def rows(self, function: str) -> list[TableRow]:
        """Arguments and result of every row of a function."""
        return self.functions[function][2] if function in self.functions else []

    def sorts(self, function: str) -> tuple[str, ...]:
        """Sorts of a function's arguments."""
        return self.functions[function][0]

    def size(self) -> int:
        """Number of e-nodes of sort T."""
        return sum(len(self.rows(name)) for name in BY_CONSTRUCTOR)


def tables_of(
    lowered: Lowered, shapes: bool
) -> tuple[dict[str, list[tuple[Any, ...]]], dict[tuple[int, ...], int]]:
    """The rows of a model by the relation that they are put into, and numbers of the vectors in them. What is known of
    every row goes along (shapes only with `shapes`): analysis would go through a deep model one operator an iteration
    to find it."""
    tables: dict[str, list[tuple[Any, ...]]] = {}
    vectors: dict[tuple[int, ...], int] = {}
    lists: dict[tuple[int, ...], int] = {}
    dynamic: set[int] = set()

    def column(value: Any) -> Any:
        match value:
            case tuple():
                return vectors.setdefault(value, len(vectors))
            case str() if "\t" in value or "\n" in value:
                raise EqsatError(f"attribute {value!r} has a tab or a newline")
            case float():
                return repr(value)
        return value

    def operand_list(rows: tuple[int, ...]) -> int:
        for length in range(len(rows) + 1):
            prefix = rows[:length]
            if prefix not in lists:
                lists[prefix] = len(lists)
                if prefix:
                    entry = (lists[prefix], lists[prefix[:-1]], prefix[-1])
                    tables.setdefault("row-Snoc", []).append(entry)
                else:
                    tables.setdefault("row-Nil", []).append((lists[prefix],))
        return lists[rows]

    for number, row in enumerate(lowered.rows):
        tables.setdefault(f"row-{row.operator.constructor}", []).append(
            (
                number,
                *(
                    operand_list(arg) if sort == "L" else column(arg)
                    for (_, sort), arg in zip(row.operator.parameters, row.args, strict=True)
                ),
            )
        )
        meta = lowered.metas[number]
        if meta is not None and (shapes or row.operator.shape is None):
            tables.setdefault("row-shape", []).append((number, column(encode(tuple(meta.shape)))))
        if meta is not None:
            tables.setdefault("row-dtype", []).append((number, str(meta.dtype).removeprefix("torch.")))
        if row.operator.name == "parameter":
            tables.setdefault("row-const", []).append((number,))
        if number in lowered.nonnegative:
            tables.setdefault("row-nonnegative", []).append((number,))
        operands, _ = row.operator.split(row.args)
        if row.operator.name in ("input", "opaque") or not dynamic.isdisjoint(operands):
            dynamic.add(number)
            tables.setdefault("row-dynamic", []).append((number,))
    return tables, vectors
