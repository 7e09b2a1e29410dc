"""Strategies: ways to choose what to rewrite with next, compared under one budget.

An action runs a family of rules once on the e-graph. What a sequence is worth is the cost of the cheapest form in the
e-graph that it leaves, once the target's kernels are in it. A strategy is a function of an `Environment` and a
random generator: it asks `environment.cost(sequence)` until that raises `Spent`, or it has nothing more to ask.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from eqsat_deploy.errors import UnknownNameError
from eqsat_deploy.research.environment import Actions, Environment
from eqsat_deploy.research.sketches import Sketches
from eqsat_deploy.research.staging import fusion_first, fusion_last, quantization_first, quantization_last
from eqsat_deploy.schedule import SATURATE, Backoff, Schedule, Step
from eqsat_deploy.selection import registered_rules

ALL_UP_TO = 720
"""Orders of six actions."""

Strategy = Callable[[Environment, random.Random], None]


def joint(environment: Environment, generator: random.Random, *, schedule: Schedule | None = None) -> None:
    """Everything saturated together; with a `schedule`, under that."""
    environment.together(schedule)


def backoff(environment: Environment, generator: random.Random) -> None:
    """Everything in one ruleset, iteration by iteration, under egg's back-off scheduler."""
    everything = Step(run=environment.actions, times=SATURATE, backoff=Backoff())
    environment.together(Schedule((everything,)))


def shuffled(environment: Environment, generator: random.Random) -> None:
    """One family after another on one e-graph, each once, in an order drawn anew until nothing changes."""
    steps = tuple(Step(run=(action,)) for action in environment.actions)
    environment.together(
        Schedule((Step(steps=steps, times=SATURATE, shuffle=True),), seed=generator.randrange(2**32))
    )


def destructive(environment: Environment, generator: random.Random) -> None:
    """One family after another, each forgetting what was not cheapest: all orders, or `ALL_UP_TO` drawn at random."""
    actions = environment.actions
    if math.factorial(len(actions)) <= ALL_UP_TO:
        orders = list(itertools.permutations(actions))
        generator.shuffle(orders)
    else:
        orders = list(dict.fromkeys(tuple(generator.sample(actions, len(actions))) for _ in range(ALL_UP_TO)))
    for order in orders:
        environment.destructively(order)


def greedy(environment: Environment, generator: random.Random) -> None:
    """The action that makes the form cheapest now, as long as one does."""
    beam(environment, generator, width=1)


def beam(environment: Environment, generator: random.Random, *, width: int = 4) -> None:
    """The `width` cheapest sequences, made longer by every action; ends where none of them got cheaper."""
    level: list[tuple[float, Actions]] = [(environment.cost(()), ())]
    while level and len(level[0][1]) < environment.effort.length:
        longer = [(*sequence, action) for _, sequence in level for action in environment.actions]
        following = sorted((environment.cost(sequence), sequence) for sequence in longer)[:width]
        if following[0][0] >= level[0][0]:
            return
        level = following


def annealing(
    environment: Environment, generator: random.Random, *, start: float = 0.1, end: float = 0.002
) -> None:
    """A sequence changed at one place at a time: what is dearer by a share d is kept with probability exp(-d / t),
    where t falls from `start` to `end` over the evaluations."""
    actions, effort = environment.actions, environment.effort
    now: list[str] = [generator.choice(actions) for _ in range(min(len(actions), effort.length))]
    cost, tries = environment.cost(now), 0
    while tries < 20 * effort.evaluations:
        tries += 1
        changed = list(now)
        place = generator.randrange(len(changed))
        match generator.choice(("replace", "swap", "insert", "remove")):
            case "replace":
                changed[place] = generator.choice(actions)
            case "swap":
                other = generator.randrange(len(changed))
                changed[place], changed[other] = changed[other], changed[place]
            case "insert" if len(changed) < effort.length:
                changed.insert(place, generator.choice(actions))
            case "remove" if len(changed) > 1:
                del changed[place]
        new = environment.cost(changed)
        heat = start * (end / start) ** min(1.0, environment.evaluations / effort.evaluations)
        if new <= cost or generator.random() < math.exp(-(new / cost - 1) / heat):
            now, cost = changed, new


@dataclass
class _Visited:
    """A node of the search tree: how often it was passed, and what came of it."""

    visits: int = 0
    reward: float = 0.0
    children: dict[str, _Visited] = field(default_factory=dict)


def mcts(
    environment: Environment, generator: random.Random, *, exploration: float = 0.5, rollout: int = 4
) -> None:
    """Monte Carlo tree search over sequences of actions (UCT, Kocsis and Szepesvari 2006): down the tree by the mean
    reward and how seldom a child was tried, one new action, up to `rollout` random ones; the reward is the share of the
    cost that was saved."""
    root, before = _Visited(), environment.cost(())
    actions, length = environment.actions, environment.effort.length
    for _ in range(20 * environment.effort.evaluations):
        path, node = [root], root
        sequence: list[str] = []
        while len(sequence) < length:
            untried = [action for action in actions if action not in node.children]
            if untried:
                action = generator.choice(untried)
                node.children[action] = _Visited()
            else:
                log, children = math.log(node.visits), node.children

                def bound(a: str, log: float = log, children: dict[str, _Visited] = children) -> float:
                    child = children[a]
                    return child.reward / child.visits + exploration * math.sqrt(log / child.visits)

                action = max(actions, key=bound)
            node = node.children[action]
            sequence.append(action)
            path.append(node)
            if untried:
                break
        drawn = [generator.choice(actions) for _ in range(min(rollout, length - len(sequence)))]
        reward = 1 - environment.cost([*sequence, *drawn]) / before if before else 0.0
        for passed in path:
            passed.visits += 1
            passed.reward += reward


STRATEGIES: dict[str, Strategy] = {
    "joint": joint, "backoff": backoff, "shuffled": shuffled, "destructive": destructive,
    "fusion-first": fusion_first, "fusion-last": fusion_last,
    "quantization-first": quantization_first, "quantization-last": quantization_last,
    "greedy": greedy, "beam": beam, "annealing": annealing, "mcts": mcts,
}  # fmt: skip
STEADY = (joint, backoff, greedy, beam, fusion_first, fusion_last, quantization_first, quantization_last)
"""Built-in strategies that find the same with every seed."""


def draws(strategy: Strategy) -> bool:
    """Whether its seed may matter."""
    function = strategy.func if isinstance(strategy, partial) else strategy
    return function not in STEADY and not isinstance(strategy, Sketches)


def find_strategies(
    wanted: str | Sequence[str] | dict[str, Strategy | Schedule] | None,
) -> dict[str, Strategy]:
    """Strategies by name: built-in ones, all when `wanted` is missing, or functions and schedules.

    Raises:
        UnknownNameError: there is none of that name, or a schedule names what is no rule.
    """
    if isinstance(wanted, dict):
        for schedule in wanted.values():
            if isinstance(schedule, Schedule):
                schedule.among((), registered_rules())
        return {
            name: partial(joint, schedule=s) if isinstance(s, Schedule) else s for name, s in wanted.items()
        }
    names = list(STRATEGIES) if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in STRATEGIES:
            raise UnknownNameError("strategy", name, STRATEGIES)
    return {name: STRATEGIES[name] for name in names}
