"""What serving costs: requests a second over HTTP, by clients at once, beside calls of the engine in this process.

    python -m benchmarks.serving --model torchvision:mobilenet_v2 --json benchmarks/results/serving.json

The model has random weights and is calibrated on noise: only time is measured. Clients are threads of this process with
Triton's HTTP client and binary tensors of one sample; the server is a process of its own on the same machine, so that
clients, server and engine share its cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from threading import Barrier
from typing import Any

import torch
from tritonclient.http import InferenceServerClient, InferInput

import eqsat_deploy as eqd
from benchmarks._models import inputs, load

CLIENTS = (1, 2, 4, 8, 16)


def measure(spec: str, seconds: float) -> dict[str, Any]:
    """Calls a second of the engine alone, and of the server for every number of clients."""
    model = load(spec, 0)
    x = inputs(spec, 0, model, 224)[:1]
    engine = (
        eqd.optimize(model, (x,), cost="openvino_int8")
        .quantize([torch.randn(32, *x.shape[1:])])
        .build("openvino")
    )
    found: dict[str, Any] = {"direct": _rate([lambda: lambda: engine(x)], seconds), "served": {}}
    with tempfile.TemporaryDirectory() as folder:
        engine.save(Path(folder) / "model")
        command = [sys.executable, "-m", "eqsat_deploy", "serve", f"model={folder}/model", "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            started = next(line for line in process.stderr if "running on" in line)
            where = json.loads(started)["event"].partition("http://")[2].split()[0]
            drain = ThreadPoolExecutor(1).submit(process.stderr.read)
            for count in CLIENTS:
                found["served"][count] = _rate([partial(_asking, where, x)] * count, seconds)
            process.terminate()
            drain.result()
    return found


def _asking(where: str, x: torch.Tensor) -> Any:
    client = InferenceServerClient(where)
    given = InferInput(client.get_model_metadata("model")["inputs"][0]["name"], list(x.shape), "FP32")
    given.set_data_from_numpy(x.numpy(), binary_data=True)
    return lambda: client.infer("model", [given])


def _rate(makers: list[Any], seconds: float) -> dict[str, float]:
    """What `makers` make called over and over at once, each made and called in a thread of its own, as Triton's client
    has to be: how many calls a second in all, and milliseconds of one."""

    def repeat(make: Any) -> list[float]:
        call, taken = make(), []
        call()
        ready.wait()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            start = time.perf_counter()
            call()
            taken.append((time.perf_counter() - start) * 1e3)
        return taken

    ready = Barrier(len(makers))
    with ThreadPoolExecutor(len(makers)) as pool:
        taken = [each for times in pool.map(repeat, makers) for each in times]
    tail = quantiles(taken, n=100)[98]
    return {
        "per_second": round(len(taken) / seconds, 1),
        "median_ms": round(median(taken), 3),
        "p99_ms": round(tail, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="torchvision:mobilenet_v2")
    parser.add_argument("--seconds", type=float, default=8.0, help="of every measurement")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found = measure(arguments.model, arguments.seconds)
    packages = ("eqsat-deploy", "torch", "openvino", "uvicorn", "tritonclient")
    result = {
        "model": arguments.model,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        **found,
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
