"""Integer and vector expressions that are plain Python numbers in a value and egglog text in a pattern.

Shape rules, guards and computed attributes are written once with these. Given ints and tuples they compute;
given an `Expr` they write the egglog term that computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eqsat_deploy.language.shapes import SLOTS


@dataclass(frozen=True, eq=False)
class Guard:
    """A condition in a rule's body, as an egglog fact."""

    text: str


@dataclass(frozen=True, eq=False)
class Expr:
    """An egglog expression of a base sort: `i64`, `f64`, `String` or `VI` (a vector of i64)."""

    text: str
    sort: str = "i64"

    def _binary(self, operator: str, other: Any, swap: bool = False) -> Expr:
        left, right = (literal(other), self.text) if swap else (self.text, literal(other))
        return Expr(f"({operator} {left} {right})", self.sort)

    def __add__(self, other: Any) -> Expr:
        return self._binary("+", other)

    def __radd__(self, other: Any) -> Expr:
        return self._binary("+", other, swap=True)

    def __sub__(self, other: Any) -> Expr:
        return self._binary("-", other)

    def __rsub__(self, other: Any) -> Expr:
        return self._binary("-", other, swap=True)

    def __mul__(self, other: Any) -> Expr:
        return self._binary("*", other)

    def __rmul__(self, other: Any) -> Expr:
        return self._binary("*", other, swap=True)

    def __floordiv__(self, other: Any) -> Expr:
        return self._binary("/", other)

    def __truediv__(self, other: Any) -> Expr:
        return self._binary("/", other)

    def __rtruediv__(self, other: Any) -> Expr:
        return self._binary("/", other, swap=True)

    def __mod__(self, other: Any) -> Expr:
        return self._binary("%", other)

    def __getitem__(self, index: Any) -> Expr:
        return Expr(f"(vec-get {self.text} {literal(index)})")

    def __eq__(self, other: object) -> Guard:  # type: ignore[override]
        return Guard(f"(= {self.text} {literal(other)})")

    def __ne__(self, other: object) -> Guard:  # type: ignore[override]
        return Guard(f"(!= {self.text} {literal(other)})")

    def __lt__(self, other: Any) -> Guard:
        return Guard(f"(< {self.text} {literal(other)})")

    def __le__(self, other: Any) -> Guard:
        return Guard(f"(<= {self.text} {literal(other)})")

    def __gt__(self, other: Any) -> Guard:
        return Guard(f"(> {self.text} {literal(other)})")

    def __ge__(self, other: Any) -> Guard:
        return Guard(f"(>= {self.text} {literal(other)})")

    def __hash__(self) -> int:
        return hash((self.text, self.sort))


def one_of(value: Any, *names: str) -> Any:
    """Guard: a string attribute is one of these."""
    if isinstance(value, Expr):
        return Guard(f"(set-contains (set-of {' '.join(map(literal, names))}) {value.text})")
    return value in names


def literal(value: Any) -> str:
    """The egglog text of a Python value: number, string, tuple of ints, or an expression already."""
    match value:
        case Expr():
            return value.text
        case bool():
            return str(int(value))
        case int():
            return str(value)
        case float():
            return repr(value)
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case tuple() | list():
            return f"(vec-of {' '.join(map(literal, value))})"
    raise TypeError(f"{value!r} has no egglog literal")


def vec(*items: Any) -> Any:
    """A vector of integers."""
    if any(isinstance(item, Expr) for item in items):
        return Expr(literal(items), "VI")
    return tuple(int(item) for item in items)


def dims(*items: Any) -> Any:
    """The encoded shape whose dimensions are `items`."""
    return vec(len(items), *[1] * (SLOTS - 1 - len(items)), *items)


def replace(vector: Any, index: Any, item: Any) -> Any:
    """`vector` with `item` at `index`."""
    if any(isinstance(v, Expr) for v in (vector, index, item)):
        return Expr(f"(vec-set {literal(vector)} {literal(index)} {literal(item)})", "VI")
    return (*vector[:index], int(item), *vector[index + 1 :])


def gather(vector: Any, indices: Any) -> Any:
    """`vector[i]` for every i of `indices`: a permuted shape, or two permutations composed."""
    if any(isinstance(v, Expr) for v in (vector, indices)):
        return Expr(f'(unstable-vec-map (unstable-fn "vec-get" {literal(vector)}) {literal(indices)})', "VI")
    return tuple(vector[i] for i in indices)


def _function(name: str, compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(a: Any, b: Any) -> Any:
        if isinstance(a, Expr) or isinstance(b, Expr):
            return Expr(f"({name} {literal(a)} {literal(b)})")
        return compute(a, b)

    return apply


maximum = _function("max", max)
minimum = _function("min", min)


def broadcast(a: Any, b: Any) -> Any:
    """The shape of a broadcast elementwise result."""
    return vec(*(maximum(a[i], b[i]) for i in range(SLOTS)))


def numel(shape: Any, slots: Sequence[int] = range(1, SLOTS)) -> Any:
    """Product of the dimensions in `slots` (all of them by default)."""
    product: Any = 1
    for index in slots:
        product = product * shape[index]
    return product


def power(base: Any, exponent: float) -> Any:
    """`base ** exponent` as a float."""
    if isinstance(base, Expr):
        return Expr(f"(^ (to-f64 {base.text}) {exponent!r})", "f64")
    return float(base) ** exponent
