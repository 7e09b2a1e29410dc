"""What OpenVINO takes for a concatenation, INT8 codes on one grid and float, between convolutions.

    python -m benchmarks.concatenations [--write]

Parts are written by 1x1 convolutions and read by one, so that all is channels-last as in whole models; the time is that
of the profiler's Concatenation nodes on one core, the lowest twentieth of many runs, every shape and precision in turns.
Fits `launch + runs / rate + bytes / bandwidth` (a part's channels of one pixel are a run), writes `benchmarks/results/concatenations.md`, and with `--write` the rows
`concat` of the price table.
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

PARTS, CHANNELS, SIDES = (2, 4, 8), (64, 128, 512), (7, 14, 28, 56)
ROUNDS, REPEATS = 20, 4
RESULT = Path(__file__).with_name("results") / "concatenations.md"


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
    """Convolution, `parts` convolutions of its result, their concatenation of `channels`, convolution."""
    data = opset.parameter([1, 16, side, side], np.float32)
    first = convolved(quantized(data, integer), 16, 32, integer, 0)
    each = channels // parts
    joined = opset.concat([convolved(first, 32, each, integer, seed) for seed in range(parts)], 1)
    return openvino.Model([convolved(joined, channels, 32, integer, parts)], [data])


def measure() -> list[dict[str, Any]]:
    """One row per shape and precision, in microseconds."""
    cases = list(itertools.product(PARTS, CHANNELS, SIDES, (True, False)))
    requests = {}
    for case in cases:
        compiled, request = profiled(model_of(*case))
        types = {op.get_friendly_name(): {k: v.astype(str) for k, v in op.get_rt_info().items()}
                 for op in compiled.get_runtime_model().get_ops()}  # fmt: skip
        names = [name for name, info in types.items() if info["layerType"] == "Concatenation"]
        precisions = {types[name]["runtimePrecision"] for name in names}
        assert names, f"no concatenation in {case}"
        assert precisions == {"u8" if case[3] else "f32"}, f"{case} runs in {precisions}"
        requests[case] = (
            request,
            names,
            np.random.default_rng(0).random((1, 16, case[2], case[2]), np.float32),
        )
    times = defaultdict(list)
    order = random.Random(0)
    for _ in range(ROUNDS):
        for case in order.sample(cases, len(cases)):
            request, names, data = requests[case]
            node_times(request, data)  # brings its memory back into the caches, where a whole model has it
            for _ in range(REPEATS):
                taken = node_times(request, data)
                times[case].append(sum(taken[name] for name in names))
    return [
        {"parts": parts, "channels": channels, "side": side, "precision": "int8" if integer else "float32",
         "runs": parts * side * side, "bytes": 2 * channels * side * side * (1 if integer else 4),
         "us": undisturbed(times[parts, channels, side, integer])}
        for parts, channels, side, integer in cases
    ]  # fmt: skip


def fit(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Rates of the price table by precision, least squares on relative errors."""
    found = {}
    for precision in ("float32", "int8"):
        chosen = [row for row in rows if row["precision"] == precision]
        weights = 1 / np.maximum([row["us"] for row in chosen], 5.0)
        matrix = np.asarray([[1.0, row["runs"], row["bytes"]] for row in chosen]) * weights[:, None]
        scale = np.linalg.norm(matrix, axis=0)
        launch, run, byte = (
            nnls(matrix / scale, np.asarray([row["us"] for row in chosen]) * weights)[0] / scale
        )
        found[precision] = {
            "launch_us": round(float(launch), 3), "gops": round(1e-3 / float(run), 3),
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
    rates = fit(rows)
    cpu = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    lines = [
        "# Concatenations in OpenVINO", "",
        f"`python -m benchmarks.concatenations`; {cpu}, one core, openvino {openvino.__version__.partition('-')[0]}.",
        *(f"{name}: {rate['launch_us']} us, {rate['gops']} runs a ns, {rate['gb_s']} GB/s read and written."
          for name, rate in rates.items()),
        "", "| parts | channels | side | INT8 us | fitted | float us | fitted |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    by_shape = defaultdict(dict)
    for row in rows:
        rate = rates[row["precision"]]
        fitted = rate["launch_us"] + row["runs"] / (rate["gops"] * 1e3) + row["bytes"] / (rate["gb_s"] * 1e3)
        by_shape[row["parts"], row["channels"], row["side"]][row["precision"]] = (row["us"], fitted)
    for shape, found in by_shape.items():
        cells = [*shape, *(f"{value:.1f}" for name in ("int8", "float32") for value in found[name])]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    if arguments.write:
        table = json.loads(TABLE.read_text(encoding="utf-8"))
        table["kinds"]["concat"] = rates
        table["provenance"]["concat"] = f"python -m benchmarks.concatenations --write; {cpu}"
        TABLE.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
