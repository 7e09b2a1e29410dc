"""Fusion or quantization before or after rewriting, and not in one e-graph with it.

First: the kernels that the target makes of the model as it came are kept, each computing what it computed; rewriting
goes on between them. Last: rewriting chooses as if there were no fused kernels, or no INT8 ones, and the target makes
its kernels of what that left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from eqsat_deploy.freeze import Space
from eqsat_deploy.kernels import QUANTIZE, ENode
from eqsat_deploy.price import Priced
from eqsat_deploy.research.environment import Environment
from eqsat_deploy.saturate import Saturation
from eqsat_deploy.schedule import Schedule
from eqsat_deploy.search import Restrict, Search

Which = Callable[[ENode], bool]


def fused(node: ENode) -> bool:
    """Whether a launch does what several operators do."""
    return bool(node.steps)


def quantized(node: ENode) -> bool:
    """Whether a kernel reads INT8."""
    return node.integer


def fusion_first(environment: Environment, generator: random.Random) -> None:
    """Fused kernels of the model as it came are kept, in whichever precision; then all families together."""
    _first(environment, fused, _without(quantized), "fusion")


def fusion_last(environment: Environment, generator: random.Random) -> None:
    """All families together by the prices of kernels that fuse nothing; what is left is fused."""
    _last(environment, fused, "fusion")


def quantization_first(environment: Environment, generator: random.Random) -> None:
    """What is INT8 in the model as it came stays the INT8 kernel that it is; then all families together."""
    _first(environment, quantized, None, "quantization")


def quantization_last(environment: Environment, generator: random.Random) -> None:
    """All families together by the prices of kernels in float; what is left is quantized."""
    _last(environment, quantized, "quantization")


def _last(environment: Environment, which: Which, name: str) -> None:
    found = environment.search(None, environment.actions, restrict=_without(which), restricted=f"without {name}",
                               counts=False)  # fmt: skip
    environment.search(Schedule(()), (*environment.actions, name), environment.form(found))


def _first(environment: Environment, which: Which, restrict: Restrict | None, name: str) -> None:
    before = environment.search(
        Schedule(()), (), restrict=restrict, restricted=name if restrict else "", counts=False
    )
    environment.search(None, (name, *environment.actions), restrict=_keeping(before, which),
                       restricted=f"{name} kept")  # fmt: skip


def _without(which: Which) -> Restrict:
    """No kernel of this kind."""

    def restrict(_: Saturation, space: Space, priced: Priced) -> tuple[Space, Priced]:
        return space, priced.without(i for i, (_, node) in enumerate(space.choices) if which(node))

    return restrict


def _keeping(before: Search, which: Which) -> Restrict:
    """The chosen kernels of this kind, and nothing else in their place.

    A kernel is known again by what it computes: its operator and steps on the same exact tensors. Where fused kernels
    are kept, one that reads or writes INT8 will do as well; where INT8 ones are, precision counts too.
    """
    chosen = [before.space.choices[i] for i in before.chosen]
    ends = {before.space.exact(number) for number, node in chosen if which(node)}
    precise = which is quantized

    def restrict(_: Saturation, space: Space, priced: Priced) -> tuple[Space, Priced]:
        now = dict(zip(before.space.row_class, space.row_class, strict=True))
        same = {number: number for number in range(len(space.classes))}
        kept: dict[int, set[Any]] = {}
        for number, node in chosen:
            exact = before.space.exact(number)
            if exact in ends and exact in now:
                kept.setdefault(now[exact], set()).add(
                    (_meaning(before.space, node, now), precise and node.integer)
                )
        members: dict[int, dict[int, bool]] = {}
        for index, (number, node) in enumerate(space.choices):
            if (exact := space.exact(number)) in kept:
                alike = (_meaning(space, node, same), precise and node.integer) in kept[exact]
                members.setdefault(number, {})[index] = alike or node.operator is QUANTIZE
        # a kernel that rewriting found to change nothing is gone
        ruled_out = [
            i for found in members.values() if any(found.values()) for i, ok in found.items() if not ok
        ]
        return space, priced.without(ruled_out)

    return restrict


def _meaning(space: Space, node: ENode, now: dict[int, int]) -> Any:
    """What a kernel computes, whatever the precision, in the numbers of the e-classes `now`."""
    read = tuple(now.get(space.exact(o), -1) for o in node.operands)
    steps = tuple(
        (s.function, s.side, None if s.operand is None else now.get(space.exact(s.operand), -1))
        for s in node.steps
    )
    return node.operator, node.operator.join(read, node.attributes), steps
