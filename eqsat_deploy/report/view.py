"""The e-graph as data for the page that shows it: e-classes with shapes, e-nodes with prices, rules and births."""

from __future__ import annotations

import html
import json
from collections import deque
from dataclasses import dataclass, field
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from eqsat_deploy.choices import Member
from eqsat_deploy.derivation import Derivation
from eqsat_deploy.kernels import ENode
from eqsat_deploy.provenance import computed, inside_of, why_unchosen
from eqsat_deploy.search import Search
from eqsat_deploy.words import class_name, shape_words

ASSETS = files("eqsat_deploy.report") / "assets"
QUANTIZATION = "quantization"
SHOW = 'showEGraph(JSON.parse(document.getElementById("egraph-data").textContent), document.getElementById("egraph"));'


def asset(name: str) -> str:
    """The text of a file that pages carry inside them."""
    return (ASSETS / name).read_text(encoding="utf-8")


@dataclass(frozen=True, repr=False)
class View:
    """The e-graph to look into: in a notebook as it is, elsewhere as a file.

    It starts at `node` and what that is computed from, or at the last module; a small e-graph is shown whole. What it
    leaves out, it says.
    """

    search: Search
    node: str | None = None
    derivation: Derivation | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """What is shown, as JSON values; see `egraph_data`."""
        data = egraph_data(self.search, self.derivation)
        if self.node is not None:
            data["start"] = self.search.classes_of(self.node)
        return data

    def to_html(self, path: str | Path | None = None) -> str:
        """A page of its own, which needs no network; written to `path` if that is given."""
        page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>e-graph</title><style>{asset("page.css")}</style></head>
<body class="alone"><main>{section(self.to_dict())}</main></body></html>"""
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def _repr_html_(self) -> str:
        page = html.escape(self.to_html(), quote=True)
        style = "width: 100%; height: 720px; border: 1px solid #8888; border-radius: 6px"
        return f'<iframe title="e-graph" style="{style}" srcdoc="{page}"></iframe>'

    def __repr__(self) -> str:
        return f"<View of {self.search!r}: shown in a notebook, or save it with to_html(path)>"


def section(data: dict[str, Any]) -> str:
    """The e-graph view as a part of a page that has `page.css`."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return (
        f'<div id="egraph"></div><script type="application/json" id="egraph-data">{text}</script>'
        f"<script>{asset('dagre.min.js')}</script><script>{asset('egraph.js')}\n{SHOW}</script>"
    )


def egraph_data(found: Search, derivation: Derivation | None = None) -> dict[str, Any]:
    """The priced e-graph as JSON values. Constants are left out: they are there before anything runs.

    `classes` are `[number, name, shape, dtype, module, why]`: of those that are computed, `why` no form is chosen, or
    empty. `nodes` are `[class, what it computes, names of what it reads, e-classes of those that are drawn, price or
    None where there is no such kernel, chosen, INT8, rules, born]`, `rules` as positions in `rules`, `born` the
    iteration after which it was there, 0 for the model's own.

    Raises:
        EqsatError: saturation was stopped by its time limit and cannot be repeated.
    """
    derivation = derivation or Derivation(found)
    space, choice, inside = found.space, found.solution.choice, inside_of(found)
    drawn = [c for c, known in enumerate(space.classes) if not known.constant]
    names = list(dict.fromkeys([*(rule.name for rule in found.saturation.rules), QUANTIZATION]))
    position = {name: index for index, name in enumerate(names)}
    modules = _modules(found)
    first = {phase: derivation.phases.index(phase) + 1 for phase in dict.fromkeys(derivation.phases)}
    nodes = []
    for index, (number, node) in members(found):
        priced = index < len(space.choices)
        parts = computed(space, (number, node)) if priced else [(number, node)]
        rules = [
            derivation.found.saturation.rules[derivation.made[p]].name for p in parts if p in derivation.made
        ]
        born = max((derivation.born.get(p, 0) for p in parts), default=0)
        if node.steps:
            rules += [
                r.name
                for i in space.fired.get(parts[-1][0], ())
                if (r := found.saturation.rules[i]).phase == "kernels"
            ]
            born = max(born, first.get("kernels", 0))
        if node.integer or space.classes[number].quantized_of is not None:
            rules.append(QUANTIZATION)
            born = max(born, first.get("quantization", 0))
        cost = float(found.priced.costs[index]) if priced else float("inf")
        reads = [c for c in dict.fromkeys(node.children) if not space.classes[c].constant]
        nodes.append([
            number, str(node), [class_name(found, c) for c in node.children], reads,
            round(cost, 4) if isfinite(cost) else None, int(priced and choice[number] == index), int(node.integer),
            [position[name] for name in dict.fromkeys(rules)], born,
        ])  # fmt: skip
    shown = {number for number, *_ in nodes}
    classes = [
        [c, class_name(found, c), shape_words(space.classes[c].shape), _dtype(space.classes[c].dtype), modules[c],
         why_unchosen(found, c, inside)]
        for c in drawn if c in shown
    ]  # fmt: skip
    return {
        "unit": found.priced.model.unit, "classes": classes, "nodes": nodes, "rules": names,
        "phases": derivation.phases, "roots": [c for c in dict.fromkeys(space.roots) if c in shown],
    }  # fmt: skip


def members(found: Search) -> list[tuple[int, Member]]:
    """The e-nodes of `egraph_data`, in its order, each with its position among the space's choices where it is below
    their number."""
    known = enumerate(dict.fromkeys([*found.space.choices, *found.space.nodes]))
    return [(index, member) for index, member in known if not found.space.classes[member[0]].constant]


def _dtype(dtype: Any) -> str:
    return "?" if dtype is None else str(dtype).removeprefix("torch.")


def _modules(found: Search) -> list[str]:
    """The module that an e-class belongs to; of one that only rules made, that of what reads it."""
    space = found.space
    modules = [known.origin[1] if known.origin is not None else "" for known in space.classes]
    known = deque(c for c, module in enumerate(modules) if module)
    reads: dict[int, list[ENode]] = {}
    for number, node in (*space.nodes, *space.choices):
        reads.setdefault(number, []).append(node)
    while known:
        number = known.popleft()
        for node in reads.get(number, ()):
            for child in node.children:
                if not modules[child] and space.classes[child].origin is None:
                    modules[child] = modules[number]
                    known.append(child)
    return modules
