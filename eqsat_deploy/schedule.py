"""Schedules as data: which rules run, in which order, how often, within which limits. In Python, or as TOML:

    seed = 0

    [rulesets]
    algebra = ["folding", "movement"]       # rules, families and phases by name

    [[steps]]
    run = ["algebra"]
    times = "saturate"                      # or a number; 1 when missing
    backoff = { match_limit = 1000, ban_length = 5 }

    [[steps]]
    times = 3
    until = { nodes = 5000, seconds = 2.0, matches = 0 }
    steps = [{ run = ["demand"] }, { run = ["merging"], nodes = 20000 }]

The target's kernels and quantization follow to saturation, unless the schedule names them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from eqsat_deploy.errors import InputError, UnknownNameError
from eqsat_deploy.rules import EgglogRule
from eqsat_deploy.rules.rule import PHASES
from eqsat_extraction.arguments import seconds, whole

SATURATE = "saturate"


@dataclass(frozen=True)
class Backoff:
    """egg's: a rule with more than `match_limit` new matches in an iteration is not applied but banned for `ban_length`
    iterations; both double with every ban of the rule (Willsey et al., egg, POPL 2021)."""

    match_limit: int = 1000
    ban_length: int = 5

    def __post_init__(self) -> None:
        whole("backoff.match_limit", self.match_limit)
        whole("backoff.ban_length", self.ban_length)


@dataclass(frozen=True)
class Until:
    """Stops repeating once the e-graph has more than `nodes` e-nodes, the step has taken `seconds`, or a repetition has
    at most `matches` matches."""

    nodes: int | None = None
    seconds: float | None = None
    matches: int | None = None

    def __post_init__(self) -> None:
        seconds("until.seconds", self.seconds)
        for name, least in (("nodes", 1), ("matches", 0)):
            if getattr(self, name) is not None:
                whole(f"until.{name}", getattr(self, name), least=least)


@dataclass(frozen=True)
class Step:
    """Run rules together, or steps one after another, `times` or to saturation.

    `run` are names of rulesets, rules, families and phases. `nodes` is a budget: where the e-graph has more e-nodes
    after an iteration of this step, that iteration is undone and the step ends. `shuffle` puts `steps` in another
    order every time, drawn with the schedule's seed.
    """

    run: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    times: int | str = 1
    until: Until | None = None
    backoff: Backoff | None = None
    nodes: int | None = None
    shuffle: bool = False

    def __post_init__(self) -> None:
        if bool(self.run) == bool(self.steps):
            raise InputError("schedule: a step has either run= or steps=")
        if self.steps and (self.backoff or self.nodes):
            raise InputError("schedule: backoff= and nodes= belong to a step that runs rules")
        if self.times != SATURATE:
            whole("schedule: times", self.times)
        if self.nodes is not None:
            whole("schedule: nodes", self.nodes)


@dataclass(frozen=True)
class Schedule:
    """Steps, one after another; `rulesets` are names for what they run."""

    steps: tuple[Step, ...]
    rulesets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seed: int = 0

    @classmethod
    def sequence(cls, names: Sequence[str], *, times: int | str = 1, nodes: int | None = None) -> Schedule:
        """Run these rules or families one after another, each `times`, within a budget of e-nodes."""
        return cls(tuple(Step(run=(name,), times=times, nodes=nodes) for name in names))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """The schedule that `to_dict` wrote, or that TOML was read to.

        Raises:
            InputError: something is not as it should be; the message names it.
        """
        try:
            steps = tuple(map(_step, data.get("steps", ())))
            rulesets = {name: tuple(members) for name, members in data.get("rulesets", {}).items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"schedule: {error}") from error
        unknown = set(data) - {"steps", "rulesets", "seed"}
        if unknown or not steps:
            raise InputError(
                f"schedule: {f'{min(unknown)!r} means nothing' if unknown else 'it has no steps'}"
            )
        return cls(steps, rulesets, whole("schedule: seed", data.get("seed", 0), least=0))

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """The schedule in a TOML file.

        Raises:
            InputError: there is no such file, or it is no schedule.
        """
        import tomllib

        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, tomllib.TOMLDecodeError, InputError) as error:
            raise InputError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    def members(self, names: Sequence[str], rules: Sequence[EgglogRule]) -> tuple[int, ...]:
        """Positions of the rules that names stand for.

        Raises:
            UnknownNameError: one is neither a ruleset, a rule, a family nor a phase.
        """
        found: dict[int, None] = {}
        for name in names:
            inner = self.rulesets.get(name, (name,))
            for one in inner:
                alike = [i for i, r in enumerate(rules) if one in (r.name, r.family, r.phase)]
                if not alike and one not in PHASES:
                    known = {n for r in rules for n in (r.name, r.family, r.phase)} | set(self.rulesets)
                    raise UnknownNameError("ruleset, rule, family or phase", one, known)
                found |= dict.fromkeys(alike)
        return tuple(sorted(found))

    def among(self, rules: Sequence[EgglogRule], known: Sequence[EgglogRule]) -> Schedule:
        """The schedule where nothing but `rules` is run, of all that are `known`.

        Raises:
            UnknownNameError: a name stands for none that is known.
        """
        names = {name for step in self.runs() for one in step.run for name in self.rulesets.get(one, (one,))}
        self.members(sorted(names), known)
        missing = {name for name in names if not any(name in (r.name, r.family, r.phase) for r in rules)}
        rulesets = {key: tuple(n for n in run if n not in missing) for key, run in self.rulesets.items()}
        return replace(self, steps=tuple(_without(self.steps, missing)), rulesets=rulesets)

    def drawn(self, steps: Sequence[Step], shuffle: bool, generator: random.Random) -> Sequence[Step]:
        """Steps in the order of one repetition."""
        return generator.sample(list(steps), len(steps)) if shuffle else steps

    def runs(self) -> Iterator[Step]:
        """Every step that runs rules."""
        waiting = list(self.steps)
        while waiting:
            step = waiting.pop(0)
            waiting = [*step.steps, *waiting]
            if step.run:
                yield step


def _without(steps: Sequence[Step], names: Set[str]) -> Iterator[Step]:
    for step in steps:
        run, inner = tuple(n for n in step.run if n not in names), tuple(_without(step.steps, names))
        if run or inner:
            yield replace(step, run=run, steps=inner)


def _step(data: Mapping[str, Any]) -> Step:
    given = dict(data)
    run = given.pop("run", None) or ()
    return Step(
        run=(run,) if isinstance(run, str) else tuple(run),
        steps=tuple(map(_step, given.pop("steps", None) or ())),
        until=_part(Until, given.pop("until", None)),
        backoff=_part(Backoff, given.pop("backoff", None)),
        **given,
    )


def _part(kind: Any, data: Any) -> Any:
    return None if data is None else kind(**data)
