"""What an OpenVINO engine takes to load, how many calls a second it answers, and whether it grows.

    python -m benchmarks.openvino_serving --json benchmarks/results/openvino_serving.json

Loading is `eqd.load` in a process of its own that has imported torch and OpenVINO, with nothing kept of what was
compiled before and with it, in turns. Calls are made by several threads at once, in turns with OpenVINO's own
`AsyncInferQueue` on the same compiled model. Random weights, calibrated on noise: only time and memory are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import torch

import eqsat_deploy as eqd
from benchmarks._models import inputs, load
from eqsat_deploy.artifact import read
from eqsat_deploy.cache import VARIABLE
from eqsat_deploy.engines.openvino import OpenVINOEngine

MODELS = ("torchvision:mobilenet_v2", "torchvision:resnet50", "benchmarks._models:bert_base")
THREADS = (1, 2, 4, 8)
MODES = ("latency", "throughput")
CALLS = 10_000
LOAD = """
import sys, time, warnings
import openvino, torch
import eqsat_deploy as eqd
warnings.simplefilter("ignore")
begin, used = time.perf_counter(), time.process_time()
engine = eqd.load(sys.argv[1])
loaded, spent = time.perf_counter(), time.process_time()
engine(*engine.signature.zeros(1))
print(loaded - begin, spent - used, time.perf_counter() - begin)
"""


def loading(path: Path, runs: int) -> dict[str, dict[str, float]]:
    """Seconds of `eqd.load`, by the clock and of processors, and to the first result."""
    taken: dict[str, list[tuple[float, ...]]] = {"nothing kept": [], "kept": []}
    with tempfile.TemporaryDirectory() as kept:
        for _ in range(runs + 1):  # the first fills what is kept, and the file cache
            for name, folder in (("nothing kept", ""), ("kept", kept)):
                done = subprocess.run(
                    [sys.executable, "-c", LOAD, str(path)], env={**os.environ, VARIABLE: folder},
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                taken[name].append(tuple(map(float, done.stdout.split())))
    return {name: _medians(times[1:]) for name, times in taken.items()}


def _medians(times: list[tuple[float, ...]]) -> dict[str, float]:
    load_s, cpu_s, first_s = (round(median(each), 3) for each in zip(*times, strict=True))
    return {"load_s": load_s, "load_cpu_s": cpu_s, "first_call_s": first_s}


def calling(path: Path, x: torch.Tensor, seconds: float, rounds: int) -> dict[str, Any]:
    """Calls a second by several threads at once, and of OpenVINO's queue, which one thread fills."""
    from openvino import AsyncInferQueue

    saved = read(path)
    engines = {
        mode: OpenVINOEngine.load_files(path / "engine", saved.signature, {"mode": mode}) for mode in MODES
    }
    queues = {mode: AsyncInferQueue(engines[mode]._compiled.compile(1)) for mode in MODES}
    rates: dict[str, dict[str, list[float]]] = {mode: {} for mode in MODES}
    for _ in range(rounds):
        for mode in MODES:
            for count in THREADS:
                rate = _rate(partial(engines[mode], x), count, seconds)
                rates[mode].setdefault(f"{count} threads", []).append(rate)
            rates[mode].setdefault("AsyncInferQueue", []).append(_filled(queues[mode], x, seconds))
    return {
        mode: {"concurrency": engines[mode].concurrency, **{k: round(median(v), 1) for k, v in found.items()}}
        for mode, found in rates.items()
    }


def _rate(call: Callable[[], Any], count: int, seconds: float) -> float:
    until, done = time.perf_counter() + seconds, [0] * count

    def repeat(place: int) -> None:
        while time.perf_counter() < until:
            call()
            done[place] += 1

    threads = [Thread(target=repeat, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / seconds


def _filled(queue: Any, x: torch.Tensor, seconds: float) -> float:
    begin, count, given = time.perf_counter(), 0, {0: x.numpy()}
    while time.perf_counter() < begin + seconds:
        queue.start_async(given, share_inputs=True)
        count += 1
    queue.wait_all()
    return count / (time.perf_counter() - begin)


def growing(path: Path, calls: int) -> dict[str, float]:
    """Resident MiB after a tenth of the calls, and after all, in sizes of the batch from 1 to 4 by turns."""
    engine = eqd.load(path)
    batches = [torch.zeros(size, *engine.signature.inputs[0].shape[1:]) for size in (1, 2, 3, 4)]
    found = {}
    for number in range(1, calls + 1):
        engine(batches[number % 4])
        if number in (calls // 10, calls):
            found[f"after {number:,} calls"] = _resident()
    return found


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


class Small(torch.nn.Module):
    """What takes next to no time, so that ten thousand calls are soon made."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of every measurement of calls")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ[VARIABLE] = ""
    result: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "openvino")}},
        "cpus": os.cpu_count(),
        "models": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for spec in arguments.models:
            path = Path(folder, spec.partition(":")[2])
            model = load(spec, 0)
            x = inputs(spec)[:1]
            _built(model, x).save(path)
            result["models"][spec] = {
                "loading": loading(path, arguments.rounds),
                "calls_per_second": calling(path, x, arguments.seconds, arguments.rounds),
            }
        _built(Small().eval(), torch.zeros(1, 3, 24, 24)).save(Path(folder, "small"))
        result["resident_mib"] = growing(Path(folder, "small"), CALLS)
        result["load_average"] = round(os.getloadavg()[0], 1)
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _built(model: torch.nn.Module, x: torch.Tensor) -> Any:
    optimized = eqd.optimize(model, (x,), cost="openvino_int8")
    return optimized.quantize([x], effort="fast").build("openvino", baseline=False)


if __name__ == "__main__":
    main()
