"""Integer and vector expressions that are plain Python numbers in a value and typed terms in a pattern.

Shape rules, guards and computed attributes are written once with these. Given ints and tuples they compute;
given an `Expr` they are the expression that computes the same in the e-graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eqsat_deploy.errors import RuleError
from eqsat_deploy.language.shapes import SLOTS


class Guard:
    """A condition in a rule's body. It holds or not once a pattern has matched, so Python cannot branch on it."""

    def __bool__(self) -> bool:
        """Never one: a rule is compiled once, for everything that it will match.

        Raises:
            RuleError: always.
        """
        raise RuleError(
            "a guard has no truth value while its rule is compiled: instead of `if k == 1:`, `and`, `or`, `not` or "
            "`in`, return the guard in the list at the end, as in `return left, right, [k == 1]`"
        )


@dataclass(frozen=True, eq=False)
class Comparison(Guard):
    """Guard: `left` compares to `right` by `operator`, spelled as in Python."""

    operator: str
    left: Any
    right: Any


@dataclass(frozen=True, eq=False)
class OneOf(Guard):
    """Guard: a string is one of `names`."""

    value: Any
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class StartsWith(Guard):
    """Guard: a string starts with `prefix`."""

    value: Any
    prefix: str


@dataclass(frozen=True, eq=False)
class Expr:
    """A value that is known once a pattern has matched.

    Attributes:
        sort: `i64`, `f64`, `String` or `VI` (a vector of i64); of a rule's variables also a sort of e-classes.
    """

    sort: str

    def __add__(self, other: Any) -> Expr:
        return Call(self.sort, "+", (self, other))

    def __radd__(self, other: Any) -> Expr:
        return Call(self.sort, "+", (other, self))

    def __sub__(self, other: Any) -> Expr:
        return Call(self.sort, "-", (self, other))

    def __rsub__(self, other: Any) -> Expr:
        return Call(self.sort, "-", (other, self))

    def __mul__(self, other: Any) -> Expr:
        return Call(self.sort, "*", (self, other))

    def __rmul__(self, other: Any) -> Expr:
        return Call(self.sort, "*", (other, self))

    def __floordiv__(self, other: Any) -> Expr:
        return Call(self.sort, "/", (self, other))

    def __truediv__(self, other: Any) -> Expr:
        return Call(self.sort, "/", (self, other))

    def __rtruediv__(self, other: Any) -> Expr:
        return Call(self.sort, "/", (other, self))

    def __mod__(self, other: Any) -> Expr:
        return Call(self.sort, "%", (self, other))

    def __getitem__(self, index: Any) -> Expr:
        return Call("i64", "item", (self, index))

    def __eq__(self, other: object) -> Guard:  # type: ignore[override]
        return Comparison("==", self, other)

    def __ne__(self, other: object) -> Guard:  # type: ignore[override]
        return Comparison("!=", self, other)

    def __lt__(self, other: Any) -> Guard:
        return Comparison("<", self, other)

    def __le__(self, other: Any) -> Guard:
        return Comparison("<=", self, other)

    def __gt__(self, other: Any) -> Guard:
        return Comparison(">", self, other)

    def __ge__(self, other: Any) -> Guard:
        return Comparison(">=", self, other)

    __hash__ = object.__hash__


@dataclass(frozen=True, eq=False)
class Variable(Expr):
    """What a pattern binds: an attribute, a dimension, or an e-class."""

    name: str


@dataclass(frozen=True, eq=False)
class Call(Expr):
    """A function of the e-graph, applied: arithmetic, `item`, `replace`, `vec`, `gather`, `max`, `shape`, ..."""

    function: str
    args: tuple[Any, ...]


def is_symbolic(*values: Any) -> bool:
    """Whether one of these is known only once a pattern has matched."""
    return any(isinstance(v, Expr) or (isinstance(v, tuple) and is_symbolic(*v)) for v in values)


def one_of(value: Any, *names: str) -> Any:
    """Guard: a string attribute is one of these."""
    return OneOf(value, names) if isinstance(value, Expr) else value in names


def starts_with(value: Any, prefix: str) -> Any:
    """Guard: a string attribute starts so: `leaky_relu(`, whatever its constant."""
    return StartsWith(value, prefix) if isinstance(value, Expr) else value.startswith(prefix)


def vec(*items: Any) -> Any:
    """A vector of integers."""
    return Call("VI", "vec", items) if is_symbolic(*items) else tuple(int(item) for item in items)


def dims(*items: Any) -> Any:
    """The encoded shape whose dimensions are `items`."""
    return vec(len(items), *[1] * (SLOTS - 1 - len(items)), *items)


def replace(vector: Any, index: Any, item: Any) -> Any:
    """`vector` with `item` at `index`."""
    if is_symbolic(vector, index, item):
        return Call("VI", "replace", (vector, index, item))
    return (*vector[:index], int(item), *vector[index + 1 :])


def gather(vector: Any, indices: Any) -> Any:
    """`vector[i]` for every i of `indices`: a permuted shape, or two permutations composed."""
    if is_symbolic(vector, indices):
        return Call("VI", "gather", (vector, indices))
    return tuple(vector[i] for i in indices)


def _function(name: str, compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(a: Any, b: Any) -> Any:
        return Call("i64", name, (a, b)) if is_symbolic(a, b) else compute(a, b)

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
    return Call("f64", "power", (base, exponent)) if is_symbolic(base) else float(base) ** exponent
