"""Traces: all that happened in a run of saturation, and the same e-graph from one again."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eqsat_deploy.capture import capture
from eqsat_deploy.egraph import EGraph, loaded
from eqsat_deploy.errors import EqsatError, InputError
from eqsat_deploy.freeze import Space, freeze
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import Lowered, lower
from eqsat_deploy.price import price
from eqsat_deploy.rules import EgglogRule, select
from eqsat_deploy.saturate import SCHEDULES, Budget, Saturation, saturated
from eqsat_deploy.scheduling import TARGET, Iteration, iterate
from eqsat_deploy.search import QUICK, Limits, Model
from eqsat_deploy.selection import Rules, find_rules, registered_rules
from eqsat_deploy.targets import find_cost
from eqsat_extraction.kernel import CostModel


@dataclass(frozen=True)
class Traced:
    """One iteration: what ran, matches and seconds per clause of a rule, the e-graph's size after it; and, where they
    were asked for, the cost of the cheapest form found so far and the bound under every form there is so far.

    `dropped` iterations before it were undone.
    """

    phase: str
    rules: tuple[str, ...]
    matches: dict[str, int]
    rule_seconds: dict[str, float]
    seconds: float
    e_nodes: int
    dropped: int = 0
    incumbent: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Trace:
    """A run: what it was of, under which rules, schedule, seed, versions, on which machine, and what happened.

    `digest` is a checksum of the whole e-graph, its classes, e-nodes and kernels.
    """

    model: str
    cost_model: str
    unit: str
    rules: tuple[str, ...]
    schedule: dict[str, Any] | None
    seed: int
    stopped: str
    iterations: tuple[Traced, ...]
    e_nodes: int
    e_classes: int
    digest: str
    versions: dict[str, str]
    machine: str

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """The trace in a file that `save` wrote.

        Raises:
            InputError: there is no such file, or it is no trace.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            iterations = tuple(Traced(**{**i, "rules": tuple(i["rules"])}) for i in data.pop("iterations"))
            return cls(**{**data, "rules": tuple(data["rules"])}, iterations=iterations)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is no trace: {error}") from error

    def to_pandas(self) -> Any:
        """One row per iteration: phase, matches, seconds, e-nodes, incumbent, bound.

        Raises:
            EqsatError: pandas is not installed.
        """
        from eqsat_deploy.research.tables import frame

        rows = [
            {"iteration": n, "phase": i.phase, "matches": sum(i.matches.values()), "seconds": i.seconds,
             "e_nodes": i.e_nodes, "dropped": i.dropped, "incumbent": i.incumbent, "bound": i.bound}
            for n, i in enumerate(self.iterations, 1)
        ]  # fmt: skip
        return frame(rows)


def trace(
    model: Model, example_inputs: Any = None, *, cost: str | CostModel = "auto", rules: Rules = None,
    budget: Budget | None = None, incumbents: bool = False, limits: Limits | None = None,
) -> Trace:  # fmt: skip
    """Saturate a model and write down what happens.

    Args:
        model, example_inputs, cost, rules: as for `optimize`.
        budget: limits, and the schedule where the usual order is not to be used.
        incumbents: after every iteration of rewriting, also add the target's kernels, extract the cheapest form within
            `limits`, and forget the kernels again. Takes an extraction each.

    Raises:
        CaptureError, InputError, UnknownNameError: as `optimize` does.
    """
    cost_model, selection, budget = find_cost(cost), find_rules(rules), budget or Budget()
    limits = (limits or Limits()).within(QUICK)
    args, kwargs = example_arguments(model, example_inputs)
    lowered = lower(capture(model, args, kwargs))
    taken: list[Traced] = []

    def observe(egraph: EGraph, done: Iteration) -> None:
        found: tuple[float | None, float | None] = (None, None)
        if incumbents and not done.dropped and done.phase not in TARGET:
            found = _incumbent(egraph, lowered, selection.rules, budget, cost_model, limits)
        names = tuple(selection.rules[i].name for i in done.rules)
        taken.append(Traced(done.phase, names, done.matches, done.rule_seconds, done.seconds, egraph.size(),
                            done.dropped, *found))  # fmt: skip

    with saturated(lowered, selection.rules, budget, observe=observe) as (egraph, stopped, iterations):
        saturation = Saturation(tuple(selection.rules), egraph.frozen(), budget, stopped, 0.0, iterations)
    space = freeze(lowered, saturation)
    return Trace(
        model=type(model).__name__,
        cost_model=cost_model.name,
        unit=cost_model.unit,
        rules=tuple(rule.name for rule in selection.rules),
        schedule=budget.schedule.to_dict() if budget.schedule else None,
        seed=budget.schedule.seed if budget.schedule else 0,
        stopped=stopped,
        iterations=tuple(taken),
        e_nodes=len(space.nodes),
        e_classes=len(space.classes),
        digest=digest(space),
        versions={"eqsat-deploy": version("eqsat-deploy"), "egglog": version("egglog"), "torch": version("torch"),
                  "python": platform.python_version()},
        machine=f"{platform.machine()}, {platform.processor() or platform.system()}",
    )  # fmt: skip


def replay(
    traced: Trace, model: Model, example_inputs: Any = None, *, rules: Sequence[EgglogRule] = ()
) -> tuple[Lowered, Space]:
    """The e-graph of a trace, made again: what ran then runs now, whatever the clock says; and the lowered model.

    Args:
        traced: what `trace` or `Trace.load` returned.
        model, example_inputs: as they were.
        rules: those of the trace that are not registered.

    Raises:
        UnknownNameError: a rule of the trace is not registered, nor among `rules`.
        EqsatError: the e-graph is another one: another model, other rules, or another egglog; versions are named.
    """
    known = {
        rule.name: rule
        for rule in (*select(registered_rules(), set(traced.rules) - {r.name for r in rules}), *rules)
    }
    chosen = tuple(known[name] for name in traced.rules)
    position = {name: index for index, name in enumerate(traced.rules)}
    args, kwargs = example_arguments(model, example_inputs)
    lowered = lower(capture(model, args, kwargs))
    apart = traced.schedule is not None
    with loaded(chosen, apart=apart) as egraph:
        egraph.load(lowered)
        for step in _kept(traced.iterations):
            if apart:
                iterate(egraph, chosen, [position[name] for name in step.rules], step.phase)
            else:
                egraph.step(SCHEDULES[step.phase])
        frozen = egraph.frozen()
    space = freeze(lowered, Saturation(chosen, frozen, Budget(), traced.stopped, 0.0))
    if digest(space) != traced.digest:
        now = {name: version(name) for name in ("eqsat-deploy", "egglog", "torch")}
        changed = [
            f"{k} {traced.versions.get(k)} then, {v} now"
            for k, v in now.items()
            if traced.versions.get(k) != v
        ]
        raise EqsatError(
            f"the e-graph is another one than the trace's ({len(space.nodes)} e-nodes, then {traced.e_nodes}): "
            f"{', '.join(changed) or 'the model or the rules have changed'}"
        )
    return lowered, space


def digest(space: Space) -> str:
    """A checksum of everything in a frozen e-graph, the same on every machine."""
    found = hashlib.sha256()
    for known in space.classes:
        found.update(repr((known.shape, str(known.dtype), known.constant, known.quantized_of)).encode())
    for number, node in (*space.nodes, *space.choices):
        found.update(repr((number, node.operator.name, node.args, node.steps, node.integer)).encode())
    found.update(repr((space.row_class, space.roots)).encode())
    return found.hexdigest()


def _kept(iterations: Sequence[Traced]) -> list[Traced]:
    """The iterations that were not undone."""
    kept: list[Traced] = []
    for step in iterations:
        if step.dropped:
            del kept[-step.dropped :]
        else:
            kept.append(step)
    return kept


def _incumbent(
    egraph: EGraph,
    lowered: Lowered,
    rules: Sequence[EgglogRule],
    budget: Budget,
    cost_model: CostModel,
    limits: Limits,
) -> tuple[float, float]:
    """Cost and bound of the cheapest form that is in the e-graph now, once the target's kernels are."""
    egraph.push()
    for phase in TARGET:
        indices = [i for i, rule in enumerate(rules) if rule.phase == phase]
        for _ in range(budget.iterations if indices else 0):
            apart = budget.schedule is not None
            changed = (
                iterate(egraph, rules, indices, phase).changed if apart else egraph.step(SCHEDULES[phase])[0]
            )
            if not changed:
                break
    frozen = egraph.frozen()
    egraph.pop()
    space = freeze(lowered, Saturation(tuple(rules), frozen, budget, "", 0.0))
    priced = price(space, cost_model, batch=limits.batch)
    solution = limits.extract(priced.egraph, priced.costs)
    return solution.cost, solution.bound
