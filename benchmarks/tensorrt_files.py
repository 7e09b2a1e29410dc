"""The TensorRT lane's files read and built by NVIDIA's own parser and builder, which need no GPU.

    pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs
    python -m benchmarks.tensorrt_files --models founding,transformers,timm --side 128 --json OUT

TensorRT for RTX has the interface and the ONNX parser of TensorRT 11, and builds on any machine for the GPUs that it
knows (compute capability 7.5 and later, but 9.0 and 10.0). Every model is optimized for `trt_int8`, quantized on its
example alone, and written twice, in float and in INT8; each file has to become a plan. So this says that parser and
builder take what the lane writes, not how fast or how accurate it is: no plan is run. Each model has a process of its
own, which a crash of the builder ends alone. What is in `OUT` is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import torch

import eqsat_deploy as eqd
from benchmarks._models import inputs, load, rerandomize
from benchmarks._peers import versions
from benchmarks._processes import answer
from benchmarks.zoo import expand
from eqsat_deploy.deployment import Batch
from eqsat_deploy.engines.onnx import TENSORRT, export_onnx
from eqsat_deploy.engines.tensorrt_build import build_plan
from eqsat_deploy.inputs import example_arguments

NAMES = ("tensorrt_rtx_bindings", "tensorrt")  # what it is, and what the engine looks for
PACKAGES = ("eqsat-deploy", "torch", "tensorrt-rtx-cu13-libs", "onnx", "onnxscript")
MODULE = "benchmarks.tensorrt_files"
SIZES, LONGEST = Batch(1, 8, 8), 900.0


def survey(spec: str, side: int | None) -> dict[str, Any]:
    """A plan of one model in float and two in INT8."""
    sys.modules[NAMES[1]] = import_module(NAMES[0])
    warnings.simplefilter("ignore")
    model = rerandomize(load(spec, 0), 0).eval()
    args, kwargs = example_arguments(model, inputs(spec, 0, model, side))
    chosen = eqd.optimize(model, kwargs or args, cost="trt_int8", batch=SIZES.typical)
    quantized = chosen.quantize([kwargs or args], effort="fast")
    return {
        "kernels": chosen.report.kernels,
        "float": built(chosen, 21),
        "int8": built(quantized, 21),
        "int8, attention whole": built(quantized, 23),
    }


def built(module: torch.fx.GraphModule, opset: int) -> dict[str, Any]:
    """What one file holds and takes to build."""
    file = export_onnx(module, lane=TENSORRT, batch=SIZES, opset=opset)
    start = time.perf_counter()
    plan = build_plan(file.model, file.signature, {"timing_cache": False})
    operators = [node.op_type for node in onnx.load_model_from_string(file.model).graph.node]
    return {
        "operators": len(operators),
        "quantized": operators.count("QuantizeLinear"),
        "plan_mb": round(len(plan) / 2**20, 1),
        "plan_s": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="founding", help="as benchmarks.zoo takes them")
    parser.add_argument("--side", type=int, help="of images, for every architecture that takes it")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(survey(arguments.models, arguments.side)))
        return 0
    stored = json.loads(arguments.json.read_text())["models"] if arguments.json.exists() else {}
    side = ["--side", arguments.side] if arguments.side else []
    for spec in expand(arguments.models):
        if spec in stored:
            continue
        stored[spec] = answer(
            MODULE, "--one", "--models", spec, *side, "--json", arguments.json, longest=LONGEST
        )
        print(spec, stored[spec], flush=True)
        text = json.dumps({"versions": versions(PACKAGES), "models": stored}, indent=1)
        arguments.json.write_text(text + "\n")
    failed = [spec for spec, row in stored.items() if "failed" in row]
    print(f"{len(stored) - len(failed)} of {len(stored)} models became plans", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
