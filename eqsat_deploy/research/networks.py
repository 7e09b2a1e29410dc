"""A priced e-graph as a networkx graph, for analysis with the tools that researchers know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eqsat_deploy.search import Search
from eqsat_deploy.words import class_name

if TYPE_CHECKING:
    import networkx


def to_networkx(found: Search) -> networkx.MultiDiGraph:
    """The priced e-graph: `("class", c)` to its forms `("node", i)`, those to what they read.

    Forms carry `op`, `cost` and `chosen`; e-classes carry `name`, `shape` (the batch as `language.BATCH`), `dtype`,
    `constant` and `root`.
    """
    graph = found.priced.egraph.to_networkx(found.priced.costs)
    for number, known in enumerate(found.space.classes):
        graph.nodes[("class", number)].update(
            name=class_name(found, number), shape=known.shape, dtype=known.dtype, constant=known.constant
        )
    chosen = set(found.solution.nodes().tolist())
    for index in range(found.priced.egraph.n_nodes):
        graph.nodes[("node", index)]["chosen"] = index in chosen
    return graph
