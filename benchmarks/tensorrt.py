"""TensorRT engines of our file beside ModelOpt's and the float model's, on an NVIDIA GPU.

    pip install -e '.[tensorrt]' torchvision timm && pip install nvidia-modelopt[onnx]
    python -m benchmarks.tensorrt --json OUT [--models ...] [--batch 1 8] [--seconds 5] [--level 3]

Every contestant is an ONNX file, which one and the same code builds for one batch size, at the same level, and runs as
a CUDA graph: `plain fp16`, the model as it is; `ours fp16`, the form that was chosen; `ours`, that in INT8; `modelopt`,
its PTQ of the model as it is (entropy, FP16 where not INT8). They are timed in rounds, in random order within each:
`us` is the median between CUDA events around a call on tensors that are on the GPU, `call us` that of the wall clock,
and `over ours` the median of ratios round by round. SQNR is against the float module on what was not calibrated on:
photographs where scikit-image has them, smooth noise otherwise. Seconds are those to the file, and those to the plan.
Each model runs in a process of its own; what fails is a row that says why.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, cuda, fx, nn

import eqsat_deploy as eqd
from benchmarks._models import load, with_statistics
from benchmarks._peers import failure
from benchmarks._processes import answer
from eqsat_deploy.deployment import Batch, Signature, deployment
from eqsat_deploy.engines.onnx import TENSORRT, export_onnx
from eqsat_deploy.engines.tensorrt import TensorRTEngine
from eqsat_deploy.engines.tensorrt_build import build_plan
from eqsat_deploy.noise import decibels

MODELS = {
    "resnet50": "torchvision:resnet50",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "efficientnet_b0": "torchvision:efficientnet_b0",
    "regnet_y_400mf": "torchvision:regnet_y_400mf",
    "densenet121": "torchvision:densenet121",
    "convnext_tiny": "torchvision:convnext_tiny",
    "vit_b_16": "torchvision:vit_b_16",
    "swin_t": "torchvision:swin_t",
    "repvgg_a0": "timm:repvgg_a0",
    "deit_tiny": "timm:deit_tiny_patch16_224",
}
PACKAGES = ("eqsat-deploy", "torch", "tensorrt", "nvidia-modelopt", "onnx", "onnxscript")
SIDE, CALIBRATED, JUDGED, WARMUP, ROUNDS = 224, 64, 16, 10, 20
LONGEST = 900.0  # seconds for one model at one batch size
OURS = "ours"


class Case:
    """A model, the forms that we make of it, and data; made once for all contestants."""

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        side: int = SIDE,
        calibrated: int = CALIBRATED,
        effort: str = "balanced",
    ) -> None:
        self.batch, self.side, self.effort = batch, side, effort
        self.data = images(calibrated, side, seed=0)
        self.model = with_statistics(model.eval(), self.data[:16])
        self.form: fx.GraphModule = eqd.optimize(self.model, (self.data[:2],), cost="trt_int8", batch=batch)
        self.sizes = Batch(batch, batch, batch)
        self.signature = Signature.of(self.form, self.sizes).wide


def plain_fp16(case: Case) -> bytes:
    plain = deployment(case.form).plain
    assert plain is not None
    return export_onnx(plain, lane=TENSORRT, batch=case.sizes).model


def ours_fp16(case: Case) -> bytes:
    return export_onnx(case.form, lane=TENSORRT, batch=case.sizes).model


def ours(case: Case) -> bytes:
    quantized = case.form.quantize(case.data.split(8), effort=case.effort)
    return export_onnx(quantized, lane=TENSORRT, batch=case.sizes).model


def modelopt(case: Case) -> bytes:
    from modelopt.onnx.quantization import quantize

    name = case.signature.inputs[0].name
    with tempfile.TemporaryDirectory() as folder:
        plain, written = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(
            case.model, (case.data[: case.batch],), plain, dynamo=True, opset_version=21, external_data=False,
            verbose=False, input_names=[name], output_names=["output_0"],
        )  # fmt: skip
        whole = len(case.data) // case.batch * case.batch
        quantize(
            str(plain), quantize_mode="int8", calibration_data={name: case.data[:whole].numpy()},
            calibration_method="entropy", calibration_eps=["cpu"], high_precision_dtype="fp16",
            output_path=str(written), log_level="ERROR",
        )  # fmt: skip
        return written.read_bytes()


CONTESTANTS: dict[str, Callable[[Case], bytes]] = {
    "plain fp16": plain_fp16,
    "ours fp16": ours_fp16,
    OURS: ours,
    "modelopt": modelopt,
}


def built(case: Case, contestant: str, level: int) -> tuple[TensorRTEngine, dict[str, Any]]:
    """The engine of a contestant's file, and what there is to say of it."""
    start = time.perf_counter()
    file = CONTESTANTS[contestant](case)
    middle = time.perf_counter()
    plan = build_plan(file, case.signature, {"level": level})
    end = time.perf_counter()
    engine = TensorRTEngine(case.signature, plan, file, options={"cuda_graphs": True})
    x = images(JUDGED, case.side, seed=1000)
    with torch.no_grad():
        expected = torch.cat([case.model(part) for part in _parts(x, case.batch)])
    found = torch.cat([engine(part) for part in _parts(x, case.batch)])
    layers = engine.layers()
    return engine, {
        "file_s": round(middle - start, 1),
        "plan_s": round(end - middle, 1),
        "plan_mb": round(len(plan) / 2**20, 1),
        "sqnr": round(decibels(expected, found), 1),
        "layers": len(layers),
        "int8": sum(layer.precision == "int8" for layer in layers),
    }


def timed(engines: dict[str, TensorRTEngine], x: Tensor, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Microseconds of every engine in every round, in random order within each: between events, and of the call."""
    times: dict[str, dict[str, list[float]]] = {name: {"us": [], "call us": []} for name in engines}
    order, shuffle = list(engines), random.Random(0).shuffle
    for engine in engines.values():
        for _ in range(WARMUP):
            engine(x)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[0]]["us"]) < ROUNDS:
        shuffle(order)
        for name in order:
            before, after = (cuda.Event(enable_timing=True) for _ in range(2))
            start = time.perf_counter()
            before.record()
            engines[name](x)
            after.record()
            after.synchronize()
            times[name]["call us"].append((time.perf_counter() - start) * 1e6)
            times[name]["us"].append(before.elapsed_time(after) * 1e3)
    return times


def compare(
    case: Case, contestants: list[str], seconds: float, level: int, device: str = "cuda"
) -> dict[str, Any]:
    """Figures of every contestant, or why it failed."""
    found: dict[str, Any] = {}
    engines: dict[str, TensorRTEngine] = {}
    for contestant in contestants:
        try:
            engines[contestant], found[contestant] = built(case, contestant, level)
        except Exception as error:  # whatever a peer raises
            found[contestant] = {"failed": failure(error)[:300]}
    if not engines:
        return found
    times = timed(engines, case.data[: case.batch].to(device), seconds)
    for name, taken in times.items():
        found[name] |= {kind: round(median(values), 1) for kind, values in taken.items()}
        if OURS in times:
            ratios = [t / o for t, o in zip(taken["us"], times[OURS]["us"], strict=True)]
            found[name]["over_ours"] = round(median(ratios), 3)
    return found


def table(results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Every figure as lines of Markdown."""
    kinds = {"us": "us", "over_ours": "over ours", "call us": "call us", "sqnr": "SQNR dB", "int8": "INT8 layers",
             "layers": "layers", "plan_mb": "plan MB", "file_s": "s to file", "plan_s": "s to plan"}  # fmt: skip
    lines = [f"| model, batch | contestant | {' | '.join(kinds.values())} |", "|---" * (len(kinds) + 2) + "|"]
    for key, found in results.items():
        for contestant, row in found.items():
            cells = [str(row.get(kind, "")) for kind in kinds]
            if "failed" in row:
                cells = [f"failed: {row['failed'][:90]}".replace("|", "/"), *[""] * (len(kinds) - 1)]
            lines.append(f"| {key} | {contestant} | {' | '.join(cells)} |")
    return lines


def images(count: int, side: int, seed: int) -> Tensor:
    """(count, 3, side, side) float32: crops of photographs where there are any, else smooth noise."""
    try:
        from benchmarks._data import CALIBRATION_PHOTOGRAPHS, JUDGED_PHOTOGRAPHS, crops

        return crops(JUDGED_PHOTOGRAPHS if seed else CALIBRATION_PHOTOGRAPHS, count, side, seed)
    except (ImportError, StopIteration):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(count, 3, max(2, side // 16), max(2, side // 16), generator=generator)
        fine = torch.randn(count, 3, side, side, generator=generator)
        return F.interpolate(coarse, (side, side), mode="bilinear") + 0.2 * fine


def versions() -> dict[str, Any]:
    """Of everything that figures depend on; None for what is not installed."""
    found: dict[str, Any] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["gpu"] = cuda.get_device_name() if cuda.is_available() else None
    return found


def _parts(x: Tensor, batch: int) -> list[Tensor]:
    return [part for part in x.split(batch) if len(part) == batch]


def _child(name: str, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One model at one batch size in another process, which a crash of a runtime ends alone."""
    found = answer(
        "benchmarks.tensorrt", "--one", name, batch, "--contestants", *arguments.contestants,
        "--seconds", arguments.seconds, "--effort", arguments.effort, "--level", arguments.level, longest=LONGEST,
    )  # fmt: skip
    return {"all": found} if "failed" in found else found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS, metavar="NAME")
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument(
        "--contestants", nargs="*", default=list(CONTESTANTS), choices=CONTESTANTS, metavar="NAME"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing a model and batch size")
    parser.add_argument("--level", type=int, default=3, help="TensorRT's builder optimization level")
    parser.add_argument("--effort", default="balanced", help="of our quantization")
    parser.add_argument("--json", type=Path, help="where to write every figure; what it has already is kept")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        warnings.simplefilter("ignore")
        case = Case(load(MODELS[arguments.one[0]]), int(arguments.one[1]), effort=arguments.effort)
        print(json.dumps(compare(case, arguments.contestants, arguments.seconds, arguments.level)))
        return
    if (reason := TensorRTEngine.unavailable()) is not None:
        parser.exit(1, f"TensorRT is not available here: {reason}\n")
    stored = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    results: dict[str, Any] = stored.get("results", {})
    for name in arguments.models:
        for batch in arguments.batch:
            key = f"{name}, {batch}"
            results[key] = _child(name, batch, arguments)
            print(*table({key: results[key]})[2:], sep="\n", flush=True)
            if arguments.json:
                text = json.dumps({"versions": versions(), "results": results}, indent=1)
                arguments.json.write_text(text + "\n")
    print(*table(results), json.dumps(versions()), sep="\n")


if __name__ == "__main__":
    main()
