"""A run of `optimize` up to extraction, kept open: the e-graph, its prices and the form that won."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import fx, nn
from torch.export import ExportedProgram

from eqsat_deploy.capture import capture
from eqsat_deploy.errors import UnknownNameError
from eqsat_deploy.freeze import Space
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import Lowered, lower
from eqsat_deploy.optimizer import find_cost, find_rules, search
from eqsat_deploy.price import Priced
from eqsat_deploy.rules import EgglogRule
from eqsat_extraction import Solution
from eqsat_extraction.kernel import CostModel

if TYPE_CHECKING:
    import networkx

Model = nn.Module | fx.GraphModule | ExportedProgram


@dataclass(frozen=True, repr=False)
class Exploration:
    """What `optimize` would choose from, and what it would choose."""

    lowered: Lowered
    space: Space
    priced: Priced
    solution: Solution

    def __repr__(self) -> str:
        cost = f"{self.solution.cost:.6g} {self.priced.model.unit}"
        return f"<Exploration: {len(self.space.nodes)} e-nodes, {len(self.space.classes)} e-classes, chosen {cost}>"

    def classes_of(self, name: str) -> list[int]:
        """E-classes that `name` stands for, in order of the graph.

        `name` is a node of the exported graph (`linear`), the path of a module (`layer1.0.conv1`), for which its
        result counts, or a pattern of either with `*`, `?` and `[...]`, which may stand for several.

        Raises:
            UnknownNameError: no node and no module is called so; the message lists near misses.
        """
        results: dict[str, int] = {}
        for row, (node, path) in self.lowered.origin.items():
            results[node] = self.space.row_class[row]
            if path:
                results[path] = self.space.row_class[row]
        found = (
            [results[name]] if name in results else [c for n, c in results.items() if fnmatchcase(n, name)]
        )
        if not found:
            raise UnknownNameError("node or module", name, results)
        return list(dict.fromkeys(found))

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The priced e-graph for analysis: `("class", c)` to its forms `("node", i)`, those to what they read.

        Forms carry `op`, `cost` and `chosen`; e-classes carry `name`, `shape` (the batch as `language.BATCH`),
        `dtype`, `constant` and `root`.
        """
        from eqsat_deploy.research.eclass import class_name

        graph = self.priced.egraph.to_networkx(self.priced.costs)
        for number, known in enumerate(self.space.classes):
            graph.nodes[("class", number)].update(
                name=class_name(self.space, number),
                shape=known.shape,
                dtype=known.dtype,
                constant=known.constant,
            )
        chosen = set(self.solution.nodes().tolist())
        for index in range(self.priced.egraph.n_nodes):
            graph.nodes[("node", index)]["chosen"] = index in chosen
        return graph


def explore(
    model: Model,
    example_inputs: Any = None,
    *,
    cost: str | CostModel = "auto",
    rules: str | Iterable[str | EgglogRule] | None = None,
    dynamic_shapes: Any = None,
    **limits: Any,
) -> Exploration:
    """Run `optimize`'s stages up to extraction, with its arguments, and keep what lies between them.

    `limits` are `batch`, `budget`, `extractor`, `time_limit`, `work_limit` and `seed`.

    Raises:
        CaptureError, InputError, UnknownNameError: as `optimize` does.
    """
    lowered = lowered_model(model, example_inputs, dynamic_shapes)
    priced, solution = search(lowered, find_rules(rules), find_cost(cost), **limits)
    return Exploration(lowered, priced.space, priced, solution)


def lowered_model(model: Model, example_inputs: Any, dynamic_shapes: Any = None) -> Lowered:
    """Capture and lower."""
    args, kwargs = example_arguments(model, example_inputs)
    return lower(capture(model, args, kwargs, dynamic_shapes=dynamic_shapes))
