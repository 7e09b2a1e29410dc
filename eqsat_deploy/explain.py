"""Why a form was chosen: its kernels, and for one node what else could have stood there, at what price."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from eqsat_deploy.capture import capture
from eqsat_deploy.errors import UnknownNameError
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import lower
from eqsat_deploy.optimizer import find_cost, find_rules, known_extractor, launches, search
from eqsat_deploy.price import Priced, describe
from eqsat_deploy.rules import EgglogRule
from eqsat_deploy.stages import Stages
from eqsat_extraction import InfeasibleError, Solution, extract
from eqsat_extraction.kernel import CostModel

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Launch:
    """One kernel of the chosen form, or one that could provide the same tensor.

    `node` is the model's node that the tensor comes from, empty for one that only a rule made. `cost` is the
    kernel's own price, `total` that of the best form found with it: the reason for or against it, since what a
    kernel saves may be spent elsewhere. `total` is infinite where no form can use it.
    """

    node: str
    kernel: str
    cost: float
    total: float
    chosen: bool


@dataclass(frozen=True)
class Alternatives:
    """What can provide one tensor, cheapest total first, and the rules that acted on its e-class."""

    node: str
    module: str
    rules: tuple[str, ...]
    launches: tuple[Launch, ...]
    left_out: int
    unit: str

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        lines = [f"{self.node} in {self.module or 'the model itself'}"]
        lines += [f"rules that acted on it: {', '.join(self.rules) or 'none'}"]
        if not any(launch.chosen for launch in self.launches):
            lines += ["the chosen form never writes this tensor: a later kernel computes it on the way"]
        table = Table("", "kernel")
        table.add_column(self.unit, justify="right")
        table.add_column("whole form", justify="right")
        for launch in self.launches:
            total = f"{launch.total:,.2f}" if isfinite(launch.total) else "impossible"
            table.add_row("chosen" if launch.chosen else "", launch.kernel, f"{launch.cost:,.2f}", total)
        if self.left_out:
            lines += [f"{self.left_out} more are left out, each with a dearer kernel of its own"]
        return Group(*map(Text, lines), table)


@dataclass(frozen=True)
class Explanation:
    """A choice, and the priced e-graph it was made in."""

    priced: Priced
    solution: Solution

    def launches(self) -> list[Launch]:
        """Kernels of the chosen form, in order of execution."""
        total = self.solution.cost
        return [
            Launch(self._node(number), describe(node), float(self.priced.costs[index]), total, True)
            for index in launches(self.priced, self.solution)
            for number, node in [self.priced.space.choices[index]]
        ]

    def alternatives(self, name: str, *, limit: int = 30) -> Alternatives:
        """What could provide the tensor of the model's node or module called `name`, as float and as INT8.

        At most `limit` choices are priced by extracting with them forced, cheapest kernels first.

        Raises:
            UnknownNameError: the captured model has no such node or module; the message lists near misses.
        """
        space = self.priced.space
        rows = [row for row, origin in space.lowered.origin.items() if name in origin]
        if not rows:
            known = {part for origin in space.lowered.origin.values() for part in origin if part}
            raise UnknownNameError("node or module", name, known)
        row = rows[-1]  # of a module, its last node makes its output
        exact = space.row_class[row]
        numbers = {exact, *(c for c, known in enumerate(space.classes) if known.quantized_of == exact)}
        candidates = [i for i, (number, _) in enumerate(space.choices) if number in numbers]
        candidates = [i for i in candidates if isfinite(self.priced.costs[i])]
        chosen = set(self.solution.nodes().tolist())
        candidates.sort(key=lambda i: (i not in chosen, self.priced.costs[i], i))
        found = [
            Launch(
                self._node(space.choices[i][0]), describe(space.choices[i][1]), float(self.priced.costs[i]),
                self.solution.cost if i in chosen else self._forced(i), i in chosen,
            )
            for i in candidates[:limit]
        ]  # fmt: skip
        found.sort(key=lambda f: (f.total, not f.chosen, f.kernel))
        node, module = space.lowered.origin[row]
        fired = {index for number in numbers for index in space.fired.get(number, ())}
        rules = tuple(space.saturation.rules[index].name for index in sorted(fired))
        left_out = max(0, len(candidates) - limit)
        return Alternatives(node, module, rules, tuple(found), left_out, self.priced.model.unit)

    def to_dict(self) -> dict[str, Any]:
        """Kernels and cost as JSON values."""
        return {"cost": self.solution.cost, "bound": self.solution.bound, "unit": self.priced.model.unit,
                "kernels": [asdict(launch) for launch in self.launches()]}  # fmt: skip

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        unit = self.priced.model.unit
        table = Table("tensor of", "kernel", title="chosen kernels, in order", title_justify="left")
        table.add_column(unit, justify="right")
        for launch in self.launches():
            table.add_row(launch.node, launch.kernel, f"{launch.cost:,.2f}")
        yield table

    def _node(self, number: int) -> str:
        origin = self.priced.space.classes[number].origin
        return origin[0] if origin is not None else ""

    def _forced(self, index: int) -> float:
        """Predicted cost of the best form found in which the e-class of choice `index` is provided by it."""
        costs = self.priced.costs.copy()
        costs[self.priced.egraph.node_class == self.priced.egraph.node_class[index]] = inf
        costs[index] = self.priced.costs[index]
        try:
            return extract(self.priced.egraph, costs, extractor="greedy", time_limit=None).cost
        except InfeasibleError:
            return inf


def explain(
    model: Any,
    example_inputs: Any = None,
    *,
    cost: str | CostModel = "auto",
    rules: str | Iterable[str | EgglogRule] | None = None,
    extractor: str = "auto",
    time_limit: float | None = 5.0,
    batch: int = 1,
) -> Explanation:
    """The choice that `optimize` makes, with the e-graph it makes it in; arguments and errors as there."""
    stages = Stages()
    cost_model, chosen_rules = find_cost(cost), find_rules(rules)
    known_extractor(extractor)
    with stages("capture"):
        args, kwargs = example_arguments(model, example_inputs)
        captured = capture(model, args, kwargs)
    lowered = lower(captured)
    with stages("search"):
        priced, solution = search(
            lowered, chosen_rules, cost_model, batch=batch, extractor=extractor, time_limit=time_limit
        )
    return Explanation(priced, solution)
