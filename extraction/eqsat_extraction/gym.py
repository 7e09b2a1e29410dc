"""The extraction-gym JSON format (egraph-serialize 0.3): reading, writing, and the defects of some files."""

from __future__ import annotations

import json
from math import inf, isfinite
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .arguments import checked
from .cautions import caution
from .egraph import EGraph, Floats
from .errors import EGraphError, GymFormatWarning


@checked
def load_json(path: str | Path) -> tuple[EGraph, Floats]:
    """Read an e-graph and its costs (n,) float64.

    Children are e-node identifiers of which only the e-class counts; e-classes are numbered in order of first
    appearance. Subsumed e-nodes may not be extracted, so they cost infinity. Known defects of published files
    are worked around with a `GymFormatWarning`: roots without any e-node are left out, and e-nodes with a
    child that is not in the file can never be built, so they cost infinity. Cycles are not a defect. Negative
    costs are returned as they are; extractors refuse them.

    Raises `EGraphError`, naming the file, for anything else that is not an e-graph.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        nodes, root_ids = data["nodes"], data["root_eclasses"]
        rows = [
            (
                str(node["eclass"]),
                [str(child) for child in node.get("children", ())],
                float(node.get("cost", 1.0)),
                str(node.get("op", "")),
                bool(node.get("subsumed", False)),
            )
            for node in nodes.values()
        ]
    except OSError as error:
        raise EGraphError(f"{path}: {error.strerror or error}") from error
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        raise EGraphError(f"{path}: not an extraction-gym file ({type(error).__name__}: {error})") from error
    numbers: dict[str, int] = {}
    for eclass, *_ in rows:
        numbers.setdefault(eclass, len(numbers))
    class_of = {name: numbers[row[0]] for name, row in zip(nodes, rows, strict=True)}
    missing: list[str] = []
    built: list[tuple[int, list[int]]] = []
    costs = np.empty(len(rows), dtype=np.float64)
    for i, (name, (eclass, children, cost, _, subsumed)) in enumerate(zip(nodes, rows, strict=True)):
        known = [class_of[child] for child in children if child in class_of]
        if len(known) < len(children):
            missing.append(name)
        costs[i] = inf if subsumed or len(known) < len(children) else cost
        built.append((numbers[eclass], known))
    if missing:
        _warn(path, f"{len(missing)} e-nodes, first {missing[0]!r}, have a child that is not in the file; "
                    "they are never extracted")  # fmt: skip
    roots = [numbers[str(root)] for root in root_ids if str(root) in numbers]
    absent = [str(root) for root in root_ids if str(root) not in numbers]
    if not roots:
        raise EGraphError(f"{path}: no root names an e-class with an e-node (roots: {absent or 'none'})")
    if absent:
        _warn(path, f"roots {', '.join(absent)} have no e-node; they are left out")
    if np.any(costs < 0):
        name = list(nodes)[int(np.flatnonzero(costs < 0)[0])]
        _warn(path, f"e-node {name!r} has a negative cost; extractors refuse it (shift or clip the costs)")
    egraph = EGraph.build(
        built,
        roots,
        len(numbers),
        ops=[row[3] for row in rows],
        node_ids=list(nodes),
        class_ids=list(numbers),
    )
    return egraph, costs


@checked
def dump_json(egraph: EGraph, costs: ArrayLike, path: str | Path) -> None:
    """Write an e-graph and its costs; e-nodes of infinite cost are written as subsumed, with cost 0.

    Identifiers are the e-graph's own where it has them, else `n<i>` and `c<i>`. Reading the file back gives
    the same e-graph, with its e-classes numbered in order of first appearance. Raises `EGraphError` when an
    operand's e-class or a root has no e-node, which the format cannot express.
    """
    prices = egraph.check_costs(costs)
    names = egraph.node_ids or tuple(f"n{i}" for i in range(egraph.n_nodes))
    classes = egraph.class_ids or tuple(f"c{i}" for i in range(egraph.n_classes))
    ptr, members = egraph.class_nodes
    for eclass in [*egraph.children.tolist(), *egraph.roots.tolist()]:
        if ptr[eclass] == ptr[eclass + 1]:
            raise EGraphError(f"{egraph.class_name(eclass)} has no e-node, so no file can refer to it")
    representative = [names[members[ptr[c]]] if ptr[c] < ptr[c + 1] else "" for c in range(egraph.n_classes)]
    nodes = {
        names[i]: {
            "op": egraph.ops[i] if egraph.ops else "",
            "cost": float(prices[i]) if isfinite(prices[i]) else 0.0,
            "eclass": classes[egraph.node_class[i]],
            "children": [representative[c] for c in egraph.children_of(i).tolist()],
            **({} if isfinite(prices[i]) else {"subsumed": True}),
        }
        for i in range(egraph.n_nodes)
    }
    text = json.dumps({"nodes": nodes, "root_eclasses": [classes[r] for r in egraph.roots]}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _warn(path: Path, message: str) -> None:
    caution(f"{path}: {message}", GymFormatWarning)
