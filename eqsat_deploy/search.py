"""From a lowered model to the cheapest form of it: saturate, freeze, price, extract. For everybody who looks inside."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from eqsat_deploy.capture import capture
from eqsat_deploy.errors import ExtractionError, UnknownNameError
from eqsat_deploy.freeze import Space, freeze
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.kernels import ENode
from eqsat_deploy.lower import Lowered, lower
from eqsat_deploy.price import Measuring, Priced, price
from eqsat_deploy.saturate import Budget, Saturation, saturate
from eqsat_deploy.selection import Rules, Selection, find_rules
from eqsat_deploy.stages import no_collection
from eqsat_deploy.targets import find_cost
from eqsat_extraction import EGraph, InfeasibleError, Solution, extract
from eqsat_extraction.arguments import instance, seconds, whole
from eqsat_extraction.egraph import Floats
from eqsat_extraction.kernel import CostModel

Model = nn.Module | fx.GraphModule | ExportedProgram
Timer = Callable[[str], AbstractContextManager[Any]]
Restrict = Callable[[Saturation, Space, Priced], tuple[Space, Priced]]
"""What is extracted from instead: some choices ruled out, or told apart by what they are part of."""


WORK = 250_000
"""Units of work that bound an extraction where nothing else does: 3 to 12 s of a core. They are counted, not timed, so
that a busy machine chooses the form that an idle one does."""
QUICK = 50_000
"""Units that are enough for one of many extractions."""
PATIENCE = 60.0
"""Seconds after which it stops all the same."""


@dataclass(frozen=True)
class Limits:
    """What bounds a search: the batch size that is priced, saturation's budget, and the extractor with its own limits
    (seconds, units of work; `WORK` where neither is given) and seed. What does not fit is an `InputError`."""

    batch: int = 1
    budget: Budget = field(default_factory=Budget)
    extractor: str = "auto"
    time_limit: float | None = None
    work_limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        whole("batch", self.batch)
        whole("seed", self.seed, least=0)
        seconds("time_limit", self.time_limit)
        instance("budget", self.budget, Budget)
        instance("extractor", self.extractor, str)
        if self.work_limit is not None:
            whole("work_limit", self.work_limit)

    def within(self, work: int) -> Limits:
        """The same, with so many units of work where neither they nor seconds bound an extraction."""
        if self.time_limit is not None or self.work_limit is not None:
            return self
        return replace(self, time_limit=PATIENCE, work_limit=work)

    @property
    def bounds(self) -> dict[str, Any]:
        """What bounds an extraction, as keyword arguments of `eqsat_extraction`'s functions."""
        limits = self.within(WORK)
        return {"time_limit": limits.time_limit, "work_limit": limits.work_limit, "seed": limits.seed}

    def extract(self, egraph: EGraph, costs: Floats) -> Solution:
        """The cheapest solution that is found within them; raises as `eqsat_extraction.extract` does."""
        return extract(egraph, costs, extractor=self.extractor, **self.bounds)


@dataclass(frozen=True, repr=False)
class Search:
    """What there was to choose from, at which price, and what was chosen: from these rules, within these limits."""

    lowered: Lowered
    saturation: Saturation
    space: Space
    priced: Priced
    solution: Solution
    selection: Selection
    limits: Limits
    named_constants: dict[int, str] = field(
        default_factory=dict, init=False, compare=False
    )  # by `words`, once

    def __repr__(self) -> str:
        cost = f"{self.solution.cost:.6g} {self.priced.model.unit}"
        return (
            f"<Search: {len(self.space.nodes)} e-nodes, {len(self.space.classes)} e-classes, chosen {cost}>"
        )

    @property
    def chosen(self) -> list[int]:
        """Chosen choices in order of execution, as indices."""
        return list(self.solution.order(self.priced.egraph))

    @property
    def launches(self) -> list[int]:
        """Those of them that are kernel launches."""
        return [i for i in self.chosen if self.space.choices[i][1].is_launch]

    def rules_at(self, number: int) -> tuple[str, ...]:
        """Names of the rules that acted on an e-class."""
        return tuple(self.saturation.rules[i].name for i in self.space.fired.get(number, ()))

    def classes_of(self, name: str) -> list[int]:
        """E-classes that `name` stands for, in order of the graph.

        `name` is a node of the exported graph (`linear`), the path of a module (`layer1.0.conv1`), for which its
        result counts, or a pattern of either with `*`, `?` and `[...]`, which may stand for several.

        Raises:
            UnknownNameError: no node and no module is called so; the message lists near misses.
        """
        results: dict[str, int] = {}
        for row, origin in self.lowered.origin.items():
            results |= {part: self.space.row_class[row] for part in origin if part}
        matching = [c for n, c in results.items() if fnmatchcase(n, name)]
        found = [results[name]] if name in results else matching
        if not found:
            raise UnknownNameError("node or module", name, results)
        return list(dict.fromkeys(found))


def search(
    lowered: Lowered, selection: Selection, cost_model: CostModel, limits: Limits | None = None,
    timed: Timer = nullcontext, restrict: Restrict | None = None,
) -> Search:  # fmt: skip
    """The cheapest form that the rules reach, of those that `restrict` leaves; `timed` is entered with the name of
    every stage.

    Raises:
        ExtractionError: no form can be built from the kernels of the target.
    """
    limits = limits or Limits()
    with timed("saturate"):
        saturation = saturate(lowered, selection.rules, budget=limits.budget)
    with timed("freeze"):
        space = freeze(lowered, saturation)
    with timed("price"):
        priced = price(space, cost_model, batch=limits.batch)
    if isinstance(cost_model, Measuring):
        with timed("measure"):
            cost_model.measure(lowered, space, priced)
            priced = price(space, cost_model, batch=limits.batch)
    if selection.forced:
        priced = _converted(space, saturation, priced, selection.forced)
    if restrict is not None:
        space, priced = restrict(saturation, space, priced)
    with timed("extract"):
        solution = _extract(priced, limits)
    return Search(lowered, saturation, space, priced, solution, selection, limits)


def repriced(found: Search, cost_model: CostModel) -> Search:
    """The same e-graph at other prices, and the form that is cheapest by them.

    Raises:
        ExtractionError: no form can be built from kernels that have a price.
    """
    priced = price(found.space, cost_model, batch=found.limits.batch)
    if found.selection.forced:
        priced = _converted(found.space, found.saturation, priced, found.selection.forced)
    return replace(found, priced=priced, solution=_extract(priced, found.limits))


def explore(
    model: Model, example_inputs: Any = None, *, cost: str | CostModel = "auto", rules: Rules = None,
    dynamic_shapes: Any = None, **limits: Any,
) -> Search:  # fmt: skip
    """Run `optimize`'s stages up to extraction, with its arguments, and keep what lies between them.

    `limits` are those of `Limits`.

    Raises:
        CaptureError, InputError, UnknownNameError: as `optimize` does.
    """
    cost_model, selection, bounds = find_cost(cost), find_rules(rules), Limits(**limits)
    args, kwargs = example_arguments(model, example_inputs)
    lowered = lower(capture(model, args, kwargs, dynamic_shapes=dynamic_shapes))
    return search(lowered, selection, cost_model, bounds)


def exact_anchor(space: Space, node: ENode) -> ENode:
    """The plain e-node whose value a kernel's anchor stands for: INT8 operands read as the tensors they encode."""
    return ENode(node.operator, node.operator.join(tuple(map(space.exact, node.operands)), node.attributes))


def _converted(space: Space, saturation: Saturation, priced: Priced, families: tuple[str, ...]) -> Priced:
    """`priced` without the model's own e-nodes that rules of `families` found other forms for. What merely shares a
    class with one (a convolution before an identity pool) stays."""
    forced = {i for i, rule in enumerate(saturation.rules) if rule.family in families}
    heads = {head for i in forced for head in saturation.rules[i].heads}
    classes = {number for number, fired in space.fired.items() if forced & set(fired)}
    replaced = {node for number, node in space.original if number in classes and node.operator in heads}
    return priced.without(
        i for i, (_, node) in enumerate(space.choices) if exact_anchor(space, node) in replaced
    )


@no_collection()
def _extract(priced: Priced, limits: Limits) -> Solution:
    try:
        return limits.extract(priced.egraph, priced.costs)
    except InfeasibleError as error:
        raise ExtractionError(
            f"no form of this model can be built from the kernels of {priced.model.name!r}: {error}"
        ) from error
