"""From the terms that a rule's function returns to the facts and actions of the e-graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eqsat_deploy.errors import RuleError
from eqsat_deploy.language.expressions import Call, Comparison, Expr, Guard, Variable, is_symbolic
from eqsat_deploy.language.shapes import SLOTS
from eqsat_deploy.rules.domains import Extent, Tensor
from eqsat_deploy.rules.facts import (
    Action,
    Clause,
    Define,
    Fact,
    Fired,
    Match,
    Pattern,
    Row,
    ShapeOf,
    Size,
    Union,
    root,
    structure,
    variables,
)  # fmt: skip


def clause(
    name: str,
    pairs: Sequence[tuple[Any, Any]],
    guards: Sequence[Guard],
    tensors: Mapping[str, Tensor],
    known: Mapping[str, Variable],
) -> Clause:
    """Where every left side is found and every guard holds, it is equal to its right side.

    Args:
        name: what the e-graph reports it by.
        pairs: left and right sides.
        guards: conditions besides the shapes of `tensors`.
        tensors: tensor arguments by name.
        known: the rule's arguments and dimensions, as variables.

    Raises:
        RuleError: an argument occurs nowhere on the left.
    """
    return _Compiler(tensors, known).compile(name, pairs, guards)


def _stage(fact: Fact) -> int:
    """Tables, then sizes, then what is computed from them: egglog 13.2 panics on some other orders."""
    return 0 if isinstance(fact, Match | ShapeOf | Row) else 1 if isinstance(fact, Size) else 2


class _Compiler:
    def __init__(self, tensors: Mapping[str, Tensor], known: Mapping[str, Variable]) -> None:
        self.tensors, self.known = tensors, known
        self.plain = {e.name for t in tensors.values() if t.matched for e in t.extents or ()}
        self.facts: dict[Any, Fact] = {}
        self.computed: dict[Any, Variable] = {}

    def compile(self, name: str, pairs: Sequence[tuple[Any, Any]], guards: Sequence[Guard]) -> Clause:
        actions: list[Action] = []
        roots = [root(position) for position in range(len(pairs))]
        for result, (left, _) in zip(roots, pairs, strict=True):
            self._add(Match(result, self._bound(left)))
        for tensor, domain in self.tensors.items():
            if domain.matched:
                self._add_shape(Variable("T", tensor), domain)
        for guard in guards:
            self._add(guard)
        for result, (_, right) in zip(roots, pairs, strict=True):
            actions += [Union(result, self._bound(right)), Fired(result)]
        found = {v.name for fact in self.facts.values() for v in variables(fact)}
        for argument in self.known:
            if argument not in found:
                raise RuleError(f"rule {name!r}: argument {argument!r} does not occur in its pattern")
        return Clause(name, tuple(sorted(self.facts.values(), key=_stage)), tuple(actions))

    def _add(self, fact: Fact) -> None:
        self.facts.setdefault(structure(fact), fact)

    def _bound(self, term: Any) -> Any:
        """A term whose attributes are literals and variables: the others are computed among the facts, where failing
        means no match."""
        if isinstance(term, Pattern):
            return Pattern(term.head, tuple(map(self._bound, term.args)))
        if isinstance(term, Variable) or not isinstance(term, Expr | tuple):
            return term
        key = structure(term)
        if key not in self.computed:
            self.computed[key] = Variable(getattr(term, "sort", "VI"), f"v-{len(self.computed)}")
            self._add(Define(self.computed[key], term))
        return self.computed[key]

    def _add_shape(self, tensor: Variable, domain: Tensor) -> None:
        extents = domain.extents or ()
        shape = ShapeOf(tensor)
        self._add(shape)
        if not domain.prefix:
            self._add(Size(len(extents), tensor, 0))
        if domain.prefix == "1...":
            for slot in range(1, SLOTS - len(extents)):
                self._add(Size(1, tensor, slot))
        for position, extent in enumerate(reversed(extents)):
            slot = SLOTS - 1 - position
            if extent.multiple is None or extent.multiple[1] in self.plain:
                self._add_size(extent, tensor, slot, position)
            else:
                factor, dimension = extent.multiple
                size = Call("i64", "item", (shape.variable, slot))
                self._add(Comparison("==", Variable("i64", dimension), Call("i64", "/", (size, factor))))
                self._add(Comparison("==", 0, Call("i64", "%", (size, factor))))

    def _add_size(self, extent: Extent, tensor: Variable, slot: int, position: int) -> None:
        value = extent.value({n: self.known.get(n, Variable("i64", n)) for n in extent.names})
        if not isinstance(value, Variable) and is_symbolic(value):
            computed = Variable("i64", f"{tensor.name}-{position}")
            self._add(Define(computed, value))  # egglog 13.2 panics where two computed values are equated
            value = computed
        self._add(Size(value, tensor, slot))
