"""Sketch-guided saturation (Koehler, Trinder and Steuwer, 2021, arXiv:2111.13040): what a program has to look like on
the way, step by step, instead of which rules lead there.

    Sketches("conv2d(permute)", "conv2d(layer_norm)")

A sketch is a pattern with holes that the program must contain: `NAME(SKETCH, ...)`, or `NAME`, or `?` for anything. The
name is of a kernel's operator or of one of its steps (`linear`, `relu`), the operands are those that the kernel
reads, in their order, the first ones where there are more.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from eqsat_deploy.choices import Choices, Member
from eqsat_deploy.errors import InputError
from eqsat_deploy.freeze import Space
from eqsat_deploy.kernels import CONSTANT, QUANTIZE, ENode
from eqsat_deploy.language.pointwise import base_name
from eqsat_deploy.price import Priced
from eqsat_deploy.research.environment import Environment
from eqsat_deploy.saturate import Saturation
from eqsat_extraction import EGraph

TOKEN = re.compile(r"\s*([A-Za-z_][\w.]*|[?(),])")


class Unreached(Exception):
    """No form in the e-graph contains the sketch; `final` says that more iterations would not help."""

    def __init__(self, final: bool) -> None:
        super().__init__()
        self.final = final


@dataclass(frozen=True)
class Sketch:
    """A kernel of this name whose first operands are as the sketches say, None being a hole."""

    name: str
    operands: tuple[Sketch | None, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Sketch:
        """The sketch that `text` writes.

        Raises:
            InputError: it is none.
        """
        tokens = TOKEN.findall(text)
        if "".join(tokens) != re.sub(r"\s", "", text):
            raise InputError(f"sketch {text!r}: names, `?`, commas and parentheses are expected")
        sketch, left = _parsed([*tokens, ""], text)
        if left != [""] or sketch is None:
            raise InputError(f"sketch {text!r}: a name, with its operands in parentheses, is expected")
        return sketch

    def __str__(self) -> str:
        operands = ", ".join("?" if o is None else str(o) for o in self.operands)
        return f"{self.name}({operands})" if operands else self.name

    def matches(self, node: ENode) -> bool:
        """Whether a kernel has this name and enough operands."""
        names = {node.operator.name, node.name, *(base_name(step.function) for step in node.steps)}
        return (
            self.name in names and len(self.operands) <= len(node.children) and node.operator is not CONSTANT
        )

    def parts(self) -> Iterator[Sketch]:
        """The sketch and those in it, inner ones first."""
        for operand in self.operands:
            if operand is not None:
                yield from operand.parts()
        yield self


def _parsed(tokens: list[str], text: str) -> tuple[Sketch | None, list[str]]:
    head, *rest = tokens
    if head == "?":
        return None, rest
    if head in ("", "(", ")", ","):
        raise InputError(f"sketch {text!r}: a name or `?` is expected before {head or 'the end'!r}")
    if rest[0] != "(":
        return Sketch(head), rest
    operands: list[Sketch | None] = []
    while rest[0] in ("(", ","):
        operand, rest = _parsed(rest[1:], text)
        operands.append(operand)
    if rest[0] != ")":
        raise InputError(f"sketch {text!r}: a `)` is expected before {rest[0] or 'the end'!r}")
    return Sketch(head, tuple(operands)), rest[1:]


class Sketches:
    """A strategy: for each sketch, saturate until some form contains it, and go on from the cheapest that does."""

    def __init__(self, *sketches: str | Sketch) -> None:
        if not sketches:
            raise InputError("sketches: at least one is needed")
        self.sketches = tuple(s if isinstance(s, Sketch) else Sketch.parse(s) for s in sketches)

    def __call__(self, environment: Environment, generator: random.Random) -> None:
        """Play. The generator is not asked.

        Raises:
            InputError: a sketch is not reached; the message names it.
        """
        form = environment.lowered
        for count, sketch in enumerate(self.sketches, 1):
            found = None
            iterations = 1
            while found is None:
                try:
                    found = environment.search(
                        None, tuple(map(str, self.sketches[:count])), form, iterations=iterations,
                        restrict=partial(containing, sketch),
                        restricted=f"contains {sketch}", counts=count == len(self.sketches),
                    )  # fmt: skip
                except Unreached as unreached:
                    if unreached.final or iterations > environment.limits.budget.iterations:
                        raise InputError(
                            f"sketch {count}, {sketch}, is in no form that these rules reach from the one before it "
                            f"in {iterations} iterations"
                        ) from None
                    iterations *= 2
            form = environment.form(found)


def containing(sketch: Sketch, saturation: Saturation, space: Space, priced: Priced) -> tuple[Space, Priced]:
    """The forms that contain a sketch: every e-class once more as what matches a part of it, and as what contains it.

    A value that is needed both as it comes cheapest and as it contains the sketch is computed twice, so what is found
    is a program and its price, but may not be the cheapest. Of several outputs the first that can contain the sketch
    does.

    Raises:
        Unreached: there is none.
    """
    states = _States(sketch, space)
    root = next((r for r in space.roots if r in states.possible[states.contains]), None)
    if root is None:
        raise Unreached(saturation.stopped == "saturated")
    made = list(states.choices())
    choices = Choices.of(member for _, member in made)
    marked = {root: states.number(root, states.contains)}
    roots = tuple(marked.get(r, r) for r in space.roots)
    row_class = tuple(marked.get(c, c) for c in space.row_class)
    classes = space.classes * (states.contains + 1)
    nodes = [(number, node.children) for number, node in choices]
    egraph = EGraph.build(nodes, list(roots), len(classes), ops=[str(node) for _, node in choices])
    costs = priced.costs[np.array([index for index, _ in made])]
    return (
        replace(space, classes=classes, choices=choices, roots=roots, row_class=row_class),
        replace(priced, egraph=egraph, costs=costs),
    )


class _States:
    """What an e-class may be chosen as: state 0 as it comes, then matching each part of the sketch, last containing it.

    `possible[s]` are the e-classes that have a form in state s.
    """

    def __init__(self, sketch: Sketch, space: Space) -> None:
        self.space = space
        self.parts = list(dict.fromkeys(sketch.parts()))
        self.whole, self.contains = len(self.parts), len(self.parts) + 1
        self.possible: list[set[int]] = [set(range(len(space.classes)))]
        for part in self.parts:
            self.possible.append(set())
            self._close(len(self.possible) - 1, partial(self._matches, part))
        self.possible.append(set(self.possible[self.whole]))
        self._close(self.contains, lambda node: any(c in self.possible[self.contains] for c in node.children))

    def _close(self, state: int, holds: Callable[[ENode], bool]) -> None:
        found, size = self.possible[state], -1
        while len(found) != size:  # codes of what matches match, and what reads what contains contains
            size = len(found)
            found |= {number for number, node in self.space.choices if number not in found and holds(node)}

    def number(self, eclass: int, state: int) -> int:
        """The e-class in a state."""
        return eclass + state * len(self.space.classes)

    def choices(self) -> Iterator[tuple[int, Member]]:
        """Every choice in every state, with its index."""
        for index, (number, node) in enumerate(self.space.choices):
            yield index, (number, node)
            for state, part in enumerate(self.parts, 1):
                for read in self._matching(part, node):
                    yield index, (self.number(number, state), self._reading(node, read))
                    if state == self.whole:
                        yield index, (self.number(number, self.contains), self._reading(node, read))
            deeper = [i for i, child in enumerate(node.children) if child in self.possible[self.contains]]
            for those in dict.fromkeys([*((i,) for i in deeper), tuple(deeper)]):
                if those:
                    read = tuple(self.contains if i in those else 0 for i in range(len(node.children)))
                    yield index, (self.number(number, self.contains), self._reading(node, read))

    def _matches(self, part: Sketch, node: ENode) -> bool:
        return any(True for _ in self._matching(part, node))

    def _matching(self, part: Sketch, node: ENode) -> Iterator[tuple[int, ...]]:
        """The states in which a choice reads its operands where it matches `part`."""
        if node.operator is QUANTIZE:
            read: tuple[int, ...] = (self.parts.index(part) + 1,)
        elif part.matches(node):
            given = [0 if operand is None else self.parts.index(operand) + 1 for operand in part.operands]
            read = tuple(given) + (0,) * (len(node.children) - len(given))
        else:
            return
        if all(child in self.possible[state] for child, state in zip(node.children, read, strict=True)):
            yield read

    def _reading(self, node: ENode, states: tuple[int, ...]) -> ENode:
        """The choice on its operands in these states."""
        read = iter(map(self.number, node.children, states))
        operands = tuple(next(read) for _ in node.operands)
        steps = tuple(s if s.operand is None else s._replace(operand=next(read)) for s in node.steps)
        return replace(node, args=node.operator.join(operands, node.attributes), steps=steps)
