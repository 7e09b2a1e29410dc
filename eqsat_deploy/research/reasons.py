"""Why a rule did not act at a node: its pattern and guards, tested one by one in the saturated e-graph."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eqsat_deploy.egraph import EGraph
from eqsat_deploy.errors import InputError, RuleError
from eqsat_deploy.kernels import ENode
from eqsat_deploy.language import BY_CONSTRUCTOR, SLOTS
from eqsat_deploy.report.render import to_html, to_text
from eqsat_deploy.rules import EgglogRule, select
from eqsat_deploy.saturate import saturated
from eqsat_deploy.search import Search
from eqsat_deploy.selection import registered_rules
from eqsat_deploy.words import shape_words

Expression = str | list[Any]
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+')
_MADE_UP = re.compile(r"v\d+|part\d+")  # attributes that a rule computes, and operands that are patterns
_DEFINED = re.compile(r"v\d+|s_\w+|\w+_\d+")
_INFIX = {"=": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "+": "+", "-": "-", "*": "*",
          "/": "//", "%": "%", "^": "**"}  # fmt: skip


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


def why_not(searched: Search, rule: str | EgglogRule, node: str) -> WhyNot:
    """Which part of a rule's pattern, or which guard, fails at a node.

    The rule's facts are tested one more at a time against the saturated e-graph, so a pattern that only another
    rule's result satisfies counts as satisfied. Of a rule with several directions or parts, the one that gets
    furthest is told.

    Args:
        searched: what `explore` returned.
        rule: a rule's name, or a rule.
        node: a node or module; see `Exploration.classes_of`.

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
    bodies = list(_bodies(found[0].text(0)))
    if not bodies:
        raise RuleError(f"rule {found[0].name!r} has no pattern to test")
    with saturated(searched.lowered, saturation.rules, saturation.budget) as (egraph, *_):
        tests = [_Test(space, egraph, number, node, body) for body in bodies]
    closest = max(tests, key=lambda test: (not test.failed, len(test.held)))
    failed, detail = closest.explained()
    return WhyNot(found[0].name, node, tuple(closest.said()), failed, detail)


def _bodies(text: str) -> Iterator[tuple[str, list[Any]]]:
    """The rules of an egglog program: every variable that a rule merges something with, and the rule's facts."""
    for command in _parse(text):
        if command[0] == "rule":
            facts, actions = command[1], command[2]
            roots = [a[1] for a in actions if a[0] in ("union", "integer-kernel") and isinstance(a[1], str)]
            yield from ((root, facts) for root in dict.fromkeys(roots))


def _parse(text: str) -> list[Any]:
    stack: list[list[Any]] = [[]]
    for token in _TOKEN.findall(text):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    return stack[0]


def _text(expression: Expression) -> str:
    return expression if isinstance(expression, str) else f"({' '.join(map(_text, expression))})"


class _Test:
    """One rule body, tested at one e-class."""

    def __init__(
        self, space: Any, egraph: EGraph, number: int, node: str, body: tuple[str, list[Any]]
    ) -> None:
        root, facts = body
        self.space, self.number, self.node = space, number, node
        self.places: dict[str, tuple[str, str, int]] = {}  # variable -> reader, its constructor, position
        flat = [part for fact in facts for part in self._flat(fact)]
        codes = [f[2][1] for f in flat if f[:2] == ["=", root] and f[2][0] == "Quant"]
        self.root = codes[0] if codes else root
        self.held: list[Expression] = []
        self.failed: Expression = ""
        self._run(egraph, f"(= {self.root} (Node {space.row_class.index(number)}))", flat)

    def _flat(self, fact: Any) -> Iterator[Any]:
        """A nested pattern as one fact per operator, outermost first."""
        if not _is_pattern(fact):
            yield fact
            return
        waiting = deque([(fact[1], fact[2])])
        while waiting:
            variable, (constructor, *arguments) = waiting.popleft()
            flat = []
            for position, argument in enumerate(arguments):
                if isinstance(argument, list):
                    inner = f"part{len(self.places)}"
                    waiting.append((inner, argument))
                    argument = inner
                flat.append(argument)
                self.places.setdefault(argument, (variable, constructor, position))
            yield ["=", variable, [constructor, *flat]]

    def _run(self, egraph: EGraph, anchor: str, facts: list[Any]) -> None:
        waiting, late = deque(facts), 0
        while waiting and not self.failed:
            fact = waiting.popleft()
            try:
                holds = egraph.holds([anchor, *map(_text, self.held), _text(fact)])
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
            if not _is_definition(fact) or str(fact[1]) in self.places:
                yield self._sentence(fact)

    def explained(self) -> tuple[str, str]:
        """The fact that failed and what is there instead, in words; empty where all hold."""
        fact = self.failed
        if not fact:
            return "", ""
        if _is_pattern(fact):
            held = dict.fromkeys(n.name for c in self._classes(fact[1]) for n in self._nodes(c))
            return self._sentence(fact), f"it is {', '.join(held) or 'nothing that a rule can see into'}"
        atoms = dict.fromkeys(a.removeprefix("s_") for a in _atoms(fact))
        if not any(self._classes(a) for a in atoms):
            atoms = dict.fromkeys([*atoms, *(v for v in self.places if self._classes(v))])
        there = [f"{self._name(a)} is {v}" for a in atoms if (v := self._value(a))]
        return self._sentence(fact), "; ".join(there)

    def _sentence(self, fact: Any) -> str:
        if _is_pattern(fact):
            return f"{self._where(fact[1])} is {self._words(fact[2])}"
        return self._words(fact)

    def _name(self, variable: str) -> str:
        """A variable in the rule's words; an attribute that the rule computes goes by its operator's name for it."""
        if variable not in self.places or not _MADE_UP.fullmatch(variable):
            return variable
        _, constructor, position = self.places[variable]
        return BY_CONSTRUCTOR[constructor].parameters[position][0]

    def _where(self, variable: str) -> str:
        if variable not in self.places:
            return self.node
        _, constructor, position = self.places[variable]
        operator = BY_CONSTRUCTOR[constructor]
        return f"operand {operator.parameters[position][0]!r} of that {operator.name}"

    def _words(self, expression: Expression) -> str:
        """An egglog expression in the notation of Python."""
        match expression:
            case str():
                return self._name(expression)
            case ["vec-get", str(vector), str(index)] if vector.startswith("s_"):
                tensor = self._name(vector.removeprefix("s_"))
                return f"rank of {tensor}" if index == "0" else f"{tensor}.shape[{int(index) - SLOTS}]"
            case ["shape", tensor]:
                return f"shape of {self._words(tensor)}"
            case ["const", tensor]:
                return f"{self._words(tensor)} is constant"
            case ["dynamic", tensor]:
                return f"{self._words(tensor)} depends on the model's inputs"
            case ["vec-of", str(rank), *sizes] if len(sizes) == SLOTS - 1 and rank.isdigit():
                return "(" + ", ".join(self._words(s) for s in sizes[len(sizes) - int(rank) :]) + ")"
            case ["vec-of", *items]:
                return "(" + ", ".join(map(self._words, items)) + ")"
            case ["=", left, right] if (
                isinstance(left, str) and isinstance(right, list) and right[0] == "vec-get"
            ):
                return f"{self._words(right)} == {self._words(left)}"
            case [head, left, right] if head in _INFIX:
                return f"{self._side(left)} {_INFIX[head]} {self._side(right)}"
            case [head, *arguments]:
                name = BY_CONSTRUCTOR[head].name if head in BY_CONSTRUCTOR else head
                return f"{name}({', '.join(map(self._words, arguments))})"
        return _text(expression)

    def _side(self, expression: Expression) -> str:
        inner = isinstance(expression, list) and expression[0] in _INFIX
        return f"({self._words(expression)})" if inner else self._words(expression)

    # -- what is there -------------------------------------------------------------------------------------

    def _classes(self, variable: str) -> list[int]:
        """E-classes that a variable of the pattern can stand for, given the operators on the way to it."""
        if variable == self.root:
            return [self.number]
        if variable not in self.places:
            return []
        _, constructor, position = self.places[variable]
        return self._arguments(variable) if BY_CONSTRUCTOR[constructor].parameters[position][1] == "T" else []

    def _arguments(self, variable: str) -> list[Any]:
        """Operands or attributes that stand where the pattern has the variable."""
        if variable not in self.places:
            return []
        reader, constructor, position = self.places[variable]
        nodes = (n for c in self._classes(reader) for n in self._nodes(c))
        return list(
            dict.fromkeys(n.args[position] for n in nodes if n.operator is BY_CONSTRUCTOR[constructor])
        )

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


def _atoms(expression: Expression) -> Iterator[str]:
    if isinstance(expression, str):
        yield expression
    else:
        for part in expression:
            yield from _atoms(part)


def _is_pattern(fact: Any) -> bool:
    return bool(fact[0] == "=" and isinstance(fact[2], list) and fact[2][0] in BY_CONSTRUCTOR)


def _is_definition(fact: Any) -> bool:
    """Whether a fact only names a shape, a size or a value that the rule computes."""
    return bool(fact[0] == "=" and isinstance(fact[1], str) and _DEFINED.fullmatch(fact[1]))
