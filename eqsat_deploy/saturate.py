"""Saturation: rules run under a schedule and a budget until nothing changes or the budget is spent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from eqsat_deploy.egraph import EGraph, loaded
from eqsat_deploy.lower import Lowered
from eqsat_deploy.rules import EgglogRule
from eqsat_deploy.schedule import Schedule
from eqsat_deploy.scheduling import ANALYSIS, Iteration, Observer, Scheduled
from eqsat_deploy.stages import no_collection
from eqsat_deploy.tables import Frozen
from eqsat_extraction.arguments import finite, whole

SCHEDULES = {
    "rewrites": f"(seq {ANALYSIS} (saturate (seq (run demand) {ANALYSIS})) (run rewrites))",
    "merging": f"(seq {ANALYSIS} (saturate (run kin)) (run merging))",
    "kernels": f"(seq {ANALYSIS} (run kernels))",
    "quantization": "(run quantization)",
}
"""One iteration of every phase."""
CHECK_EVERY = 4


@dataclass(frozen=True)
class Budget:
    """Limits on saturation: rewrite iterations, e-nodes, seconds. Checked between iterations. With a `schedule`, rules
    run in its order instead of the usual one."""

    iterations: int = 60
    nodes: int = 200_000
    seconds: float = 30.0
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "nodes"):
            whole(name, getattr(self, name))
        finite("seconds", self.seconds)


@dataclass
class Saturation:
    """What happened: iterations, matches per rule per iteration, what stopped it, and the frozen tables."""

    rules: tuple[EgglogRule, ...]
    frozen: Frozen
    budget: Budget
    stopped: str
    seconds: float
    iterations: list[dict[str, int]] = field(default_factory=list)

    @property
    def matches(self) -> Counter[str]:
        """Matches per rule, over all iterations; a rule's directions and parts counted together."""
        total: Counter[str] = Counter()
        for iteration in self.iterations:
            for name, count in iteration.items():
                total[name.partition("#")[0]] += count
        return total


@no_collection()
def saturate(
    lowered: Lowered,
    rules: Sequence[EgglogRule],
    *,
    budget: Budget | None = None,
    shapes: bool = True,
) -> Saturation:
    """Load the rows, run the rules: rewrites and demand to a fixpoint, then merging, then kernels, then quantization.

    Merging runs after folding has reached a canonical form; over half-folded weights it explodes. Where it explodes
    all the same, it is undone. Kernel rules run last because an epilogue grows with every form that it can swallow.
    `shapes` says whether torch's are believed.
    """
    start = time.perf_counter()
    budget = budget or Budget()
    with saturated(lowered, rules, budget, shapes=shapes) as (egraph, stopped, iterations):
        frozen = egraph.frozen()
    return Saturation(tuple(rules), frozen, budget, stopped, time.perf_counter() - start, iterations)


@contextmanager
def saturated(
    lowered: Lowered,
    rules: Sequence[EgglogRule],
    budget: Budget,
    *,
    shapes: bool = True,
    observe: Observer | None = None,
) -> Iterator[tuple[EGraph, str, list[dict[str, int]]]]:
    """The saturated e-graph while it can be asked, what stopped the run, and matches per rule per iteration. `observe`
    is called after every iteration with the e-graph and what the iteration did.

    Raises:
        UnknownNameError: the budget's schedule runs what is no ruleset, rule, family or phase.
    """
    schedule = budget.schedule
    with loaded(rules, apart=schedule is not None) as egraph:
        egraph.load(lowered, shapes=shapes)
        if schedule is None:
            yield egraph, *_run(egraph, rules, budget, observe)
        else:
            limits = (budget.iterations, budget.nodes, budget.seconds)
            scheduled = Scheduled(egraph, rules, schedule, limits, observe)
            yield egraph, scheduled.run(), scheduled.iterations


def _run(
    egraph: EGraph, rules: Sequence[EgglogRule], budget: Budget, observe: Observer | None
) -> tuple[str, list[dict[str, int]]]:
    start = time.perf_counter()
    names = {r.name for r in rules}
    phases = {r.phase for r in rules}
    iterations: list[dict[str, int]] = []

    def run(phase: str, limit: int, check_every: int = CHECK_EVERY) -> str:
        for count in range(limit):
            begin = time.perf_counter()
            changed, matches, seconds = egraph.step(SCHEDULES[phase])
            found = {k: v for k, v in matches.items() if v and k.partition("#")[0] in names}
            iterations.append(found)
            if observe is not None:
                taken = {k: seconds[k] for k in found if k in seconds}
                observe(egraph, Iteration(phase, (), changed, found, taken, time.perf_counter() - begin))
            if not changed:
                return "saturated"
            if time.perf_counter() - start > budget.seconds:
                return f"time: {budget.seconds:g} s"
            due = count % check_every == check_every - 1 or sum(matches.values()) > budget.nodes / 10
            if due and egraph.size() > budget.nodes:
                return f"e-nodes: {budget.nodes}"
        return f"iterations: {limit}"

    stopped = run("rewrites", budget.iterations)
    if "merging" in phases:
        egraph.push()
        before = len(iterations)
        outcome = run("merging", budget.iterations, check_every=1)
        if outcome == "saturated":
            outcome = run("rewrites", budget.iterations)
        if egraph.size() > budget.nodes:  # many siblings on one input: all ways to merge them are too many
            egraph.pop()
            if observe is not None:
                observe(egraph, Iteration("undone", dropped=len(iterations) - before))
            outcome = f"e-nodes: {budget.nodes} (merging undone)"
        stopped = outcome if stopped == "saturated" else stopped
    for phase in ("kernels", "quantization"):
        if phase in phases:
            outcome = run(phase, budget.iterations)
            stopped = f"{outcome} ({phase})" if outcome != "saturated" and stopped == "saturated" else stopped
    return stopped, iterations
