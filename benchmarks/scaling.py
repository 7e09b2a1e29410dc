"""How the stages grow with the model: CPU seconds and peak memory of each, for chains of residual blocks.

    python -m benchmarks.scaling --json benchmarks/results/scaling.json --plot benchmarks/results/scaling.svg

Every length runs in a process of its own, on one thread, after a small model that compiles and imports. Seconds are of
the process, so that other work counts little. Capture is torch's own export, which is timed beside the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._processes import answer
from eqsat_deploy.capture import capture
from eqsat_deploy.lower import lower
from eqsat_deploy.processors import cpu
from eqsat_deploy.saturate import Budget
from eqsat_deploy.search import Limits, search
from eqsat_deploy.selection import find_rules
from eqsat_deploy.targets import find_cost

LENGTHS = (1_000, 3_000, 10_000, 30_000, 100_000)
FIRST = 100
BUDGET = Budget(nodes=20_000_000, seconds=3600.0)


class Chain(nn.Module):
    """Residual blocks: about `nodes` ATen nodes in all."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        blocks = range(nodes // 4)
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in blocks)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in blocks)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu(norm(convolution(x)) + x)
        return x


def stages(nodes: int, cost: str, extractor: str) -> dict[str, Any]:
    """CPU seconds of every stage for about `nodes` nodes, and what the search was over."""
    taken: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.process_time()
        yield
        taken[stage] = round(time.process_time() - start, 2)

    with timed("capture"):
        captured = capture(Chain(nodes).eval(), (torch.randn(2, 4, 8, 8),))
    before = _peak()
    with timed("lower"):
        lowered = lower(captured)
    found = search(lowered, find_rules(), find_cost(cost), Limits(extractor=extractor, budget=BUDGET), timed)
    return {
        "seconds": taken,
        "gib": round(_peak(), 2),
        "gib before lowering": round(before, 2),
        "e-nodes": len(found.space.nodes),
        "kernels": len(found.space.choices),
        "stopped": found.saturation.stopped,
        "gap": round(found.solution.gap, 6),
    }


def own(row: dict[str, Any]) -> float:
    """Seconds of everything but capture."""
    return sum(seconds for stage, seconds in row["seconds"].items() if stage != "capture")


def exponent(rows: dict[int, dict[str, Any]]) -> float:
    """Of the growth of `own` between the ends."""
    first, last = min(rows), max(rows)
    return math.log(own(rows[last]) / own(rows[first])) / math.log(last / first)


def plot(rows: dict[int, dict[str, Any]], path: Path) -> None:
    """Seconds of every stage, and memory, against the number of nodes."""
    from eqsat_deploy.report.figure import Drawing

    figure = Drawing(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for stage in next(iter(rows.values()))["seconds"]:
        left.plot(list(rows), [row["seconds"][stage] for row in rows.values()], marker="o", label=stage)
    left.set(xscale="log", yscale="log", xlabel="nodes", ylabel="CPU s")
    left.legend(fontsize=8)
    right.plot(list(rows), [row["gib"] for row in rows.values()], marker="o")
    right.set(xscale="log", yscale="log", xlabel="nodes", ylabel="peak GiB")
    figure.savefig(path)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", nargs="*", type=int, default=list(LENGTHS), metavar="NODES")
    parser.add_argument("--cost", default="trt_int8")
    parser.add_argument("--extractor", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--resume", action="store_true", help="keep the lengths that --json has already")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        stages(FIRST, arguments.cost, arguments.extractor)
        print(json.dumps(stages(arguments.one, arguments.cost, arguments.extractor)))
        return
    rows: dict[int, dict[str, Any]] = {}
    if arguments.resume and arguments.json and arguments.json.exists():
        rows = {int(length): row for length, row in json.loads(arguments.json.read_text())["rows"].items()}
    for length in arguments.lengths:
        if length in rows:
            continue
        row = answer(
            "benchmarks.scaling",
            "--one",
            length,
            "--cost",
            arguments.cost,
            "--extractor",
            arguments.extractor,
        )
        if "failed" in row:
            print(f"{length:>7} failed: {row['failed']}", flush=True)
            continue
        rows[length] = row
        print(f"{length:>7} {own(row):8.1f} s without capture  {row}", flush=True)
        if arguments.json:
            result = {"cpu": cpu()[0], "cost": arguments.cost, "extractor": arguments.extractor,
                      "torch": torch.__version__, "exponent": round(exponent(rows), 3) if len(rows) > 1 else None,
                      "rows": rows}  # fmt: skip
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if len(rows) > 1:
        print(f"grows as n^{exponent(rows):.2f}")
    if arguments.plot and rows:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
