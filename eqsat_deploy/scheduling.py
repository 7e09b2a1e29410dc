"""Running a schedule on an e-graph, one iteration at a time, each of them told."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eqsat_deploy.egraph import EGraph
from eqsat_deploy.rules import EgglogRule
from eqsat_deploy.schedule import SATURATE, Schedule, Step

ANALYSIS = "(saturate analysis)"
TARGET = ("kernels", "quantization")


@dataclass(frozen=True)
class Iteration:
    """One iteration: its phase, or what a schedule's step ran; positions of the rules that ran together, none where it
    was a phase of the usual order; whether anything changed; matches and seconds per clause; and its own seconds.

    With `dropped`, nothing ran: that many iterations before were undone.
    """

    phase: str
    rules: tuple[int, ...] = ()
    changed: bool = False
    matches: dict[str, int] = field(default_factory=dict)
    rule_seconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    dropped: int = 0


Observer = Callable[[EGraph, Iteration], None]


def iterate(egraph: EGraph, rules: Sequence[EgglogRule], indices: Sequence[int], phase: str) -> Iteration:
    """Run these rules together once, after what they read of shapes and siblings is known."""
    start = time.perf_counter()
    kin = "(saturate (run kin))" if any(rules[i].phase == "merging" for i in indices) else ""
    changed, matches, seconds = egraph.step(f"(seq {ANALYSIS} {kin} (run {egraph.together(indices)}))")
    names = {rule.name for rule in rules}
    found = {k: v for k, v in matches.items() if v and k.partition("#")[0] in names}
    taken = {k: seconds[k] for k in found if k in seconds}
    return Iteration(phase, tuple(indices), changed, found, taken, time.perf_counter() - start)


class Stopped(Exception):
    """The budget of the whole run is spent; its argument says which."""


class Scheduled:
    """A schedule on its way. `iterations` has matches per clause, as saturation reports them."""

    def __init__(
        self, egraph: EGraph, rules: Sequence[EgglogRule], schedule: Schedule, limits: tuple[int, int, float],
        observe: Observer | None,
    ) -> None:  # fmt: skip
        self.egraph, self.rules, self.schedule, self.observe = egraph, rules, schedule, observe
        self.most, self.nodes, self.seconds = limits
        self.random = random.Random(schedule.seed)
        self.iterations: list[dict[str, int]] = []
        self.changes: list[bool] = []
        self.start = time.perf_counter()
        self.bans: Counter[int] = Counter()
        self.banned: dict[int, int] = {}
        self.cut = ""

    def run(self) -> str:
        """Run everything; what stopped it.

        Raises:
            UnknownNameError: a step runs what is no ruleset, rule, family or phase.
        """
        named = {i for step in self.schedule.runs() for i in self.schedule.members(step.run, self.rules)}
        stopped = "saturated"
        try:
            finished = [self._repeat(step) for step in self.schedule.steps]
            stopped = self.cut or ("saturated" if all(finished) else "schedule")
        except Stopped as stop:
            stopped = str(stop)
        for phase in TARGET:
            indices = [i for i, rule in enumerate(self.rules) if rule.phase == phase]
            if indices and not named & set(indices):
                while self._tell(iterate(self.egraph, self.rules, indices, phase)).changed:
                    continue
        return stopped

    def _repeat(self, step: Step) -> bool:
        """Whether it ended because nothing changed any more."""
        start, count = time.perf_counter(), 0
        while step.times == SATURATE or count < int(step.times):
            changed, matches = self._once(step)
            count += 1
            if not changed:
                return True
            until = step.until
            if until and (
                (until.matches is not None and matches <= until.matches)
                or (until.seconds is not None and time.perf_counter() - start > until.seconds)
                or (until.nodes is not None and self.egraph.size() > until.nodes)
            ):
                return False
        return False

    def _once(self, step: Step) -> tuple[bool, int]:
        if step.run:
            return self._together(step)
        changed, matches = False, 0
        for inner in self.schedule.drawn(step.steps, step.shuffle, self.random):
            before = len(self.iterations)
            self._repeat(inner)
            matches += sum(sum(found.values()) for found in self.iterations[before:])
            changed |= any(self.changes[before:])
        return changed, matches

    def _together(self, step: Step) -> tuple[bool, int]:
        """One iteration of a step's rules, but those that are banned; undone where one has too many matches, or where
        the e-graph outgrows the step's budget."""
        label, now = " + ".join(step.run), len(self.iterations)
        members = self.schedule.members(step.run, self.rules)
        while members:
            active = [i for i in members if self.banned.get(i, 0) <= now]
            if not active:  # nothing else is left to do until the first ban ends
                first = min(self.banned[i] for i in members)
                active = [i for i in members if self.banned[i] == first]
            undoable = bool(step.backoff or step.nodes)
            if undoable:
                self.egraph.push()
            done = self._tell(iterate(self.egraph, self.rules, active, label))
            many = self._too_many(step, done)
            if not many and not (step.nodes and self.egraph.size() > step.nodes):
                waiting = any(self.banned.get(i, 0) > now for i in members)
                return done.changed or waiting, sum(done.matches.values())
            self.egraph.pop()
            self._tell(Iteration("undone", dropped=1))
            if not many:
                self.cut = f"e-nodes: {step.nodes} ({label})"
                return False, 0
            for index in many:
                assert step.backoff is not None
                self.banned[index] = now + step.backoff.ban_length * 2 ** self.bans[index]
                self.bans[index] += 1
            if set(many) == set(active):
                return True, 0
        return False, 0

    def _too_many(self, step: Step, done: Iteration) -> list[int]:
        if step.backoff is None:
            return []
        counts: Counter[str] = Counter()
        for name, count in done.matches.items():
            counts[name.partition("#")[0]] += count
        limit = step.backoff.match_limit
        return [i for i in done.rules if counts[self.rules[i].name] > limit * 2 ** self.bans[i]]

    def _tell(self, done: Iteration) -> Iteration:
        if self.observe is not None:
            self.observe(self.egraph, done)
        if done.dropped:
            del self.iterations[-done.dropped :], self.changes[-done.dropped :]
            return done
        self.iterations.append(done.matches)
        self.changes.append(done.changed)
        if len(self.iterations) >= self.most and done.phase not in TARGET:
            raise Stopped(f"iterations: {self.most}")
        if time.perf_counter() - self.start > self.seconds and done.phase not in TARGET:
            raise Stopped(f"time: {self.seconds:g} s")
        if done.phase not in TARGET and self.egraph.size() > self.nodes:
            raise Stopped(f"e-nodes: {self.nodes}")
        return done
