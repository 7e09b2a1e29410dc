"""What a symbolic size would have to go through: what the rules ask of sizes, and how forms and prices vary with one.

    python -m benchmarks.symbolic_sizes --json benchmarks/results/symbolic_sizes.json

Guards are counted as the rules' clauses have them, compiled for the e-graph: each rule by the hardest thing that it
asks of any size. A transformer's block is optimized at several lengths; `form` numbers the distinct forms that were
chosen, which differ in kernels or their precision.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import eqsat_deploy as eqd
from eqsat_deploy.deployment import deployment
from eqsat_deploy.language.expressions import Call, Comparison, Variable
from eqsat_deploy.language.operator import Operator
from eqsat_deploy.rules.facts import Clause, Define, ShapeOf, Size
from eqsat_deploy.selection import registered_rules

KINDS = ("nothing", "rank", "one", "certain number", "equality", "sum", "division", "order")
"""What is asked of a size, from what a symbol answers at once to what it may not answer at all."""
LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def asked(clause: Clause) -> set[str]:
    """The kinds of what a clause asks of sizes."""
    sized = {f.variable.name for f in clause.facts if isinstance(f, ShapeOf)}
    places = Counter(
        f.value.name for f in clause.facts if isinstance(f, Size) and f.slot and isinstance(f.value, Variable)
    )
    sized |= set(places)
    for _ in clause.facts:  # what is computed from sizes, whatever the order
        sized |= {f.variable.name for f in clause.facts if isinstance(f, Define) and _reads(f.value, sized)}
    return {kind for fact in clause.facts for kind in _kinds(fact, sized, places)} or {"nothing"}


def _kinds(fact: Any, sized: set[str], places: Counter[str]) -> Iterator[str]:
    if isinstance(fact, Size):
        if not fact.slot:
            yield "rank"
        elif isinstance(fact.value, Variable):
            yield "equality" if places[fact.value.name] > 1 else "nothing"
        else:
            yield "one" if fact.value == 1 else "certain number"
    elif isinstance(fact, Comparison | Define) and _reads(fact, sized):
        calls = {call.function for call in _calls(fact)}
        if isinstance(fact, Comparison):
            yield "equality" if fact.operator in ("==", "!=") else "order"
        yield from (["sum"] if calls & {"+", "-"} else [])
        yield from (["division"] if calls & {"/", "%"} else [])
        yield from (["order"] if calls & {"min", "max"} else [])
    elif isinstance(fact, Comparison) and any(call.function == "shape" for call in _calls(fact)):
        yield "rank"


def _reads(value: Any, sized: set[str]) -> bool:
    """Whether it has the size of an axis in it: more than the rank, which is the item in slot 0 of a shape."""
    if isinstance(value, Call) and value.function == "item" and _is_shape(value.args[0], sized):
        return bool(value.args[1] != 0 if isinstance(value.args[1], int) else True)
    if _is_shape(value, sized):
        return True
    return any(_reads(part, sized) for part in _parts(value))


def _is_shape(value: Any, sized: set[str]) -> bool:
    named = isinstance(value, Variable) and value.name in sized
    return named or (isinstance(value, Call) and value.function == "shape")


def _calls(value: Any) -> Iterator[Call]:
    if isinstance(value, Call):
        yield value
    for part in _parts(value):
        yield from _calls(part)


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, tuple):
        return value
    if is_dataclass(value) and not isinstance(value, Operator | type | Variable):
        return [getattr(value, f.name) for f in fields(value)]
    return ()


def guards() -> dict[str, Any]:
    """How many rules ask for each kind at most, in all and by family."""
    total: Counter[str] = Counter()
    families: dict[str, Counter[str]] = {}
    for rule in registered_rules():
        kinds = {kind for clause in rule.clauses() for kind in asked(clause)}
        hardest = max(kinds or {"nothing"}, key=KINDS.index)
        total[hardest] += 1
        families.setdefault(rule.family, Counter())[hardest] += 1
    return {
        "rules": sum(total.values()),
        "hardest": {kind: total[kind] for kind in KINDS},
        "families": {name: dict(sorted(c.items(), key=lambda p: KINDS.index(p[0]))) for name, c in families.items()},
    }  # fmt: skip


class Block(nn.Module):
    """One block of an encoder: attention and two linear layers, with residuals and norms."""

    def __init__(self, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )  # fmt: skip
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


def forms(lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Which form is chosen at each length, at what price, and how far that is from one polynomial for all."""
    torch.manual_seed(0)
    block = Block().eval()
    seen: dict[Any, int] = {}
    found: list[dict[str, Any]] = []
    for length in lengths:
        made = eqd.optimize(block, torch.randn(2, length, 256), cost="openvino_int8")
        kernels = tuple((k.nodes, k.precision) for k in deployment(made).placement.kernels)
        cost = sum(k.cost for k in deployment(made).placement.kernels)
        form = seen.setdefault(kernels, len(seen))
        found.append({"length": length, "form": form, "kernels": len(kernels), "us": round(cost, 2)})
    sizes, costs = np.array([e["length"] for e in found]), np.array([e["us"] for e in found])
    powers = np.stack([np.ones_like(sizes), sizes, sizes**2], 1) / costs[:, None]  # relative errors alike
    fitted = (powers * costs[:, None]) @ np.linalg.lstsq(powers, np.ones(len(sizes)), rcond=None)[0]
    for each, value in zip(found, fitted, strict=True):
        each["one_polynomial_us"] = round(float(value), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    result = {"guards": guards(), "block": forms(arguments.lengths)}
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
