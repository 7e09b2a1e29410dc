"""Fits the price table of OpenVINO kernels to their times inside whole models.

    python -m benchmarks.openvino_kernels measure raw.jsonl [--models ...]
    python -m benchmarks.openvino_kernels fit raw.jsonl

The table is that of CPUs with the instructions of the one that was measured (`openvino.TABLES`).

`measure` takes models through the pipeline (in float, in INT8, in INT8 wherever there is a kernel for it, so that
what the table of today leaves in float is measured too, and with every other convolution of that in float, which beside
INT8 computes in another layout, slower), builds them, and pairs
every predicted kernel with the executed nodes that cover its graph nodes: kernels are timed in context, where
inputs arrive in the layout and precision that neighbours leave them in. `fit` solves bounded least squares
on relative errors per kind of kernel, writes the table of `openvino_int8` and `openvino_fp32`, and reports how
well models and kernels are predicted in `benchmarks/results/openvino_kernels_*.md`. Node times under the profiler
sum to within 10% of latency (reported per model).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino.opset13 as opset
import torch
from scipy.optimize import lsq_linear
from torch import nn

import eqsat_extraction.cost_models.openvino as prices
from eqsat_deploy.capture import capture
from eqsat_deploy.deployment import deployment, record
from eqsat_deploy.engines.openvino import OpenVINOEngine, executed_layers
from eqsat_deploy.freeze import freeze
from eqsat_deploy.lower import Lowered, lower
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.price import kernel_of, price, specs_of
from eqsat_deploy.processors import saturating
from eqsat_deploy.quantization import quantize
from eqsat_deploy.rebuild import rebuild
from eqsat_deploy.saturate import Saturation, saturate
from eqsat_deploy.search import Limits, Search
from eqsat_deploy.selection import Selection, registered_rules
from eqsat_deploy.targets.openvino import cpu_option
from eqsat_extraction import extract
from eqsat_extraction.kernel import WEIGHTED, Epilogue, Kernel, Kind, TensorSpec
from tests.deploy.placing import Attention, images, torchvision_model

MODELS = {
    "resnet18": 224, "resnet50": 160, "mobilenet_v2": 224, "mobilenet_v3_large": 224, "efficientnet_b0": 192,
    "shufflenet_v2_x1_0": 224, "squeezenet1_1": 224, "regnet_x_400mf": 224, "densenet121": 128, "googlenet": 160,
    "convnext_tiny": 128, "vit_small": 224, "swin_t": 224, "vit_b_16": 224,
}  # fmt: skip
CONVOLUTIONAL = [name for name in MODELS if name not in {"convnext_tiny", "vit_small", "swin_t", "vit_b_16"}]
CPU = cpu_option().get("cpu", prices.DEFAULT)
TABLES = Path(prices.__file__).parent / "tables"
REPORTS = Path(__file__).with_name("results")
PRODUCTS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
RATES = ("launch_us", "gops", "gb_s", "weights_gb_s")
FLOOR = 10.0  # microseconds
ELEMENTS = 1_000_000  # that a step has to be seen on
# Of launches in us, operations and bytes in us each, steps in us an element: what a core can physically do. They
# keep kinds of which the suite has one shape only from being priced as if size did not matter.
BOUNDS = {
    "launch": (0.2, 12.0),
    "operations": (1e-3 / 6000, 1.0),
    "traffic": (1e-3 / 150, 1e-3),
    "weights": (1e-3 / 100, 1e-3 / 4),
    "step": (0.0, 5e-3),
}
REORDER = "_f32_u8_"  # between the names of a node that writes floats and of one that reads their codes
MINIMUM, ROUNDS, SECONDS = 40, 400, 20.0
EAGER = 5.0  # times that float is dearer for than it is, for a form to be in INT8 wherever it can


def model_of(name: str) -> nn.Module:
    if name != "vit_small":
        return torchvision_model(name)
    torch.manual_seed(0)
    return Attention(width=384, heads=6, depth=12, size=224, patch=16).eval()


@dataclass(frozen=True)
class Form:
    """One form of a model in one precision, built: its predicted kernels with their graph nodes, ready to profile."""

    label: dict[str, Any]
    kernels: list[tuple[tuple[str, ...], Kernel]]
    conversions: list[Kernel]
    compiled: Any
    request: Any

    @classmethod
    def build(
        cls,
        label: dict[str, Any],
        lowered: Lowered,
        saturation: Saturation,
        model: prices.OpenVINOModel,
        x: torch.Tensor,
        floats: slice | None = None,
    ) -> Form:
        space = freeze(lowered, saturation)
        priced = price(space, model)
        solution = extract(priced.egraph, priced.costs, extractor="greedy")
        # Costs that are the choices' own numbers lead from placed kernels back to them.
        numbered = replace(priced, costs=np.arange(len(space.choices), dtype=float))
        rebuilt = rebuild(
            Search(lowered, saturation, space, numbered, solution, Selection(saturation.rules), Limits())
        )
        module = OptimizedModule(rebuilt.root, rebuilt.graph, "Measured").eval()
        record(module, inputs=rebuilt.inputs, placement=rebuilt.placement)
        placed = [(kernel.nodes, space.choices[int(kernel.cost)]) for kernel in rebuilt.placement.kernels]
        specs = specs_of(space, model, 1)
        kernels = [(nodes, kernel_of(specs, *choice)) for nodes, choice in placed]
        products = [nodes[0] for nodes, kernel in kernels if is_product(kernel) and integer(kernel)]
        kept = products[floats] if floats else []
        if model.int8:
            module = quantize(module, [x], effort="fast", precision=dict.fromkeys(kept, "float"))
        quantizers = deployment(module).placement.quantizers
        coded = {quantizer.tensor for quantizer in quantizers}
        static = OpenVINOEngine.build(module, options={"threads": 1}).model.clone()
        static.reshape(list(x.shape))
        compiled, request = profiled(static)
        return cls(
            label | {"mixed": floats is not None},
            [(nodes, executed(nodes, kernel, kept, coded)) for nodes, kernel in kernels],
            # The graph has no node of its own for these: an engine may do them inside what writes the tensor.
            [kernel_of(specs, *space.choices[int(one.cost)]) for one in quantizers if one.cost],
            compiled,
            request,
        )

    def row(self, times: dict[str, float]) -> dict[str, Any]:
        """What was measured as JSON values; every executed node with the kernels whose graph nodes it covers."""
        owner = {n: index for index, (nodes, _) in reversed(list(enumerate(self.kernels))) for n in nodes}
        return self.label | {
            "kernels": [asdict(kernel) for _, kernel in self.kernels],
            "conversions": [asdict(kernel) for kernel in self.conversions],
            "nodes": [
                {
                    "name": layer.name,
                    "type": layer.type,
                    "precision": layer.precision,
                    "us": layer.microseconds,
                    "kernels": sorted({owner[node] for node in layer.nodes if node in owner}),
                }
                for layer in executed_layers(self.compiled, times)
            ],
        }


def integer(kernel: Kernel) -> bool:
    return prices.precision_of(kernel) == "int8"


def executed(nodes: Sequence[str], kernel: Kernel, kept: Sequence[str], coded: Set[str]) -> Kernel:
    """A kernel as it is where those with the anchors `kept` are in float, and the tensors `coded` are quantized."""
    if kept and is_product(kernel) and coded.isdisjoint(nodes):
        kernel = kernel.writing("float32")
    return kernel.floating("float32") if nodes[0] in kept else kernel


def profiled(model: Any) -> tuple[Any, Any]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return compiled, compiled.create_infer_request()


def node_times(request: Any, x: np.ndarray[Any, Any]) -> dict[str, float]:
    """Microseconds of every executed node in one run."""
    request.infer({0: x})
    nodes: dict[str, float] = defaultdict(float)
    for entry in request.profiling_info:
        nodes[entry.node_name] += entry.real_time.total_seconds() * 1e6
    return nodes


def metronome() -> Any:
    """A fixed chain of short kernels, to tell how fast the machine is from one minute to the next."""
    data = tensor = opset.parameter([1, 64, 28, 28], np.float32)
    ones = opset.constant(np.full((64, 64, 3, 3), 1e-3, np.float32))
    for _ in range(4):
        tensor = opset.relu(opset.convolution(tensor, ones, [1, 1], [1, 1], [1, 1], [1, 1]))
        tensor = opset.mvn(tensor, opset.constant([1]), True, 1e-5, "inside_sqrt")
    return profiled(openvino.Model([tensor], [data]))[1]


def undisturbed(times: Sequence[float]) -> float:
    """The lowest twentieth: a node is short, and what interrupts it only ever adds."""
    return float(np.quantile(times, 0.05))


def eager() -> prices.OpenVINOModel:
    """The prices of INT8, float `EAGER` times as dear."""
    model = prices.openvino_int8(CPU)
    rates = {
        kind: {
            precision: row if precision == "int8" else prices.Rates(
                row.launch_us * EAGER, row.gops / EAGER, row.gb_s / EAGER, row.weights_gb_s / EAGER
            )
            for precision, row in rows.items()
        }
        for kind, rows in model.rates.items()
    }  # fmt: skip
    return replace(model, rates=rates | {"quantize": model.rates["quantize"]})


def measure(name: str, size: int) -> list[dict[str, Any]]:
    """One row per form: the kernels of the chosen form, with the times of the nodes that cover them.

    The forms and a fixed chain of kernels run in turns on one core; the chain tells how fast the core was.
    """
    x = images(1, size=size, batch=1)[0]
    lowered = lower(capture(model_of(name), (x,), {}))
    saturation = saturate(lowered, list(registered_rules()))
    of = {"model": name, "size": size}
    forms = [
        Form.build(of | {"int8": model.int8}, lowered, saturation, model, x)
        for model in (prices.openvino_fp32(CPU), prices.openvino_int8(CPU), eager())
    ]
    if name in CONVOLUTIONAL:
        forms += [
            Form.build(of | {"int8": True}, lowered, saturation, eager(), x, slice(first, None, 2))
            for first in (0, 1)
        ]
    timed, beat = in_turns([(form.request, x.numpy()) for form in forms])
    return [
        form.row(times) | {"beat": beat, "machine": machine()}
        for form, times in zip(forms, timed, strict=True)
    ]


def in_turns(requests: Sequence[tuple[Any, np.ndarray[Any, Any]]]) -> tuple[list[dict[str, float]], float]:
    """Microseconds by node of every request, undisturbed, and those of the metronome, which runs beside them."""
    beat, still = metronome(), np.zeros((1, 64, 28, 28), np.float32)
    running = [*requests, (beat, still)]
    runs: list[dict[str, list[float]]] = [defaultdict(list) for _ in running]
    stop, rounds = time.monotonic() + SECONDS, 0
    while rounds < MINIMUM or (time.monotonic() < stop and rounds < ROUNDS):
        rounds += 1
        for (request, data), taken in zip(running, runs, strict=True):
            if request is beat:  # which a large model leaves cold caches: they are not the machine's speed
                request.infer({0: data})
            for node, microseconds in node_times(request, data).items():
                taken[node].append(microseconds)
    *timed, beats = [{node: undisturbed(times) for node, times in taken.items()} for taken in runs]
    return timed, sum(beats.values())


def read_kernel(data: dict[str, Any]) -> Kernel:
    def spec(item: dict[str, Any]) -> TensorSpec:
        return TensorSpec(tuple(item["shape"]), item["dtype"], item["constant"])

    steps = (
        Epilogue(s["op"], None if s["operand"] is None else spec(s["operand"])) for s in data["epilogue"]
    )
    attributes = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in data["attributes"])
    inputs = tuple(map(spec, data["inputs"]))
    return Kernel(
        data["op"], Kind(data["kind"]), inputs, spec(data["output"]), attributes, tuple(steps), data["flops"]
    )


class Fit:
    """Least squares on relative errors, over named coefficients within bounds."""

    def __init__(self) -> None:
        self.columns: dict[tuple[str, str, str], int] = {}
        self.rows: list[dict[int, float]] = []
        self.times: list[float] = []
        self.elements: dict[str, int] = defaultdict(int)

    def add(self, works: Sequence[prices.Work], taken: float) -> None:
        row: dict[int, float] = defaultdict(float)
        for work in works:
            amounts = {
                "launch": 1.0,
                "operations": work.operations,
                "traffic": work.traffic - work.widened,
                "weights": work.weights,
            }
            for name, value in amounts.items():
                row[self._column((work.kind, work.precision, name))] += value
            if work.widened:
                row[self._column(("pointwise", "float32", "traffic"))] += work.widened
            for step in (*((work.first,) if work.first else ()), *work.steps):
                # In float32 registers, whatever is stored.
                row[self._column(("step", "", step))] += work.elements
                self.elements[step] += work.elements
        self.rows.append(row)
        self.times.append(taken)

    def solve(self) -> dict[tuple[str, str, str], float]:
        # Small kernels are mostly measurement error: below FLOOR, errors count as if relative to FLOOR.
        weights = 1 / np.maximum(self.times, FLOOR)
        matrix = np.zeros((len(self.rows), len(self.columns)))
        for index, row in enumerate(self.rows):
            for column, value in row.items():
                matrix[index, column] = value * weights[index]
        scale = np.maximum(np.linalg.norm(matrix, axis=0), 1e-30)
        target = np.asarray(self.times) * weights
        bounds = (
            np.asarray([BOUNDS[name if kind != "step" else "step"] for kind, _, name in self.columns]).T
            * scale
        )
        # Reweighting toward absolute deviations, since single nodes are sometimes disturbed.
        robust = np.ones(len(target))
        for _ in range(10):
            solution = lsq_linear(matrix / scale * robust[:, None], target * robust, bounds).x
            robust = 1 / np.sqrt(np.maximum(np.abs(matrix / scale @ solution - target), 0.02))
        # Bounds would price a term that no kernel has: it costs nothing.
        absent = {column for column in range(len(scale)) if not matrix[:, column].any()}
        return {
            key: 0.0 if column in absent else float(solution[column] / scale[column])
            for key, column in self.columns.items()
        }

    def _column(self, key: tuple[str, str, str]) -> int:
        return self.columns.setdefault(key, len(self.columns))


def machine() -> dict[str, Any]:
    """What is measured on."""
    return {
        "cpu": CPU,
        "saturating": saturating(),
        "device": openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"),
        "system": platform.platform(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "openvino": openvino.__version__.partition("-")[0],
        "torch": torch.__version__,
    }


def fit(rows: Sequence[dict[str, Any]], raw: Path) -> None:
    measured = dict(rows[-1]["machine"])
    cpu, device, saturates = (measured.pop(name) for name in ("cpu", "device", "saturating"))
    fastest = min(row["beat"] for row in rows)
    problem = Fit()
    for row in rows:
        row["slowdown"] = row["beat"] / fastest
        for group, taken in groups_of(row):
            if any(kernel.kind is Kind.WHOLE_ATTENTION for kernel in group):
                continue
            if any(prices.kind_of(kernel) == "stem" and not integer(kernel) for kernel in group):
                taken += before_kernels(row)
            if taken > 0:
                problem.add([work for kernel in group for work in works_of(kernel, row)], taken)
        for elements, taken in reorders(row):
            problem.add([prices.converted("reorder", elements)], taken)
    found = problem.solve()
    kinds: dict[str, dict[str, Any]] = defaultdict(dict)
    steps: dict[str, float] = {}
    for (kind, precision, name), value in found.items():
        if kind == "step":
            steps[name] = round(value * 1e6, 2)
        elif name == "launch":
            kinds[kind][precision] = coefficients(found, kind, precision)
    # What was seen on small tensors alone could cost anything; it is as slow as the slowest, and so is what is unknown.
    seen = {name: price for name, price in steps.items() if problem.elements[name] >= ELEMENTS}
    steps = dict.fromkeys([*steps, "other"], max(seen.values())) | seen
    kinds["quantize"] = {"float32": conversion_rates(rows)}
    complete(kinds, saturates)
    table = {
        "device": f"{device}, {cpu}",
        "kinds": {kind: dict(sorted(known.items())) for kind, known in sorted(kinds.items())},
        "passes": True,
        "steps_ps": dict(sorted(steps.items())),
        "provenance": {
            "command": f"python -m benchmarks.openvino_kernels fit {raw.name}",
            **measured,
            "kernels": sum(len(row["kernels"]) for row in rows),
            "models": sorted({row["model"] for row in rows}),
            "kinds": "microseconds, 10^9 operations (channels padded) and bytes a second; 0: the term costs nothing",
            "steps_ps": "picoseconds an element of the result",
        },
    }
    (TABLES / f"openvino_{cpu}.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    report(rows, table, REPORTS / f"openvino_kernels_{cpu}.md")


def form_of(row: dict[str, Any]) -> str:
    return "mixed" if row["mixed"] else "int8" if row["int8"] else "float32"


def groups_of(row: dict[str, Any]) -> list[tuple[list[Kernel], float]]:
    """Kernels that share executed nodes, together with their microseconds at the machine's fastest."""
    kernels = [read_kernel(kernel) for kernel in row["kernels"]]
    leader = list(range(len(kernels)))

    def find(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    for node in row["nodes"]:
        for index in node["kernels"][1:]:
            leader[find(index)] = find(node["kernels"][0])
    times: dict[int, float] = defaultdict(float)
    products = set()
    for node in row["nodes"]:
        if node["kernels"]:
            times[find(node["kernels"][0])] += node["us"] / row["slowdown"]
            if node["type"] in PRODUCTS:
                products.add(find(node["kernels"][0]))
    members: dict[int, list[Kernel]] = defaultdict(list)
    for index, kernel in enumerate(kernels):
        members[find(index)].append(kernel)
    # Where the node of a product lost its name on the way, what is left is not the kernel's time.
    return [
        (group, times[index] if index in products or not any(map(is_product, group)) else 0.0)
        for index, group in members.items()
    ]


def is_product(kernel: Kernel) -> bool:
    return kernel.kind in WEIGHTED


def apart(kernel: Kernel) -> Kernel:
    """A kernel without the conversion of what it writes, where that is a node of another name."""
    return kernel.writing("float32") if is_product(kernel) and not integer(kernel) else kernel


def works_of(kernel: Kernel, row: dict[str, Any]) -> list[prices.Work]:
    """What a kernel's nodes do."""
    own, *more = prices.launches(apart(kernel))
    beside = row["int8"] and kernel.kind is Kind.CONVOLUTION and not integer(kernel)
    return [replace(own, precision=prices.BESIDE) if beside else own, *more]


def unowned(row: dict[str, Any]) -> float:
    """Microseconds of quantizers, layout changes and other nodes that belong to no kernel."""
    return sum(node["us"] for node in row["nodes"] if not node["kernels"]) / row["slowdown"]


def before_kernels(row: dict[str, Any]) -> float:
    """Microseconds of what a form does to its input before the first kernel."""
    before = takewhile(lambda node: not node["kernels"], row["nodes"])
    return sum(node["us"] for node in before) / row["slowdown"]


def reorders(row: dict[str, Any]) -> Iterator[tuple[int, float]]:
    """How many floats of a kernel a node converts, and its microseconds."""
    owners = {node["name"]: node["kernels"] for node in row["nodes"]}
    for node in row["nodes"]:
        writer, conversion, _ = node["name"].partition(REORDER)
        for index in owners.get(writer, ())[:1] if conversion else ():
            yield read_kernel(row["kernels"][index]).output.numel, node["us"] / row["slowdown"]


def conversion_rates(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What nodes cost that belong to no kernel (quantizers and layout changes), over what the forms convert."""
    problem = Fit()
    for row in rows:
        conversions = [read_kernel(kernel) for kernel in row["conversions"]]
        if conversions and not row["mixed"]:
            taken = unowned(row) - sum(us for _, us in reorders(row))
            problem.add([work for kernel in conversions for work in prices.launches(kernel)], taken)
    return coefficients(problem.solve(), "quantize", "float32")


def coefficients(found: Mapping[tuple[str, str, str], float], kind: str, precision: str) -> dict[str, float]:
    launch, *slopes = (
        found[kind, precision, term] for term in ("launch", "operations", "traffic", "weights")
    )
    rates = (round(1e-3 / slope, 2) if slope > 0 else 0 for slope in slopes)
    return dict(zip(RATES, (round(launch, 3), *rates), strict=True))


def complete(kinds: dict[str, dict[str, Any]], saturates: bool) -> None:
    """Kinds that no model of the suite has, from the nearest that one has; unknown operators are slow."""
    neighbours = {
        "conv_transpose2d": "convolution",
        "grouped": "convolution",
        "stem": "convolution",
        "matmul": "linear",
        "attention": "linear",
        "group_norm": "layer_norm",
        "softmax": "layer_norm",
        "copy": "permute",
        "transpose": "permute",
        "channel_norm": "layer_norm",
        "join": "pointwise",
        "concat": "permute",
    }
    for kind, neighbour in neighbours.items():
        for precision in kinds[neighbour]:
            if neighbour == "linear" and precision == "int8" and saturates:
                continue  # only products with weights are convolutions (`engines.openvino_products`)
            kinds[kind].setdefault(precision, kinds[neighbour][precision])
    slowest = kinds["transpose"]["float32"]
    kinds["other"] = {"float32": slowest | {"launch_us": 3 * max(slowest["launch_us"], 2.0)}}


def report(rows: Sequence[dict[str, Any]], table: dict[str, Any], path: Path) -> None:
    models = {int8: prices.model("fitted", int8, table) for int8 in (False, True)}
    lines = [
        "# Prices of OpenVINO kernels: how well they predict",
        "",
        f"`{table['provenance']['command']}`; {table['device']}; openvino {table['provenance']['openvino']}.",
        "One core. Predicted: the sum of the prices of a form's kernels and conversions. Measured: the sum of its",
        "nodes, divided by how much slower a fixed chain of kernels ran then than at its fastest. On a shared machine",
        "the longest kernels are interrupted most, so what measures far above its price was mostly waiting.",
        "",
        "| model | precision | predicted us | measured us | ratio | slowdown |",
        "|---|---|---|---|---|---|",
    ]
    ratios = []
    for row in rows:
        groups, model = groups_of(row), models[row["int8"]]
        predicted = sum(model.price(kernel) for group, _ in groups for kernel in group)
        predicted += sum(model.price(read_kernel(kernel)) for kernel in row["conversions"])
        measured = sum(taken for _, taken in groups) + unowned(row)
        ratios.append(predicted / measured)
        precision = form_of(row)
        lines.append(
            f"| {row['model']} | {precision} | {predicted:.0f} | {measured:.0f} | {ratios[-1]:.2f} | "
            f"{row['slowdown']:.2f} |"
        )
    errors = np.abs(np.asarray(ratios) - 1)
    lines += [
        "",
        f"Error over models: mean {errors.mean():.1%}, median {np.median(errors):.1%}.",
        "",
        "| kernels that share nodes | number | without a node | median error | total predicted / measured |",
        "|---|---|---|---|---|",
    ]
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for group, taken in groups_of(row):
            words = sorted(
                {f"{work.kind} {work.precision}" for kernel in group for work in works_of(kernel, row)}
            )
            price = sum(models[row["int8"]].price(apart(kernel)) for kernel in group)
            kinds[" + ".join(words)].append((price, taken))
    for words, pairs in sorted(kinds.items()):
        timed = [(price, taken) for price, taken in pairs if taken > 0]
        error = np.median([abs(price - taken) / taken for price, taken in timed]) if timed else float("nan")
        total = sum(price for price, _ in timed) / max(sum(taken for _, taken in timed), 1e-9)
        lines.append(f"| {words} | {len(pairs)} | {len(pairs) - len(timed)} | {error:.0%} | {total:.2f} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


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
                    taken = sum(node["us"] for node in row["nodes"])
                    print(
                        name,
                        form_of(row),
                        f"{taken:.0f} us, {row['beat']:.0f}",
                        flush=True,
                    )
                stream.flush()
    else:
        lines = arguments.raw.read_text(encoding="utf-8").splitlines()
        fit([json.loads(line) for line in lines], arguments.raw)


if __name__ == "__main__":
    main()
