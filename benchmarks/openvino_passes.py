"""What OpenVINO takes to pass over a tensor once between convolutions: to concatenate it, or to scale and shift it.

    python -m benchmarks.openvino_passes [--write]

Of INT8 codes and of floats. Tensors are written by 1x1 convolutions and read by one, so that all is channels-last as in
whole models; the time is that of the profiler's nodes on one core, the lowest twentieth of many runs, every shape and
precision in turns. Fits `launch + runs / rate + bytes / bandwidth` (a part's channels of one pixel are a run), writes
`benchmarks/results/openvino_passes.md`, and with `--write` the rows `concat`, and `pointwise` of codes, of the price
table. That of floats stays as it was fitted: measured so, INT8 is taken for all of EfficientNet-B0, at 7 dB less and no
faster on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino.opset13 as opset
from scipy.optimize import nnls

from benchmarks.openvino_kernels import TABLE, node_times, profiled, undisturbed

PARTS, CHANNELS, SIDES = (1, 2, 4, 8), (64, 128, 512), (7, 14, 28, 56)  # one part: scaled and shifted
TYPES = {True: "Subgraph", False: "Concatenation"}
ROUNDS, REPEATS = 20, 4
RESULT = Path(__file__).with_name("results") / "openvino_passes.md"


def quantized(value: Any, integer: bool, levels: int = 256) -> Any:
    """`value` on a grid that does not depend on what it is the codes of."""
    low, high = (np.float32(-1), np.float32(1)) if levels == 255 else (np.float32(0), np.float32(4))
    return opset.fake_quantize(value, low, high, low, high, levels) if integer else value


def convolved(value: Any, inputs: int, outputs: int, integer: bool, seed: int) -> Any:
    """A 1x1 convolution with ReLU, its result quantized."""
    weights = np.random.default_rng(seed).uniform(-0.1, 0.1, (outputs, inputs, 1, 1)).astype(np.float32)
    weight = quantized(opset.constant(weights), integer, 255)
    result = opset.relu(opset.convolution(value, weight, [1, 1], [0, 0], [0, 0], [1, 1]))
    return quantized(result, integer)


def model_of(parts: int, channels: int, side: int, integer: bool) -> Any:
    """Convolution, `parts` convolutions of its result, their concatenation of `channels`, convolution; of one part, its
    channels scaled and shifted, and a ReLU, beside another reader."""
    data = opset.parameter([1, 16, side, side], np.float32)
    first = convolved(quantized(data, integer), 16, 32, integer, 0)
    if parts > 1:
        each = channels // parts
        joined = opset.concat([convolved(first, 32, each, integer, seed) for seed in range(parts)], 1)
        return openvino.Model([convolved(joined, channels, 32, integer, parts)], [data])
    scale, shift = np.random.default_rng(1).uniform(0.5, 1.5, (2, 1, channels, 1, 1)).astype(np.float32)
    wide = convolved(first, 32, channels, integer, 1)
    scaled = opset.relu(opset.add(opset.multiply(wide, opset.constant(scale)), opset.constant(shift)))
    readers = [
        convolved(quantized(scaled, integer), channels, 32, integer, 2),
        convolved(wide, channels, 32, integer, 3),
    ]
    return openvino.Model(readers, [data])


def measure() -> list[dict[str, Any]]:
    """One row per shape and precision, in microseconds."""
    cases = list(itertools.product(PARTS, CHANNELS, SIDES, (True, False)))
    requests = {}
    for case in cases:
        compiled, request = profiled(model_of(*case))
        wanted = (TYPES[case[0] == 1], "u8" if case[3] else "f32")
        names = [
            op.get_friendly_name()
            for op in compiled.get_runtime_model().get_ops()
            if tuple(op.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision")) == wanted
        ]
        assert len(names) == 1, f"{case}: {names}"
        requests[case] = (
            request,
            names[0],
            np.random.default_rng(0).random((1, 16, case[2], case[2]), np.float32),
        )
    times = defaultdict(list)
    order = random.Random(0)
    for _ in range(ROUNDS):
        for case in order.sample(cases, len(cases)):
            request, name, data = requests[case]
            node_times(request, data)  # brings its memory back into the caches, where a whole model has it
            times[case] += [node_times(request, data)[name] for _ in range(REPEATS)]
    return [
        {"parts": parts, "channels": channels, "side": side, "precision": "int8" if integer else "float32",
         "runs": parts * side * side, "bytes": 2 * channels * side * side * (1 if integer else 4),
         "us": undisturbed(times[parts, channels, side, integer])}
        for parts, channels, side, integer in cases
    ]  # fmt: skip


def fit(rows: list[dict[str, Any]], concatenations: bool) -> dict[str, dict[str, float]]:
    """Rates of the price table by precision, least squares on relative errors."""
    found = {}
    for precision in ("float32", "int8"):
        chosen = [
            row for row in rows if row["precision"] == precision and (row["parts"] > 1) == concatenations
        ]
        weights = 1 / np.maximum([row["us"] for row in chosen], 5.0)
        terms = [[1.0, row["runs"] * concatenations, row["bytes"]] for row in chosen]
        matrix = np.asarray(terms) * weights[:, None]
        scale = np.maximum(np.linalg.norm(matrix, axis=0), 1e-30)
        launch, run, byte = (
            nnls(matrix / scale, np.asarray([row["us"] for row in chosen]) * weights)[0] / scale
        )
        found[precision] = {
            "launch_us": round(float(launch), 3), "gops": round(1e-3 / float(run), 3) if run else 0,
            "gb_s": round(1e-3 / float(byte), 2), "weights_gb_s": 0,
        }  # fmt: skip
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the rates into the price table")
    arguments = parser.parse_args()
    rows = measure()
    rates = {"pointwise": fit(rows, False), "concat": fit(rows, True)}
    cpu = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    lines = [
        "# Passes over a tensor in OpenVINO", "",
        f"`python -m benchmarks.openvino_passes`; {cpu}, one core, openvino {openvino.__version__.partition('-')[0]}.",
        "Of one part: channels scaled and shifted, with a ReLU; of more: a concatenation.", "",
        *(f"- {kind} {name}: {rate['launch_us']} us, {rate['gops'] or '-'} runs a ns, {rate['gb_s']} GB/s"
          for kind, known in rates.items() for name, rate in known.items()),
        "", "| parts | channels | side | INT8 us | fitted | float us | fitted |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    by_shape: dict[Any, dict[str, tuple[float, float]]] = defaultdict(dict)
    for row in rows:
        rate = rates["concat" if row["parts"] > 1 else "pointwise"][row["precision"]]
        fitted = rate["launch_us"] + row["bytes"] / (rate["gb_s"] * 1e3)
        fitted += row["runs"] / (rate["gops"] * 1e3) if rate["gops"] else 0.0
        by_shape[row["parts"], row["channels"], row["side"]][row["precision"]] = (row["us"], fitted)
    for shape, found in by_shape.items():
        cells = [*shape, *(f"{value:.1f}" for name in ("int8", "float32") for value in found[name])]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    if arguments.write:
        table = json.loads(TABLE.read_text(encoding="utf-8"))
        table["kinds"]["concat"] = rates["concat"]
        table["kinds"]["pointwise"]["int8"] = rates["pointwise"]["int8"]
        command = f"python -m benchmarks.openvino_passes --write; {cpu}"
        table["provenance"]["concat, pointwise int8"] = command
        TABLE.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
