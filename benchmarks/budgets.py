"""What the stages take beside what they may take, in CPU seconds of one process, so that other work counts little.

    python -m benchmarks.budgets --json benchmarks/results/budgets.json

Every figure is the least of `--repeat` runs after one that compiles and imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks._models import inputs, load, rerandomize
from benchmarks.scaling import own, stages
from eqsat_deploy import optimize
from eqsat_deploy.capture import capture
from eqsat_deploy.engines.onnx import TENSORRT, export_onnx
from eqsat_deploy.lower import lower
from eqsat_deploy.processors import cpu
from eqsat_deploy.search import Limits, search
from eqsat_deploy.selection import find_rules
from eqsat_deploy.targets import find_cost

MODELS = "torchvision:resnet50,torchvision:vit_b_16"
NODES = 10_000


def least(run: Callable[[], Any], repeat: int) -> float:
    """CPU seconds of the fastest of `repeat` runs after a first one."""
    run()
    taken = []
    for _ in range(repeat):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return min(taken)


def form(spec: str, repeat: int) -> dict[str, float]:
    """Without and with the proof: lower to extract; and what `optimize` takes between capture and verification."""
    model, example, cost = load(spec), inputs(spec), find_cost("trt_int8")
    captured = capture(model, (example,))

    def reach(extractor: str) -> Any:
        return search(lower(captured), find_rules(), cost, Limits(extractor=extractor))

    def whole() -> Any:
        return optimize(model, example, cost=cost, check=False)

    found = {"lower to extract, no proof": least(lambda: reach("greedy"), repeat)}
    found["proof on top"] = least(lambda: reach("auto"), repeat) - found["lower to extract, no proof"]
    captures = least(lambda: capture(model, (example,)), repeat)
    found["optimize after capture, without verification"] = least(whole, repeat) - captures
    return found


def chain() -> float:
    """CPU seconds from lowering to extraction, its proof included, of about `NODES` nodes."""
    return own(stages(NODES, "trt_int8", "auto"))


def imported(repeat: int) -> float:
    """CPU seconds that importing what `optimize` needs takes once torch is there."""
    timed = "s = time.process_time(); from eqsat_deploy import optimize; print(time.process_time() - s)"
    code = f"import time, torch; {timed}"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(repeat)
    ]
    return min(float(run.stdout) for run in runs)


def export(repeat: int) -> float:
    """CPU seconds of writing a quantized ResNet-50 as ONNX."""
    example = inputs("torchvision:resnet50")
    module = optimize(rerandomize(load("torchvision:resnet50")), example, cost="trt_int8", check=False)
    quantized = module.quantize([example])
    return least(lambda: export_onnx(quantized, lane=TENSORRT), repeat)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=MODELS, help="comma-separated SPECs")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []

    def row(what: str, seconds: float, budget: float) -> None:
        rows.append({"what": what, "seconds": round(seconds, 3), "budget": budget, "kept": seconds <= budget})
        print(f"{what:<75} {seconds:8.2f} s of {budget:g}{'' if seconds <= budget else '  OVER'}", flush=True)

    budgets = {"lower to extract, no proof": 0.5, "proof on top": 1.0,
               "optimize after capture, without verification": 1.5}  # fmt: skip
    for spec in arguments.models.split(","):
        for what, seconds in form(spec, arguments.repeat).items():
            row(f"{spec}: {what}", seconds, budgets[what])
    row("torchvision:resnet50: ONNX with Q/DQ", export(arguments.repeat), 3.0)
    row("import eqsat_deploy, over torch", imported(arguments.repeat), 0.3)
    row(f"{NODES} nodes: lower, saturate, extract", chain(), 30.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of all this: {peak:.1f} GiB")
    if arguments.json:
        result = {"cpu": cpu()[0], "rows": rows, "peak_gib": round(peak, 2)}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
