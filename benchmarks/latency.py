"""How fast engines are and how long they take to get: ours beside the peers', model by model.

    python -m benchmarks.latency --json OUT [--models ...] [--contestants ...] [--batch 1 8] [--seconds 20]

Every contestant is built in a process of its own, whose time from the module to the first answer, peak memory and file
size are noted; then all are loaded into one process and timed in rounds, in random order within each. Figures are
medians over rounds; ratios are over ours, round by round, with the 99 % interval of their median. SQNR is against the
float module on photographs that were not calibrated on. Weights are trained where a package has them, else random with
the statistics of BatchNorm taken from photographs, whose SQNR says little.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from torch import Tensor, nn

import eqsat_deploy as eqd
from benchmarks._data import (
    CALIBRATION_PHOTOGRAPHS,
    JUDGED_PHOTOGRAPHS,
    NETWORKS,
    calibration_data,
    crops,
    judged_data,
)
from benchmarks._data import network as trained
from benchmarks._models import load, with_statistics
from benchmarks._peers import Run, compiled, settled, torchao
from benchmarks._processes import answer
from eqsat_deploy.engines.race import ratio

MODELS = {
    "mobileone_s0": "timm:mobileone_s0",
    "repvgg_a0": "timm:repvgg_a0",
    "convnext_tiny": "torchvision:convnext_tiny",
    "mobilenet_v3_large": "torchvision:mobilenet_v3_large",
    "vit_b_16": "torchvision:vit_b_16",
    "swin_t": "torchvision:swin_t",
    "regnet_y_400mf": "torchvision:regnet_y_400mf",
    "resnet50": "torchvision:resnet50",
    "deit_tiny": "timm:deit_tiny_patch16_224",
    "inception_v3": "torchvision:inception_v3",
    "mobilenet_v2": "trained",
    "efficientnet_b0": "torchvision:efficientnet_b0",
    "densenet121": "torchvision:densenet121",
    "squeezenet1_1": "torchvision:squeezenet1_1",
    "shufflenet_v2_x1_0": "torchvision:shufflenet_v2_x1_0",
    "minilm_l6": "trained",
}
REPARAMETRIZED = {"mobileone_s0", "repvgg_a0"}
TRANSFORMERS = {"vit_b_16", "swin_t", "deit_tiny", "minilm_l6"}
MODULE = "benchmarks.latency"
SIDE, CALIBRATED, JUDGED = 224, 32, 16
WARMUP, COPIES = 3, 3


def network(name: str) -> nn.Module:
    """The float module, in eval mode."""
    if name in NETWORKS:
        return trained(name)
    return with_statistics(load(MODELS[name]), crops(CALIBRATION_PHOTOGRAPHS, 16, SIDE, 5))


def calibration(name: str) -> Tensor:
    return (
        calibration_data(name, CALIBRATED, 0)
        if name in NETWORKS
        else crops(CALIBRATION_PHOTOGRAPHS, CALIBRATED, SIDE, 0)
    )


def judged(name: str) -> Tensor:
    return judged_data(name, JUDGED) if name in NETWORKS else crops(JUDGED_PHOTOGRAPHS, JUDGED, SIDE, 1)


# -- contestants: each writes what it made to a folder, and is made of it again ---------------------------------------


def build_ours(
    name: str, model: nn.Module, batch: int, folder: Path, tune: int | None = None, precision: str = "f32"
) -> None:
    data = calibration(name)
    optimized = eqd.optimize(model, (data[:2],), cost="openvino_int8", batch=batch, tune=tune)
    quantized = optimized.quantize(data.split(8))
    quantized.build("openvino", batch=batch, options={"precision": precision}).save(folder / "engine")


def load_ours(folder: Path, name: str, batch: int) -> Run:
    return eqd.load(folder / "engine")


def build_float(name: str, model: nn.Module, batch: int, folder: Path) -> None:
    import openvino

    data = calibration(name)[:batch]
    openvino.save_model(
        openvino.convert_model(torch.export.export(model, (data,))),
        folder / "model.xml",
        compress_to_fp16=False,
    )


def build_nncf(name: str, model: nn.Module, batch: int, folder: Path) -> None:
    import openvino

    from benchmarks.openvino_nncf import nncf_quantized

    parts = list(calibration(name).split(batch))
    quantized = nncf_quantized(model, parts, transformer=name in TRANSFORMERS)
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)


def load_openvino(folder: Path, name: str, batch: int) -> Run:
    import openvino

    from benchmarks.openvino_nncf import runner

    return runner(openvino.Core().read_model(folder / "model.xml"))


def build_onnxruntime(name: str, model: nn.Module, batch: int, folder: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    parts = iter(calibration(name).split(batch))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            part = next(parts, None)
            return None if part is None or len(part) < batch else {"x": part.numpy()}

    plain, prepared = folder / "float.onnx", folder / "prepared.onnx"
    with torch.no_grad():
        torch.onnx.export(model, (calibration(name)[:batch],), plain, dynamo=True, input_names=["x"],
                          external_data=False, verbose=False)  # fmt: skip
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, folder / "model.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip
    plain.unlink()
    prepared.unlink()


def load_onnxruntime(folder: Path, name: str, batch: int) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def compile_float(folder: Path, name: str, batch: int) -> Run:
    return compiled(network(name), judged(name)[:batch])


def compile_torchao(folder: Path, name: str, batch: int) -> Run:
    parts = calibration(name).split(batch)
    return torchao(network(name), parts, transformer=name in TRANSFORMERS)[0]


def nothing_written(name: str, model: nn.Module, batch: int, folder: Path) -> None:
    """What Inductor compiles is kept in its own cache: it is made again where it is timed."""


CONTESTANTS: dict[
    str, tuple[Callable[[str, nn.Module, int, Path], None], Callable[[Path, str, int], Run]]
] = {
    "ours": (build_ours, load_ours),
    "ours, tune=4": (partial(build_ours, tune=4), load_ours),
    "ours, bf16": (partial(build_ours, precision="bf16"), load_ours),
    "openvino float32": (build_float, load_openvino),
    "nncf": (build_nncf, load_openvino),
    "onnxruntime quantize_static": (build_onnxruntime, load_onnxruntime),
    "torch.compile": (nothing_written, compile_float),
    "torchao PT2E, Inductor": (nothing_written, compile_torchao),
}
QUICK = ("ours", "openvino float32", "nncf", "onnxruntime quantize_static")


def built(contestant: str, name: str, batch: int, folder: Path) -> dict[str, Any]:
    """Build one contestant here, and what that took."""
    warnings.simplefilter("ignore")
    model, inputs = network(name), judged(name)
    with torch.no_grad():
        expected = torch.cat([model(part) for part in inputs.split(batch)])
    build, load_again = CONTESTANTS[contestant]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    build(name, model, batch, folder)
    run = load_again(folder, name, batch)
    run(inputs[:batch])
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = torch.cat([run(part) for part in inputs.split(batch)]).reshape(expected.shape)
    noise = float(((expected - found) ** 2).sum())
    return {
        "seconds": round(seconds, 1),
        "peak_mb": round((peak - before) / 1024),
        "file_mb": round(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20, 1),
        "sqnr": round(10 * math.log10(float((expected**2).sum()) / noise), 1) if noise else None,
    }


def timed(name: str, batch: int, folders: dict[str, Path], seconds: float) -> dict[str, list[float]]:
    """Microseconds of every contestant in every round, in random order within each."""
    x = judged(name)[:batch]
    runs = _copies(folders, name, batch)
    times: dict[str, list[float]] = {contestant: [] for contestant in runs}
    order, shuffle = list(runs), random.Random(0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["ours"]) < 10:
        shuffle.shuffle(order)
        for contestant in order:
            times[contestant].append(settled(shuffle.choice(runs[contestant]), x) * 1e6)
    return times


def _copies(folders: dict[str, Path], name: str, batch: int) -> dict[str, list[Run]]:
    """Every contestant loaded more than once, all in random order, of which one is drawn for a round: engines of one
    file differ by some percent, by where their memory came to lie. What is loaded first is slower by up to 5%."""
    found: dict[str, list[Run]] = {contestant: [] for contestant in folders}
    loads = [c for c in folders for _ in range(1 if CONTESTANTS[c][0] is nothing_written else COPIES)]
    random.Random(name).shuffle(loads)
    for contestant in loads:
        run = CONTESTANTS[contestant][1](folders[contestant], name, batch)
        for _ in range(WARMUP):
            run(judged(name)[:batch])
        found[contestant].append(run)
    return found


def compare(name: str, batch: int, contestants: list[str], seconds: float) -> dict[str, Any]:
    """One model at one batch size: figures of every contestant, or why it failed."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        folders = {}
        for number, contestant in enumerate(contestants):
            folder = Path(root) / str(number)
            folder.mkdir()
            found[contestant] = answer(MODULE, "--build", contestant, name, batch, folder)
            if "failed" not in found[contestant]:
                folders[contestant] = folder
        if "ours" not in folders:
            return found
        times = answer(
            MODULE, "--time", json.dumps({c: str(f) for c, f in folders.items()}), name, batch, seconds
        )
    if "failed" in times:
        return found | {"timing": times}
    rounds = [dict(zip(times, taken, strict=True)) for taken in zip(*times.values(), strict=True)]
    for contestant, taken in times.items():
        low, middle, high = ratio(rounds, contestant, "ours")
        found[contestant] |= {
            "us": round(median(taken), 1),
            "over_ours": [round(r, 3) for r in (middle, low, high)],
        }
    return found


def table(results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Every figure as lines of Markdown, and the geometric means of NNCF's time over ours."""
    lines = ["| model, batch | contestant | us | time over ours (99 %) | s to engine | peak MB | file MB | SQNR dB |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    over: dict[str, list[float]] = {"all": [], "without re-parametrized nets": []}
    for key, found in results.items():
        for contestant, row in found.items():
            if "failed" in row:
                lines.append(f"| {key} | {contestant} | failed: {row['failed'][:80]} | | | | | |")
                continue
            middle, low, high = row.get("over_ours", (math.nan,) * 3)
            lines.append(
                f"| {key} | {contestant} | {row.get('us', math.nan):.0f} | {middle:.3f} ({low:.3f} to {high:.3f}) | "
                f"{row['seconds']} | {row['peak_mb']} | {row['file_mb']} | {row['sqnr']} |"
            )
        if against := found.get("nncf", {}).get("over_ours"):
            over["all"].append(against[0])
            if key.split(",")[0] not in REPARAMETRIZED:
                over["without re-parametrized nets"].append(against[0])
    lines += ["", *(f"NNCF's time over ours, geometric mean, {what}: {geometric_mean(r):.3f} ({len(r)} runs)"
                    for what, r in over.items() if r)]  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS, metavar="NAME")
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument(
        "--contestants",
        nargs="*",
        default=list(QUICK),
        choices=CONTESTANTS,
        metavar="NAME",
        help=f"of {', '.join(CONTESTANTS)}",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing a model and batch size")
    parser.add_argument("--json", type=Path, help="where to write every figure; what it has already is kept")
    parser.add_argument("--build", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--time", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        contestant, name, batch, folder = arguments.build
        print(json.dumps(built(contestant, name, int(batch), Path(folder))))
        return
    if arguments.time:
        folders, name, batch, seconds = arguments.time
        paths = {contestant: Path(folder) for contestant, folder in json.loads(folders).items()}
        print(json.dumps(timed(name, int(batch), paths, float(seconds))))
        return
    stored = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    results: dict[str, Any] = stored.get("results", {})
    packages = ("eqsat-deploy", "torch", "openvino", "nncf", "onnxruntime")
    machine = {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()}
    for name in arguments.models:
        for batch in arguments.batch:
            key = f"{name}, {batch}"
            results[key] = compare(name, batch, list(arguments.contestants), arguments.seconds)
            print(*table({key: results[key]})[2:], f"load {os.getloadavg()[0]:.1f}", sep="\n", flush=True)
            if arguments.json:
                versions = machine | {package: version(package) for package in packages}
                arguments.json.write_text(
                    json.dumps({"versions": versions, "results": results}, indent=1) + "\n"
                )
    print(*table(results), sep="\n")


def _cpu() -> str:
    import openvino

    return str(openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"))


if __name__ == "__main__":
    main()
