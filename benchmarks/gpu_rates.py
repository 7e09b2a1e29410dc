"""What an NVIDIA GPU attains: the rates that a roofline table of `trt_int8` and `trt_fp16` is made of.

    python -m benchmarks.gpu_rates --json OUT

needs torch with CUDA alone. Each rate is that of torch's own kernel of the kind (cuBLAS', cuDNN's, flash attention),
or of the one that `torch.compile` makes where compilers make their own. Each is repeated in a CUDA graph, so that no
launch waits for the CPU; figures are medians of rounds, in random order within each. TensorRT's kernels are others:
rates of memory and of launches are the machine's, those of arithmetic say what its libraries reach.

`launch` is the time of a kernel that does next to nothing, in a row of dependent ones; rates are of the time of a
kernel less that. `GB/s` count what is read and written once. `cached` is a pass over 16 MB, which the L2 cache holds.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, cuda

ROUNDS, REPEATS = 15, 20
Work = Callable[[], Tensor]


@dataclass(frozen=True)
class Measured:
    """A kernel, and how much it does: bytes of memory, or operations."""

    run: Work
    amount: float
    unit: str
    repeats: int = REPEATS


def kernels() -> dict[str, Measured]:
    """One of each kind, with its tensors on the GPU."""
    half = {"device": "cuda", "dtype": torch.float16}
    nothing = torch.zeros(32, **half)
    small, large = torch.randn(2**22, **half), torch.randn(2**28, **half)
    kept, results = torch.empty_like(small), torch.empty_like(large)
    rows = large.view(-1, 1024)
    images = torch.randn(64, 256, 56, 56, **half)
    across = images.to(memory_format=torch.channels_last)
    window, each = torch.randn(256, 256, 3, 3, **half), torch.randn(256, 1, 3, 3, **half)
    nhwc = {"memory_format": torch.channels_last}
    window, each = window.to(**nhwc), each.to(**nhwc)
    side = 8192
    a, b = torch.randn(side, side, **half), torch.randn(side, side, **half)
    a8, b8 = (torch.randint(-127, 128, (side, side), device="cuda", dtype=torch.int8) for _ in range(2))
    query, key, value = (torch.randn(16, 16, 4096, 64, **half) for _ in range(3))
    tuned = torch.compile(_product, mode="max-autotune-no-cudagraphs")
    product, copied = 2.0 * side**3, 2 * large.nbytes
    convolved = 2.0 * 9 * images.numel()
    return {
        "launch": Measured(lambda: nothing.add_(1), 1, "us", 500),
        "cached": Measured(lambda: torch.clamp_min(small, 0, out=kept), 2 * small.nbytes, "GB/s", 200),
        "pointwise": Measured(lambda: torch.clamp_min(large, 0, out=results), copied, "GB/s"),
        "layer norm": Measured(partial(torch.compile(_norm), rows), copied, "GB/s"),
        "softmax": Measured(partial(torch.compile(_softmax), rows), copied, "GB/s"),
        "permute": Measured(partial(torch.compile(_permute), images), 2 * images.nbytes, "GB/s"),
        "product, float16": Measured(lambda: a @ b, product, "TOPS"),
        "product, int8": Measured(lambda: torch._int_mm(a8, b8.t()), product, "TOPS"),
        "product, int8, tuned": Measured(partial(tuned, a8, b8), product, "TOPS"),
        "convolution, float16": Measured(
            lambda: F.conv2d(across, window, padding=1), convolved * 256, "TOPS"
        ),
        "depthwise, float16": Measured(
            lambda: F.conv2d(across, each, padding=1, groups=256), convolved, "TOPS"
        ),
        "attention, float16": Measured(
            lambda: F.scaled_dot_product_attention(query, key, value), 4.0 * 16 * 16 * 4096**2 * 64, "TOPS"
        ),
    }


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def _permute(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch._int_mm(a, b.t())


def recorded(kernel: Measured) -> cuda.CUDAGraph:
    """The kernel in a row, as a CUDA graph."""
    stream = cuda.Stream()
    with cuda.stream(stream):
        for _ in range(3):
            kernel.run()
    cuda.synchronize()
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        for _ in range(kernel.repeats):
            kernel.run()
    return graph


def microseconds(graph: cuda.CUDAGraph, repeats: int) -> float:
    """Of one repetition."""
    before, after = (cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    graph.replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) * 1e3 / repeats


def measure() -> dict[str, dict[str, float | str]]:
    """Microseconds and rate of every kernel."""
    known = kernels()
    graphs = {name: recorded(kernel) for name, kernel in known.items()}
    times: dict[str, list[float]] = {name: [] for name in known}
    order, shuffle = list(known), random.Random(0).shuffle
    for _ in range(ROUNDS):
        shuffle(order)
        for name in order:
            times[name].append(microseconds(graphs[name], known[name].repeats))
    launch = median(times["launch"])
    found: dict[str, dict[str, float | str]] = {}
    for name, kernel in known.items():
        taken = median(times[name])
        found[name] = {
            "us": round(taken, 2),
            "least_us": round(min(times[name]), 2),
            "most_us": round(max(times[name]), 2),
        }
        if kernel.unit != "us":
            rate = kernel.amount / (taken - launch)  # per microsecond
            found[name] |= {
                "rate": round(rate / (1e3 if kernel.unit == "GB/s" else 1e6), 1),
                "unit": kernel.unit,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write every figure")
    arguments = parser.parse_args()
    if not cuda.is_available():
        parser.exit(1, "torch sees no CUDA device\n")
    torch.manual_seed(0)
    about: dict[str, Any] = {
        "gpu": cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    with torch.no_grad():
        found = {"versions": about, "rates": measure()}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
