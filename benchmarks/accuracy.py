"""INT8 on trained networks: how far our default engine and other quantizers are from the float network, side by side.

    python -m benchmarks.accuracy --json OUT [--models ...] [--peers ...] [--seeds N] [--effort ...]

All are calibrated on the same 96 samples, drawn anew for every seed; all are judged on the same samples, of other
photographs and other texts. Images: the divergence of softmax (KL, in nats), how often the class is the same, and SQNR
of the logits in dB. Sentences: the mean cosine to the float embedding, and how often the nearest neighbour among the
passages is the same. Seconds are those of quantization alone, ms the median latency of interleaved rounds in random
order; latency is our engine's over NNCF's, below 1 where ours is faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqsat_deploy as eqd
from benchmarks._data import IMAGE_SIDES, NETWORKS, calibration_data, judged_data, network
from benchmarks._peers import PACKAGES, PEERS, Run, failure, settled, versions
from eqsat_deploy.module import OptimizedModule

CALIBRATED, BATCH = 96, 8
JUDGED = {"minilm_l6": 200}  # 400 crops otherwise
ROUNDS = 100
OURS = "eqsat-deploy"


def compare(
    name: str, seeds: Sequence[int], options: dict[str, Any], peers: Sequence[str] = ("nncf",)
) -> dict[str, Any]:
    """Ours and the peers' on one network: a list of figures per seed each, and the ratio of our latency to NNCF's."""
    model = network(name)
    judged = judged_data(name, JUDGED.get(name, 400))
    expected = _outputs(model, judged)
    optimized = eqd.optimize(model, (calibration_data(name, 2, 0),), cost="openvino_int8")
    found: dict[str, Any] = {OURS: [], **{peer: [] for peer in peers}, "latency": []}
    for seed in seeds:
        data = calibration_data(name, CALIBRATED, seed)
        makers = {OURS: partial(_ours, optimized, data, options)}
        for peer in peers:
            makers[peer] = partial(PEERS[peer], model, data.split(1), name not in IMAGE_SIDES)
        made = {peer: _measured(peer, make, name, judged, expected, found) for peer, make in makers.items()}
        taken = latencies({peer: run for peer, run in made.items() if run is not None}, judged[:1])
        for peer, ms in taken.items():
            found[peer][-1]["ms"] = round(ms, 3)
        if OURS in taken and "nncf" in taken:
            found["latency"].append(round(taken[OURS] / taken["nncf"], 3))
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
        found[peer].append({"failed": failure(error)})
        return None
    found[peer].append({**figures, "seconds": round(seconds, 2)})
    return run


def _ours(optimized: OptimizedModule, data: Tensor, options: dict[str, Any]) -> tuple[Run, float]:
    start = time.perf_counter()
    quantized = optimized.quantize(data.split(BATCH), **options)
    seconds = time.perf_counter() - start
    return quantized.build("openvino", baseline=False), seconds


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


def latencies(engines: Mapping[str, Run], x: Tensor) -> dict[str, float]:
    """The median latency of each in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    order, shuffle = list(engines), random.Random(0)
    for index in range(ROUNDS + 5):
        shuffle.shuffle(order)
        for name in order:
            taken = settled(engines[name], x)
            if index >= 5:
                times[name].append(taken * 1e3)
    return {name: median(found) for name, found in times.items()}


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Medians over the seeds, as lines of Markdown."""
    lines = ["| network | engine | medians over seeds |", "|---|---|---|"]
    for name, found in results.items():
        for peer in [key for key in found if key != "latency"]:
            runs = [run for run in found[peer] if "failed" not in run]
            figures = [f"{key} {median(run[key] for run in runs):.4g}" for key in (runs[0] if runs else ())]
            if peer == OURS and found["latency"]:
                figures.append(f"latency over NNCF's {median(found['latency']):.3f}")
            failed = [run["failed"] for run in found[peer] if "failed" in run]
            lines.append(f"| {name} | {peer} | {', '.join(figures + failed)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=NETWORKS, choices=NETWORKS, metavar="NAME")
    parser.add_argument("--peers", nargs="*", default=("nncf",), choices=PEERS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="how many calibration sets")
    parser.add_argument("--effort", help="of our quantization; its default when missing")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    options = {"effort": arguments.effort} if arguments.effort else {}
    results = {}
    for name in arguments.models:
        results[name] = compare(name, range(arguments.seeds), options, arguments.peers)
        print(*table({name: results[name]})[2:], sep="\n", flush=True)
        if arguments.json:
            packages = ("eqsat-deploy", "torch", "openvino", *sorted({PACKAGES[p] for p in arguments.peers}))
            written = json.dumps({"versions": versions(packages), "networks": results}, indent=1)
            arguments.json.write_text(written + "\n")


if __name__ == "__main__":
    main()
