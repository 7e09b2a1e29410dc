"""INT8 on trained networks: how far our default engine and NNCF's default are from the float network, side by side.

    python -m benchmarks.accuracy --json OUT [--models ...] [--seeds N] [--effort ...]

Both run on OpenVINO and are calibrated on the same 96 samples, drawn anew for every seed; both are judged on the same
samples, of other photographs and other texts. Images: the divergence of softmax (KL, in nats), how often the class is
the same, and SQNR of the logits in dB. Sentences: the mean cosine to the float embedding, and how often the nearest
neighbour among the passages is the same. Seconds are those of quantization alone; latency is our engine's over
NNCF's, the median of interleaved rounds in random order, below 1 where ours is faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import random
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqsat_deploy as eqd
from benchmarks._data import IMAGE_SIDES, NETWORKS, calibration_data, judged_data, network
from benchmarks.openvino_nncf import nncf_quantized, runner
from eqsat_deploy.module import OptimizedModule

CALIBRATED, BATCH = 96, 8
JUDGED = {"minilm_l6": 200}  # 400 crops otherwise
ROUNDS = 100
Run = Callable[[Tensor], Tensor]


def compare(name: str, seeds: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
    """Ours and NNCF's on one network: a list of figures per seed each, and the ratio of their latencies."""
    model = network(name)
    judged = judged_data(name, JUDGED.get(name, 400))
    expected = _outputs(model, judged)
    optimized = eqd.optimize(model, (calibration_data(name, 2, 0),), cost="openvino_int8")
    found: dict[str, Any] = {"eqsat-deploy": [], "nncf": [], "latency": []}
    for seed in seeds:
        data = calibration_data(name, CALIBRATED, seed)
        ours = _measured(
            "eqsat-deploy", partial(_ours, optimized, data, options), name, judged, expected, found
        )
        theirs = _measured("nncf", partial(_theirs, model, name, data), name, judged, expected, found)
        if ours is not None and theirs is not None:
            found["latency"].append(_ratio(ours, theirs, judged[:1]))
    return found


def _measured(
    peer: str,
    make: Callable[[], tuple[Run, float]],
    name: str,
    judged: Tensor,
    expected: Tensor,
    found: dict[str, Any],
) -> Run | None:
    """The engine, its figures added to `found`; a peer that fails is recorded as failed."""
    try:
        run, seconds = make()
        figures = errors(name, expected, torch.cat([run(sample) for sample in judged.split(1)]))
    except Exception as error:  # whatever a peer raises
        found[peer].append({"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
        return None
    found[peer].append({**figures, "seconds": round(seconds, 2)})
    return run


def _ours(optimized: OptimizedModule, data: Tensor, options: dict[str, Any]) -> tuple[Run, float]:
    start = time.perf_counter()
    quantized = optimized.quantize(data.split(BATCH), **options)
    seconds = time.perf_counter() - start
    return quantized.build("openvino", baseline=False), seconds


def _theirs(model: nn.Module, name: str, data: Tensor) -> tuple[Run, float]:
    start = time.perf_counter()
    quantized = nncf_quantized(model, list(data.split(1)), transformer=name not in IMAGE_SIDES)
    return runner(quantized), time.perf_counter() - start


def _outputs(model: nn.Module, data: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in data.split(BATCH)])


def errors(name: str, expected: Tensor, found: Tensor) -> dict[str, float]:
    """The figures of one engine's outputs."""
    if name in IMAGE_SIDES:
        p, q = expected.log_softmax(-1), found.log_softmax(-1)
        return {
            "kl": round(float(F.kl_div(q, p, log_target=True, reduction="batchmean")), 4),
            "same_class": round(float((p.argmax(-1) == q.argmax(-1)).float().mean()), 4),
            "sqnr": round(float(10 * torch.log10((expected**2).sum() / ((expected - found) ** 2).sum())), 2),
        }
    return {
        "cosine": round(float(F.cosine_similarity(expected, found).mean()), 5),
        "nearest": round(float((_nearest(expected) == _nearest(found)).float().mean()), 4),
    }


def _nearest(embeddings: Tensor) -> Tensor:
    return (embeddings @ embeddings.T).fill_diagonal_(-2).argmax(-1)


def _ratio(ours: Run, theirs: Run, x: Tensor) -> float:
    """Our median latency over theirs."""
    times: dict[Run, list[float]] = {ours: [], theirs: []}
    order, shuffle = [ours, theirs], random.Random(0)
    for index in range(ROUNDS + 5):
        shuffle.shuffle(order)
        for run in order:
            start = time.perf_counter()
            run(x)
            if index >= 5:
                times[run].append(time.perf_counter() - start)
    return round(median(times[ours]) / median(times[theirs]), 3)


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Medians over the seeds, as lines of Markdown."""
    lines = ["| network | engine | medians over seeds |", "|---|---|---|"]
    for name, found in results.items():
        for peer in ("eqsat-deploy", "nncf"):
            runs = [run for run in found[peer] if "failed" not in run]
            figures = [f"{key} {median(run[key] for run in runs):.4g}" for key in (runs[0] if runs else ())]
            if peer == "eqsat-deploy" and found["latency"]:
                figures.append(f"latency over NNCF's {median(found['latency']):.3f}")
            failed = [run["failed"] for run in found[peer] if "failed" in run]
            lines.append(f"| {name} | {peer} | {', '.join(figures + failed)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=NETWORKS, choices=NETWORKS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="how many calibration sets")
    parser.add_argument("--effort", help="of our quantization; its default when missing")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    options = {"effort": arguments.effort} if arguments.effort else {}
    results = {}
    for name in arguments.models:
        results[name] = compare(name, range(arguments.seeds), options)
        print(*table({name: results[name]})[2:], sep="\n", flush=True)
        if arguments.json:
            packages = ("eqsat-deploy", "torch", "openvino", "nncf")
            versions = {"python": platform.python_version(), **{p: version(p) for p in packages}}
            arguments.json.write_text(
                json.dumps({"versions": versions, "networks": results}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
