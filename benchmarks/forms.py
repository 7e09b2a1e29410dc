"""What optimization would do to every model of the zoo: predicted costs, e-nodes and kernels, under every cost model.

    python -m benchmarks.forms --models all --side 128 --json benchmarks/results/forms.json
    python -m benchmarks.forms --models founding --against benchmarks/results/forms.json

Nothing is rebuilt or verified (`benchmarks.zoo` does that): models are captured, saturated once, and priced and
extracted under each cost model. `--against` names a table to compare with; the exit status is 1 where a predicted
cost has risen by more than 0.1 % or the number of e-nodes has moved by more than 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._models import inputs, load, rerandomize
from benchmarks.zoo import expand, isolated, versions
from eqsat_deploy.capture import capture
from eqsat_deploy.freeze import freeze
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import lower
from eqsat_deploy.price import price
from eqsat_deploy.saturate import saturate
from eqsat_deploy.selection import registered_rules
from eqsat_deploy.targets import find_cost
from eqsat_extraction import extract
from eqsat_extraction.cost_models import cost_models

DEARER = 1e-3
MOVED = 0.05


def survey(spec: str, *, seed: int, threads: int, side: int | None, seconds: float) -> dict[str, Any]:
    """One model in this process: its row."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    model = rerandomize(load(spec, seed), seed)
    args, kwargs = example_arguments(model, inputs(spec, seed, model, side))
    start = time.perf_counter()
    captured = capture(model, args, kwargs)
    captured_at = time.perf_counter()
    lowered = lower(captured)
    space = freeze(lowered, saturate(lowered, registered_rules()))
    frozen_at = time.perf_counter()
    row: dict[str, Any] = {
        "model": spec, "status": "ok", "nodes": lowered.nodes, "e_nodes": len(space.nodes),
        "e_classes": len(space.classes), "choices": len(space.choices), "forms": {},
        "seconds": {"capture": captured_at - start, "saturate": frozen_at - captured_at},
    }  # fmt: skip
    for name in cost_models():
        started = time.perf_counter()
        priced = price(space, find_cost(name))
        solution = extract(priced.egraph, priced.costs, time_limit=seconds)
        chosen = [space.choices[i][1] for i in solution.nodes() if space.choices[i][1].is_launch]
        row["forms"][name] = {
            "cost": solution.cost, "bound": solution.bound, "kernels": len(chosen),
            "int8": sum(node.integer for node in chosen), "seconds": time.perf_counter() - started,
        }  # fmt: skip
    return row


def compare(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[str]:
    """What has become worse, a line each."""
    known = {row["model"]: row for row in before if row["status"] == "ok"}
    lines = []
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"{row['model']}: {row['status']}")
        elif row["model"] in known:
            lines += _compare(row, known[row["model"]])
    return lines


def _compare(row: dict[str, Any], old: dict[str, Any]) -> list[str]:
    lines = []
    for name, form in row["forms"].items():
        was = old["forms"].get(name)
        if was is not None and form["cost"] > was["cost"] * (1 + DEARER):
            lines.append(f"{row['model']} {name}: cost {was['cost']:.6g} -> {form['cost']:.6g}")
    if abs(row["e_nodes"] / old["e_nodes"] - 1) > MOVED:
        lines.append(f"{row['model']}: e-nodes {old['e_nodes']} -> {row['e_nodes']}")
    return lines


def main() -> int:
    """Command line; exits with 1 where something became worse."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="founding", help="comma-separated SPECs and lists")
    parser.add_argument("--json", type=Path, help="where the rows go; rewritten after every model")
    parser.add_argument("--against", type=Path, help="a table to compare with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--side", type=int, help="height and width of images, where the architecture takes them"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="limit of each extraction")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds per model")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --json already has")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="models at a time")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.resume and arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text())["rows"]
    known = {row["model"] for row in rows}
    missing = [spec for spec in expand(arguments.models) if spec not in known]
    work = partial(survey, seed=arguments.seed, threads=arguments.threads, side=arguments.side,
                   seconds=arguments.seconds)  # fmt: skip
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(partial(isolated, work, timeout=arguments.timeout), missing):
            rows.append(row)
            print(f"{row['model']:<45} {row['status'][:80]} {row.get('wall_seconds', 0):.0f} s", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps({"rows": rows, "versions": versions()}) + "\n")
    worse = compare(rows, json.loads(arguments.against.read_text())["rows"]) if arguments.against else []
    print("\n".join(worse))
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
