"""ONNX Runtime on a CPU with INT8: attained rates per kind of kernel, over one table of measurements.

    price = launches * launch_us + max(arithmetic / attained rate, traffic / attained bandwidth)

What runs in integers, and what fuses, is what ONNX Runtime 1.31 and 1.32 were seen to do: a convolution
without a quantized result runs in float (its price as an INT8 kernel is infinite), sums and products of INT8
tensors are kernels of their own, and the bias of a matrix product with a float result is another pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from math import inf

from eqsat_extraction.cost_models.counting import is_free
from eqsat_extraction.cost_models.roofline import gemm
from eqsat_extraction.kernel import ATTENTIONS, WEIGHTED, Kernel, Kind

# FusedConv and QLinearConv take these; the clamps disappear into the range of the result's codes.
CLAMPS = frozenset({"relu", "clamp", "clamp_min"})
ACTIVATIONS = CLAMPS | {"sigmoid", "tanh", "leaky_relu", "hardsigmoid"}
FLOAT_GEMM_EPILOGUES = frozenset({"gelu"})
# What has an 8-bit kernel in ONNX Runtime, its result 8-bit as well: whole kinds, and single functions of others.
INTEGER_KINDS = frozenset({Kind.POOL, Kind.CONCAT})
INTEGER_FUNCTIONS = frozenset({"add", "mul", "mean", "adaptive_avg_pool2d", "permute", "slice"})


@dataclass(frozen=True)
class OnnxRuntimeModel:
    """The price in microseconds of one node of ONNX Runtime's optimized graph.

    `gops` are attained rates in 10^9 operations per second by kind of kernel and dtype.
    """

    gops: Mapping[str, Mapping[str, float]]
    bandwidth_gb_s: float
    launch_us: float
    name: str = "ort_int8"
    unit: str = "us"
    float_dtype: str = "float32"
    int8: bool = True

    def price(self, kernel: Kernel) -> float:
        """Microseconds of one node; 0 for views and constants, infinity where there is no such kernel."""
        if is_free(kernel):
            return 0.0
        if self.refusal(kernel) is not None:
            return inf
        if kernel.kind in ATTENTIONS:
            # Products, softmax and the permutes around them.
            return 4 * self.launch_us + max(self._compute(kernel, "gemm"), self._move(kernel.bytes))
        if kernel.kind not in WEIGHTED:
            return self.launch_us + self._move(kernel.bytes)
        integer = kernel.inputs[0].dtype == "int8"
        traffic = kernel.bytes
        if integer and kernel.inputs[1].constant:
            traffic += kernel.inputs[1].numel - kernel.inputs[1].bytes  # stored as int8
        price = self.launch_us + max(self._compute(kernel, _kind(kernel)), self._move(traffic))
        if integer and kernel.output.dtype != "int8" and len(kernel.inputs) > 2:
            price += self.launch_us + self._move(2 * kernel.output.bytes)  # the bias
        return price

    def refusal(self, kernel: Kernel) -> str | None:
        """Why ONNX Runtime does not run `kernel` as one integer or fused node; None where it does."""
        integer = bool(kernel.inputs) and kernel.inputs[0].dtype == "int8"
        writes_int8 = kernel.output.dtype == "int8"
        steps = [step.op for step in kernel.epilogue]
        if kernel.kind is Kind.CONVERSION:
            return None
        if kernel.kind is Kind.CONVOLUTION:
            if integer != writes_int8:
                return f"an INT8 {kernel.op} also writes INT8; otherwise it runs in float"
            # FusedConv adds one tensor before its activation; QLinearConv adds none.
            rest = steps[1:] if steps[:1] == ["add"] and not integer else steps
            fused = not rest or (len(rest) == 1 and rest[0] in (CLAMPS if integer else ACTIVATIONS))
            return None if fused else f"{', '.join(steps)} does not fuse into {kernel.op}"
        if kernel.kind in WEIGHTED:
            if writes_int8 and not integer:
                return f"{kernel.op} computes in float: its result is quantized by another node"
            unfused = set(steps) - (set() if integer else FLOAT_GEMM_EPILOGUES)
            return f"{', '.join(sorted(unfused))} does not fuse into {kernel.op}" if unfused else None
        if set(steps) - (CLAMPS if writes_int8 else frozenset()):
            return f"{kernel.op} takes no such epilogue: {', '.join(steps)}"
        known = kernel.kind in INTEGER_KINDS or kernel.op in INTEGER_FUNCTIONS
        if (integer or writes_int8) and not (known and integer and writes_int8):
            return f"{kernel.op} with these types runs in float"
        return None

    def _compute(self, kernel: Kernel, kind: str) -> float:
        dtype = "int8" if kernel.inputs[0].dtype == "int8" else "float32"
        return kernel.flops / (self.gops[kind][dtype] * 1e3)

    def _move(self, traffic: int) -> float:
        return traffic / (self.bandwidth_gb_s * 1e3)


def ort_int8() -> OnnxRuntimeModel:
    """ONNX Runtime's CPU execution provider, INT8 where it has kernels for it and float32 elsewhere."""
    table = json.loads((files("eqsat_extraction.cost_models") / "tables" / "onnxruntime.json").read_text())
    return OnnxRuntimeModel(table["gops"], table["bandwidth_gb_s"], table["launch_us"])


def _kind(kernel: Kernel) -> str:
    if kernel.kind is not Kind.CONVOLUTION:
        return "gemm"
    shape = gemm(kernel)
    return "depthwise" if shape.count > 1 and shape.channels == 1 else "convolution"
