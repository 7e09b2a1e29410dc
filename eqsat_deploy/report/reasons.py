"""Why a rule did not act at a node: its pattern and guards, tested one by one in the saturated e-graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as with_changed
from typing import Any

from eqsat_deploy.egraph import EGraph
from eqsat_deploy.errors import InputError, RuleError
from eqsat_deploy.freeze import Space
from eqsat_deploy.kernels import ENode
from eqsat_deploy.language import SLOTS, Operator
from eqsat_deploy.language.expressions import Call, Comparison, OneOf, StartsWith, Variable
from eqsat_deploy.report.render import to_html, to_text
from eqsat_deploy.rules import EgglogRule, select
from eqsat_deploy.rules.facts import (
    NODE,
    QUANT,
    Clause,
    Define,
    Fact,
    Match,
    Pattern,
    Row,
    ShapeOf,
    Size,
    variables,
)  # fmt: skip
from eqsat_deploy.saturate import saturated
from eqsat_deploy.search import Search
from eqsat_deploy.selection import registered_rules
from eqsat_deploy.words import shape_words
from eqsat_extraction.arguments import checked

INFIX = ("+", "-", "*", "/", "%")


@dataclass(frozen=True, repr=False)
class WhyNot:
    """What a rule asks of a node, in its own variables: what holds there, and the first thing that does not.

    `failed` is empty where everything holds: then the rule applies, and whether what it makes is chosen is a matter
    of price (see `inside`).
    """

    rule: str
    node: str
    holds: tuple[str, ...]
    failed: str
    detail: str = ""

    @property
    def applies(self) -> bool:
        """Whether the rule acts here."""
        return not self.failed

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        title = f"{self.rule} {'applies' if self.applies else 'does not apply'} at {self.node}"
        lines = [Text(f"  holds  {fact}", style="green") for fact in self.holds]
        if self.failed:
            lines.append(Text(f"  FAILS  {self.failed}", style="bold red"))
            lines += [Text(f"         {self.detail}")] if self.detail else []
        else:
            lines.append(
                Text("  what it makes shares the e-class; whether it is chosen is a matter of price")
            )
        return Group(Text(title, style="bold"), *lines)

    def __repr__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self)


@checked
def why_not(searched: Search, rule: str | EgglogRule, node: str) -> WhyNot:
    """Which part of a rule's pattern, or which guard, fails at a node.

    The rule's facts are tested one more at a time against the saturated e-graph, so a pattern that only another
    rule's result satisfies counts as satisfied. Of a rule with several directions or parts, the one that gets
    furthest is told.

    Args:
        searched: what `explore` returned.
        rule: a rule's name, or a rule.
        node: a node or module; see `Search.classes_of`.

    Raises:
        UnknownNameError: no such rule or node.
        InputError: the name stands for several rules or nodes.
    """
    (number, *others) = searched.classes_of(node)
    found = [rule] if not isinstance(rule, str) else select(registered_rules(), [rule])
    if others or len(found) != 1:
        what, several = ("node", len(others) + 1) if others else ("rule", len(found))
        raise InputError(f"{node if others else rule!r} stands for {several} {what}s: name one of them")
    space, saturation = searched.space, searched.saturation
    parts = [(root, part) for part in found[0].clauses() for root in part.roots]
    if not parts:
        raise RuleError(f"rule {found[0].name!r} has no pattern to test")
    with saturated(searched.lowered, saturation.rules, saturation.budget) as (egraph, *_):
        tests = [_Test(space, egraph, number, node, root, part) for root, part in parts]
    closest = max(tests, key=lambda test: (test.failed is None, len(test.held)))
    failed, detail = closest.explained()
    return WhyNot(found[0].name, node, tuple(closest.said()), failed, detail)


@dataclass(frozen=True)
class _Place:
    """Where a variable stands: an argument of the pattern that is matched with `reader`."""

    reader: str
    form: Pattern
    position: int

    @property
    def operator(self) -> Operator | None:
        """The operator that it is an argument of."""
        return self.form.head if isinstance(self.form.head, Operator) else None

    @property
    def argument(self) -> str:
        """What the operator calls it."""
        return self.operator.parameters[self.position][0] if self.operator else f"argument {self.position}"


class _Test:
    """One part of a rule, tested at one e-class."""

    def __init__(
        self, space: Space, egraph: EGraph, number: int, node: str, root: Variable, part: Clause
    ) -> None:
        self.space, self.number, self.node = space, number, node
        self.places: dict[str, _Place] = {}
        self.defined = {f.variable.name: f.value for f in part.facts if isinstance(f, Define)}
        self.made_up: set[str] = set()  # operands that are patterns
        flat = [fact for given in part.facts for fact in self._flat(given)]
        codes = [f.form.args[0] for f in flat if isinstance(f, Match) and f.root.name == root.name
                 and f.form.head is QUANT]  # fmt: skip
        self.root: Variable = codes[0] if codes else root
        self.held: list[Fact] = []
        self.failed: Fact | None = None
        self._run(egraph, Match(self.root, NODE(space.row_class.index(number))), flat)

    def _flat(self, fact: Fact) -> Iterator[Fact]:
        """A nested pattern as one fact per operator, outermost first."""
        if not isinstance(fact, Match):
            yield fact
            return
        waiting = deque([fact])
        while waiting:
            root, form = (match := waiting.popleft()).root, match.form
            arguments = []
            for position, argument in enumerate(form.args):
                if isinstance(argument, Pattern):
                    inner = Variable("T", f"part{len(self.places)}")
                    waiting.append(Match(inner, argument))
                    self.made_up.add(inner.name)
                    argument = inner
                arguments.append(argument)
                if isinstance(argument, Variable):
                    self.places.setdefault(argument.name, _Place(root.name, form, position))
            yield Match(root, with_changed(form, args=tuple(arguments)))

    def _run(self, egraph: EGraph, anchor: Fact, facts: list[Fact]) -> None:
        waiting, late = deque(facts), 0
        while waiting and self.failed is None:
            fact = waiting.popleft()
            try:
                holds = egraph.holds([anchor, *self.held, fact])
            except RuleError:  # a variable that a later fact binds
                late += 1
                if late > len(waiting) + 1:
                    raise
                waiting.append(fact)
                continue
            late = 0
            if holds:
                self.held.append(fact)
            else:
                self.failed = fact

    # -- words ---------------------------------------------------------------------------------------------

    def said(self) -> Iterator[str]:
        """What holds, in words; without what only names or computes something."""
        for fact in self.held:
            names_only = isinstance(fact, ShapeOf | Define)
            if not names_only or (isinstance(fact, Define) and fact.variable.name in self.places):
                yield self._sentence(fact)

    def explained(self) -> tuple[str, str]:
        """The fact that failed and what is there instead, in words; empty where all hold."""
        fact = self.failed
        if fact is None:
            return "", ""
        if isinstance(fact, Match):
            held = dict.fromkeys(n.name for c in self._classes(fact.root.name) for n in self._nodes(c))
            return self._sentence(fact), f"it is {', '.join(held) or 'nothing that a rule can see into'}"
        atoms = dict.fromkeys(v.name.removeprefix("s-") for v in variables(fact))
        if not any(self._classes(a) for a in atoms):
            atoms = dict.fromkeys([*atoms, *(v for v in self.places if self._classes(v))])
        there = [f"{self._name(a)} is {v}" for a in atoms if (v := self._value(a))]
        return self._sentence(fact), "; ".join(there)

    def _sentence(self, fact: Fact) -> str:
        match fact:
            case Match(root, form):
                return f"{self._where(root.name)} is {self._words(form)}"
            case ShapeOf(tensor):
                return f"the shape of {self._words(tensor)} is known"
            case Size(value, tensor, 0):
                return f"rank of {self._words(tensor)} == {self._words(value)}"
            case Size(value, tensor, slot):
                return f"{self._words(tensor)}.shape[{slot - SLOTS}] == {self._words(value)}"
            case Define(variable, value):
                return f"{self._name(variable.name)} == {self._words(value)}"
            case Row(relation, terms):
                return relation.words.format(*map(self._words, terms))
            case Comparison(operator, left, right):
                return f"{self._side(left)} {operator} {self._side(right)}"
            case OneOf(value, names):
                return f"{self._words(value)} in ({', '.join(names)})"
            case StartsWith(value, prefix):
                return f"{self._words(value)} starts with {prefix!r}"
        raise TypeError(f"{fact!r} is no fact")

    def _name(self, variable: str) -> str:
        """A variable in the rule's words; what a rule computes goes by its operator's name for it."""
        place = self.places.get(variable)
        if place is not None and (variable in self.made_up or variable in self.defined):
            return place.argument
        return variable

    def _where(self, variable: str) -> str:
        if variable not in self.places:
            return self.node
        place = self.places[variable]
        return f"operand {place.argument!r} of that {_called(place.form)}"

    def _words(self, value: Any) -> str:
        """A term or an expression in the notation of Python."""
        match value:
            case Variable(name=name) if name in self.defined and name not in self.places:
                return self._words(self.defined[name])
            case Variable(name=name):
                return self._name(name)
            case Call(function="item", args=(Variable(name=shape), int(slot))) if shape.startswith("s-"):
                return f"{self._name(shape.removeprefix('s-'))}.shape[{slot - SLOTS}]"
            case Call(function="item", args=(vector, position)):
                return f"{self._words(vector)}[{self._words(position)}]"
            case Call(function="shape", args=(tensor,)):
                return f"shape of {self._words(tensor)}"
            case Call(function="vec", args=items) | tuple(items):
                encoded = len(items) == SLOTS and isinstance(items[0], int) and 0 <= items[0] < SLOTS
                shown = items[SLOTS - items[0] :] if encoded else items
                return "(" + ", ".join(map(self._words, shown)) + ")"
            case Call(function=function, args=(left, right)) if function in INFIX:
                return f"{self._side(left)} {'//' if function == '/' else function} {self._side(right)}"
            case Call(function=function, args=args):
                return f"{function}({', '.join(map(self._words, args))})"
            case Pattern():
                return f"{_called(value)}({', '.join(map(self._words, value.args))})"
        return str(value)

    def _side(self, value: Any) -> str:
        inner = isinstance(value, Call) and value.function in INFIX
        return f"({self._words(value)})" if inner else self._words(value)

    # -- what is there -------------------------------------------------------------------------------------

    def _classes(self, variable: str) -> list[int]:
        """E-classes that a variable of the pattern can stand for, given the operators on the way to it."""
        if variable == self.root.name:
            return [self.number]
        place = self.places.get(variable)
        tensor = place and place.operator and place.operator.parameters[place.position][1] == "T"
        return self._arguments(variable) if tensor else []

    def _arguments(self, variable: str) -> list[Any]:
        """Operands or attributes that stand where the pattern has the variable."""
        place = self.places.get(variable)
        if place is None:
            return []
        nodes = (n for c in self._classes(place.reader) for n in self._nodes(c))
        return list(dict.fromkeys(n.args[place.position] for n in nodes if n.operator is place.operator))

    def _nodes(self, number: int) -> list[ENode]:
        return [n for c, n in self.space.nodes if c == number]

    def _value(self, variable: str) -> str:
        """Shapes of the tensors a variable can stand for, or the values of an attribute."""
        found = dict.fromkeys(
            shape_words(self.space.classes[c].shape)
            + (", constant" if self.space.classes[c].constant else "")
            for c in self._classes(variable)
        ) or dict.fromkeys(map(str, self._arguments(variable)))
        return " or ".join(found)


def _called(form: Pattern) -> str:
    return form.head.name
