"""INT8 on small networks trained here: what it loses of their accuracy, before and after training without labels.

    python -m benchmarks.digits --json OUT [--cache FOLDER] [--models ...] [--peers ...] [--seeds N]

Networks of five families learn scikit-learn's digits (`benchmarks/_digits.py`). Each is optimized for batches of 64 (at
one image as small as these little is worth INT8), quantized by default, built for OpenVINO and judged on 540 held-out
digits, each as it is and five times augmented; then the same after `finetune` on training images without their labels,
and with other quantizers. All calibrate on the same 128 training images, drawn and augmented anew for every seed.
Accuracy is in percent of the 3,240 images, plain of the 540 alone. What is lost of it is in points: at most 0.3 are
wanted, after finetuning 0.1. SQNR is of the logits in dB. Seconds are of quantization alone, or of finetuning alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import eqsat_deploy as eqd
from benchmarks._digits import BATCH, NETWORKS, Images, augmented, images, outputs, trained
from benchmarks._peers import PACKAGES, PEERS, Run, failure, versions
from benchmarks.accuracy import OURS
from eqsat_deploy.noise import decibels
from eqsat_deploy.quantization import finetune

CALIBRATED = 128
FINETUNED = f"{OURS}, finetuned"
EPOCHS, RATE = 2, 3e-5
TRANSFORMERS = ("vit", "swin")
WANTED = {OURS: 0.3, FINETUNED: 0.1}


def compare(
    name: str, model: nn.Module, data: Images, peers: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """Figures of the float network, and a list of figures per seed of ours and of every peer."""
    expected = outputs(model, data.held)
    optimized = eqd.optimize(model, (data.train[:2],), cost="openvino_int8", batch=BATCH)
    right = expected.argmax(1) == data.held_labels
    report = optimized.report
    found: dict[str, Any] = {
        "float": {"accuracy": percent(right), "plain": percent(right[: data.plain])},
        "kernels": {"all": report.kernels, "int8": report.integer_kernels},
        **{engine: [] for engine in (OURS, FINETUNED, *peers)},
    }
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(data.train), generator=generator)[:CALIBRATED]
        calibration = augmented(data.train[rows], generator)
        start = time.perf_counter()
        quantized = optimized.quantize(calibration.split(BATCH))
        seconds = time.perf_counter() - start
        makers: dict[str, Callable[[], tuple[Run, float]]] = {
            OURS: partial(_built, quantized, seconds),
            FINETUNED: partial(_finetuned, quantized, model, data, seed),
        }
        for peer in peers:
            makers[peer] = partial(PEERS[peer], model, calibration.split(1), name in TRANSFORMERS)
        for engine, make in makers.items():
            try:
                run, seconds = make()
                answers = outputs(run, data.held, 1 if engine in peers else BATCH)
            except Exception as error:  # whatever a peer raises
                found[engine].append({"failed": failure(error)})
                continue
            found[engine].append({**figures(expected, answers, data), "seconds": round(seconds, 2)})
    return found


def _built(quantized: Any, seconds: float) -> tuple[Run, float]:
    return quantized.build("openvino", batch=BATCH, baseline=False), seconds


def _finetuned(quantized: Any, model: nn.Module, data: Images, seed: int) -> tuple[Run, float]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(data.train), generator=generator) for _ in range(EPOCHS)])
    batches = [augmented(data.train[rows], generator) for rows in order.split(BATCH)]
    start = time.perf_counter()
    learned: Any = finetune(quantized, model, batches, rate=RATE)
    seconds = time.perf_counter() - start
    return learned.build("openvino", batch=BATCH, baseline=False), seconds


def figures(expected: Tensor, found: Tensor, data: Images) -> dict[str, float]:
    """Of logits `found` beside the float ones, both of all held-out images."""
    right, were = (logits.argmax(1) == data.held_labels for logits in (found, expected))
    return {
        "accuracy": percent(right),
        "plain": percent(right[: data.plain]),
        "lost": round(percent(were) - percent(right), 3),
        "lost_plain": round(percent(were[: data.plain]) - percent(right[: data.plain]), 3),
        "same_class": percent(found.argmax(1) == expected.argmax(1)),
        "sqnr": round(decibels(expected, found), 2),
    }


def percent(which: Tensor) -> float:
    """Of a mask that is true."""
    return round(100 * float(which.double().mean()), 3)


def table(name: str, found: dict[str, Any]) -> list[str]:
    """Medians over the seeds, as lines of Markdown."""
    exact, kernels = found["float"], found["kernels"]
    lines = [
        f"| {name}, {kernels['int8']} of {kernels['all']} kernels in INT8 | float | "
        f"accuracy {exact['accuracy']:.2f}, plain {exact['plain']:.2f} |"
    ]
    for engine, runs in found.items():
        if engine in ("float", "kernels"):
            continue
        worked = [run for run in runs if "failed" not in run]
        said = [f"{key} {median(run[key] for run in worked):.4g}" for key in (worked[0] if worked else ())]
        said += [run["failed"] for run in runs if "failed" in run]
        lost = [run["lost"] for run in worked]
        if engine in WANTED and lost and median(lost) > WANTED[engine]:
            said.append(f"more than {WANTED[engine]} lost")
        lines.append(f"| {name} | {engine} | {', '.join(said)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=tuple(NETWORKS), choices=NETWORKS, metavar="NAME")
    parser.add_argument("--peers", nargs="*", default=("nncf",), choices=PEERS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="how many calibration sets")
    parser.add_argument("--cache", type=Path, help="folder of trained weights, written where missing")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # kernels this small gain nothing from a second core
    data, results = images(), {}
    packages = (
        "eqsat-deploy",
        "torch",
        "torchvision",
        "openvino",
        *sorted({PACKAGES[p] for p in arguments.peers}),
    )
    print("| network | engine | medians over seeds |", "|---|---|---|", sep="\n")
    for name in arguments.models:
        model = trained(name, data, arguments.cache)
        results[name] = compare(name, model, data, arguments.peers, range(arguments.seeds))
        print(*table(name, results[name]), sep="\n", flush=True)
        if arguments.json:
            written = json.dumps({"versions": versions(packages), "networks": results}, indent=1)
            arguments.json.write_text(written + "\n")


if __name__ == "__main__":
    main()
