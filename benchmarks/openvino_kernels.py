"""Fits the price table of OpenVINO kernels to their times inside whole models.

    python -m benchmarks.openvino_kernels measure raw.jsonl [--models ...]
    python -m benchmarks.openvino_kernels fit raw.jsonl

`measure` takes models through the pipeline (plain and with every rule, float and INT8), builds them, and pairs
every predicted kernel with the executed nodes that cover its graph nodes: kernels are timed in context, where
inputs arrive in the layout and precision that neighbours leave them in. `fit` solves nonnegative least squares
on relative errors per kind of kernel, writes the table of `openvino_int8` and `openvino_fp32`, and reports how
well models and kernels are predicted in `benchmarks/results/openvino_kernels.md`. Node times under the profiler
sum to within 10% of latency (reported per model).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino.opset13
import torch
from torch import nn

import eqsat_extraction.cost_models.openvino as prices
from eqsat_deploy.capture import capture
from eqsat_deploy.engines import Batch, Layer
from eqsat_deploy.engines.openvino import OpenVINOEngine, executed_layers
from eqsat_deploy.freeze import QUANTIZE, freeze
from eqsat_deploy.lower import lower
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.optimizer import PLAIN, registered_rules
from eqsat_deploy.price import kernel_of, price
from eqsat_deploy.quantization import quantize
from eqsat_deploy.rebuild import rebuild
from eqsat_deploy.rules import select
from eqsat_deploy.saturate import saturate
from eqsat_extraction import extract
from eqsat_extraction.kernel import Epilogue, Kernel, TensorSpec
from tests.deploy.placing import Attention, images, torchvision_model

MODELS = {
    "resnet18": 224, "resnet50": 160, "mobilenet_v2": 224, "mobilenet_v3_large": 224, "efficientnet_b0": 192,
    "shufflenet_v2_x1_0": 224, "squeezenet1_1": 224, "regnet_x_400mf": 224, "densenet121": 128, "googlenet": 160,
    "convnext_tiny": 128, "vit_small": 224, "swin_t": 224, "vit_b_16": 224,
}  # fmt: skip
TABLE = Path(prices.__file__).parent / "tables" / prices.TABLE
REPORT = Path(__file__).with_name("results") / "openvino_kernels.md"
ROUNDS, SECONDS = 40, 6.0


def model_of(name: str) -> nn.Module:
    if name != "vit_small":
        return torchvision_model(name)
    torch.manual_seed(0)
    return Attention(width=384, heads=6, depth=12, size=224, patch=16).eval()


def measure(name: str, size: int) -> Iterator[dict[str, Any]]:
    """One row per form and precision: its kernels with the times of the nodes that cover them."""
    x = images(1, size=size, batch=1)[0]
    lowered = lower(capture(model_of(name), (x,), {}))
    for form, rules in (("plain", select(registered_rules(), PLAIN)), ("all", list(registered_rules()))):
        space = freeze(lowered, saturate(lowered, rules))
        for model in (prices.openvino_fp32(), prices.openvino_int8()):
            priced = price(space, model)
            solution = extract(priced.egraph, priced.costs, extractor="greedy")
            # Costs that are the choices' own numbers lead from placed kernels back to them.
            numbered = replace(priced, costs=np.arange(len(space.choices), dtype=float))
            rebuilt = rebuild(numbered, solution)
            module = OptimizedModule(rebuilt.root, rebuilt.graph, "Measured").eval()
            module.meta |= {"inputs": rebuilt.inputs, "placement": rebuilt.placement}
            built = quantize(module, [x]) if model.int8 else module
            engine = OpenVINOEngine.build(built, batch=Batch(1, 1, 1))
            kernels = [(kernel.nodes, space.choices[int(kernel.cost)]) for kernel in rebuilt.placement.kernels]
            described = [(nodes, kernel_of(space, *choice, model, 1)) for nodes, choice in kernels]
            # The graph has no node of its own for these: an engine may do them inside what writes the tensor.
            quantize_choices = [space.choices[i] for i in solution.order(priced.egraph)]
            conversions = [kernel_of(space, *c, model, 1) for c in quantize_choices if c[1].kind == QUANTIZE]
            yield {
                "model": name,
                "size": size,
                "form": form,
                "int8": model.int8,
                "conversions": [asdict(kernel) for kernel in conversions],
            } | _timed(engine, described, x)


def _timed(engine: OpenVINOEngine, kernels: Sequence[tuple[Any, Kernel]], x: torch.Tensor) -> dict[str, Any]:
    owner = {node: index for index, (nodes, _) in reversed(list(enumerate(kernels))) for node in nodes}
    times: dict[int, list[tuple[str, str, float]]] = defaultdict(list)
    unowned = []
    layers, latency, rounds = _profile(engine, x)
    for layer in layers:
        owners = [owner[node] for node in layer.nodes if node in owner]
        if owners:
            # A node that covers several predicted kernels is the heaviest one's; the others cost nothing.
            index = max(owners, key=lambda index: prices.operations(kernels[index][1]))
            times[index].append((layer.type, layer.precision, layer.microseconds))
        else:
            unowned.append((layer.type, layer.precision, layer.microseconds, layer.name))
    return {
        "latency": latency,
        "rounds": rounds,
        "kernels": [
            {"kernel": asdict(kernel), "nodes": times.get(index, [])} for index, (_, kernel) in enumerate(kernels)
        ],
        "unowned": unowned,
    }


def _profile(engine: OpenVINOEngine, x: torch.Tensor) -> tuple[tuple[Layer, ...], float, int]:
    """Node times and latency, both from the rounds in which the machine was undisturbed, and their number."""
    model = engine.model.clone()
    model.reshape(list(x.shape))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    metronome = Metronome()
    rounds: list[tuple[float, float, dict[str, float]]] = []
    stop = time.monotonic() + SECONDS
    while len(rounds) < 30 or (time.monotonic() < stop and sum(r[0] < 1.1 for r in rounds) < ROUNDS):
        before = metronome()
        request.infer({0: x.numpy()})
        between = metronome()
        start = time.perf_counter()
        engine(x)
        latency = (time.perf_counter() - start) * 1e6
        nodes: dict[str, float] = defaultdict(float)
        for entry in request.profiling_info:
            nodes[entry.node_name] += entry.real_time.total_seconds() * 1e6
        rounds.append((max(before, between, metronome()), latency, nodes))
    quiet = sorted(rounds, key=lambda round: round[0])[: max(10, sum(r[0] < 1.1 for r in rounds))]
    times = {name: float(np.median([nodes[name] for *_, nodes in quiet])) for name in quiet[0][2]}
    return executed_layers(compiled, times), float(np.median([latency for _, latency, _ in quiet])), len(quiet)


class Metronome:
    """A fixed piece of work on both cores; calling it says how much slower than at its best it was."""

    best = float("inf")
    request: Any = None

    def __init__(self) -> None:
        if Metronome.request is None:
            opset = openvino.opset13
            data = opset.parameter([512, 512], np.float32)
            product = opset.matmul(data, opset.constant(np.ones((512, 512), np.float32)), False, False)
            compiled = openvino.Core().compile_model(openvino.Model([product], [data]), "CPU")
            Metronome.request = compiled.create_infer_request()
            for _ in range(2000):
                self()

    def __call__(self) -> float:
        start = time.perf_counter()
        Metronome.request.infer()
        taken = time.perf_counter() - start
        Metronome.best = min(Metronome.best, taken)
        return taken / Metronome.best


def read_kernel(data: dict[str, Any]) -> Kernel:
    def spec(item: dict[str, Any]) -> TensorSpec:
        return TensorSpec(tuple(item["shape"]), item["dtype"], item["constant"])

    steps = (Epilogue(s["op"], None if s["operand"] is None else spec(s["operand"])) for s in data["epilogue"])
    attributes = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in data["attributes"])
    inputs = tuple(map(spec, data["inputs"]))
    return Kernel(data["op"], inputs, spec(data["output"]), attributes, tuple(steps), data["flops"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("measure", "fit"))
    parser.add_argument("raw", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    if arguments.action == "measure":
        with arguments.raw.open("a", encoding="utf-8") as stream:
            for name in arguments.models:
                for row in measure(name, MODELS[name]):
                    stream.write(json.dumps(row) + "\n")
                    stream.flush()
                    timed = sum(taken for k in row["kernels"] for *_, taken in k["nodes"])
                    other = sum(taken for _, _, taken, _ in row["unowned"])
                    print(name, row["form"], row["int8"], f"{row['latency']:.0f} = {timed:.0f} + {other:.0f}, {row['rounds']} rounds", flush=True)


if __name__ == "__main__":
    main()
