"""INT8 on OpenVINO: our quantizers in several placements against NNCF's, on the same untouched models.

    python -m benchmarks.openvino_nncf [--models ...] [--calibration ...]

Ratios are of medians within interleaved rounds, with their spread over chunks of rounds; above 1 is faster than
NNCF. SQNR is against the float module on an image not used for calibration. Weights are random, BatchNorm
statistics calibrated. Writes `openvino_nncf.md` and, of the
time that calibration takes, `openvino_calibration.md` in `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, fx, nn

from benchmarks._peers import nncf_quantized, runner
from eqsat_deploy.deployment import record
from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.quantization import quantize
from tests.deploy.placing import ADDS, POOLS, WEIGHTED, Attention, images, place, torchvision_model, traced

PLACEMENTS = {
    "convolution, linear": WEIGHTED,
    "and residual adds": WEIGHTED + ADDS,
    "and pools": WEIGHTED + ADDS + POOLS,
}
MODELS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "vit_small")
CHUNKS, ROUNDS = 4, 30
RESULTS = Path(__file__).with_name("results")


def model_of(name: str) -> nn.Module:
    if name != "vit_small":
        return torchvision_model(name)
    torch.manual_seed(0)
    return Attention(width=384, heads=6, depth=12, size=224, patch=16).eval()


def sqnr(expected: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


def chunk_medians(contestants: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> dict[str, list[float]]:
    """Each contestant's median latency in microseconds, one per chunk of interleaved rounds."""
    medians: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(CHUNKS):
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for index in range(ROUNDS):
            names = list(contestants) if index % 2 else list(reversed(contestants))
            for name in names:
                start = time.perf_counter()
                contestants[name](x)
                times[name].append((time.perf_counter() - start) * 1e6)
        for name, taken in times.items():
            medians[name].append(median(taken))
    return medians


def compare(name: str) -> list[str]:
    model = model_of(name)
    data = list(images(8, size=224, batch=1))
    module: fx.GraphModule = traced(copy.deepcopy(model), data[0])
    x = images(1, size=224, batch=1, seed=99)[0]
    contestants: dict[str, Callable[[Tensor], Tensor]] = {}
    floats: dict[str, int] = {}
    for label, readers in PLACEMENTS.items():
        record(module, placement=place(module, readers))
        engine = OpenVINOEngine.build(quantize(module, data))
        contestants[label] = engine
        anchors = [la for la in engine.layers() if la.type in ("Convolution", "FullyConnected")]
        floats[label] = sum(layer.precision != "int8" for layer in anchors)
    contestants["nncf"] = runner(nncf_quantized(model, data, name == "vit_small"))
    contestants["float32"] = OpenVINOEngine.build(module)
    for contestant in contestants.values():
        for _ in range(5):
            contestant(x)
    with torch.no_grad():
        reference = module(x)
    medians = chunk_medians(contestants, x)
    rows = []
    for label, taken in medians.items():
        ratios = [theirs / ours for theirs, ours in zip(medians["nncf"], taken, strict=True)]
        quality = sqnr(reference, contestants[label](x))
        rows.append(
            f"| {name} | {label} | {median(taken) / 1e3:.2f} | {median(ratios):.3f} "
            f"[{min(ratios):.3f}-{max(ratios):.3f}] | {quality:.1f} | {floats.get(label, '')} |"
        )
    return rows


def calibration(name: str, count: int) -> list[str]:
    """Seconds to quantize with `count` images: ours by observer and batch size, and NNCF's."""
    model = model_of(name)
    module = traced(copy.deepcopy(model), torch.zeros(1, 3, 224, 224))
    record(module, placement=place(module, WEIGHTED + ADDS + POOLS))
    single = list(images(count, size=224, batch=1))
    rows = []
    for size in (1, 10):
        batches = [torch.cat(single[i : i + size]) for i in range(0, count, size)]
        for observer in ("minmax", "mse", "entropy") if size == 1 else ("minmax",):
            start = time.perf_counter()
            quantize(module, batches, observer=observer)
            rows.append(f"| {name} | {observer}, batches of {size} | {time.perf_counter() - start:.1f} |")
    start = time.perf_counter()
    nncf_quantized(model, single, name == "vit_small")
    return [*rows, f"| {name} | nncf, with its bias correction | {time.perf_counter() - start:.1f} |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--calibration", nargs="*", default=["resnet50"])
    parser.add_argument("--images", type=int, default=300)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    torch.set_num_threads(2)
    cpu = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    lines = [
        "# OpenVINO INT8: our placements against NNCF",
        "",
        f"`python -m benchmarks.openvino_nncf`; {cpu}, two cores, {platform.system()}; torch {torch.__version__}, "
        f"openvino {openvino.__version__.partition('-')[0]}, nncf {nncf.__version__}; batch 1, 224x224, random "
        "weights with calibrated BatchNorm, 8 calibration images.",
        "Ratio: NNCF's latency over ours, median of chunks [spread]. SQNR in dB. "
        "Float: convolutions and linears that do not run in INT8.",
        "",
        "| model | quantized | ms | ratio | SQNR | float |",
        "|---|---|---|---|---|---|",
    ]
    for name in arguments.models:
        rows = compare(name)
        print(*rows, sep="\n", flush=True)
        lines += rows
    if arguments.models:
        (RESULTS / "openvino_nncf.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [f"# Quantizing with {arguments.images} images", "", "| model | how | seconds |", "|---|---|---|"]
    for name in arguments.calibration:
        rows = calibration(name, arguments.images)
        print(*rows, sep="\n", flush=True)
        lines += rows
    if arguments.calibration:
        (RESULTS / "openvino_calibration.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
