"""TensorRT on an NVIDIA GPU: a roofline with launch overhead, over one table of rates per device.

    price = launches * launch_us + max(arithmetic / attained rate, traffic / attained bandwidth)

Arithmetic is counted on padded dimensions and rounded up to whole waves of tiles over the multiprocessors.
Where TensorRT has no such kernel the price is infinite, and `refusal` says which of its rules is the reason.
The rules are those of TensorRT 10 and 11: the layer fusion catalog and the recommendations for Q/DQ placement
of NVIDIA's TensorRT documentation, and the INT8 rules of NVIDIA ModelOpt 0.47 (`modelopt/onnx/quantization`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import ceil, inf, prod
from pathlib import Path

from eqsat_extraction.cost_models import CostModelError
from eqsat_extraction.cost_models.counting import is_free
from eqsat_extraction.kernel import ATTENTIONS, ITEM_BYTES, WEIGHTED, Kernel, Kind, TensorSpec

DEFAULT_DEVICE = "A100"

# Kinds that go over their operand more than once, or keep it in registers until they are through.
REDUCING = frozenset({Kind.NORMALIZATION, Kind.REDUCTION, Kind.POOL})
# Priced as pointwise passes although they reduce: no figure of theirs is among those the tables are fitted to.
ONE_PASS = frozenset({"channel_norm", "amax", "amin", "cumsum"})

# Fusion catalog, "Conv + ...": Scale (a constant factor or shift per channel), ElementWise sum, min or max, and
# one of ReLU, Clip or GELU; in this order, each once. Anything else is a pointwise kernel of its own.
CONV_SCALES = frozenset({"add", "sub", "mul", "div"})
CONV_SUMS = frozenset({"add", "minimum", "maximum"})
CONV_ACTIVATIONS = frozenset({"relu", "clamp", "clamp_min", "clamp_max", "gelu", "gelu_tanh"})
# "Tensor cores alignment" in the TensorRT best practices: 8 elements for FP16, 32 for INT8, padded
# implicitly.
ALIGNMENT = {"float16": 8, "int8": 32}
# TensorFormat.CHW4 holds INT8 with channels padded to 4: the format of a first convolution on an image.
IMAGE_CHANNELS = 4
# Rows and columns of the output that one thread block computes, and the share of the attained GEMM rate that
# shared-memory traffic leaves a tile of that size. Tile sizes are those of CUTLASS' default kernels; the
# shares are assumptions.
TILES = ((128, 256, 1.0), (128, 128, 0.95), (128, 64, 0.85), (64, 64, 0.7), (64, 32, 0.5))
SPLITS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class DeviceTable:
    """Rates of one device, from a JSON file that gives the source of every figure under `provenance`.

    `tensor_tops` are dense peaks in 10^12 operations per second by dtype, `vector_tflops` is the FP16 peak
    without tensor cores, `efficiency` the attained share of a peak by kind of kernel. `matches` are words of
    device names.
    """

    device: str
    matches: tuple[str, ...]
    sms: int
    tensor_tops: Mapping[str, float]
    vector_tflops: float
    bandwidth_gb_s: float
    l2_mb: float
    l2_speedup: float
    launch_us: float
    efficiency: Mapping[str, float]
    provenance: Mapping[str, str]


@cache
def device_tables() -> tuple[DeviceTable, ...]:
    """The tables that come with the package, by file name."""
    folder = files("eqsat_extraction.cost_models") / "tables"
    texts = {entry.name: entry.read_text() for entry in folder.iterdir() if entry.name.endswith(".json")}
    return tuple(
        _table(table) for name in sorted(texts) if "tensor_tops" in (table := json.loads(texts[name]))
    )


def device_table(device: str) -> DeviceTable:
    """The table for `device`: a name as CUDA reports it, a short one ("L4"), or the path of a JSON file.

    Raises `CostModelError` when no table matches.
    """
    if device.endswith(".json"):
        return _table(json.loads(Path(device).read_text()))
    words = {word.lower() for word in re.split(r"[^A-Za-z0-9]+", device)}
    for table in device_tables():
        if words & {word.lower() for word in table.matches}:
            return table
    known = ", ".join(word for table in device_tables() for word in table.matches)
    raise CostModelError(
        f"no roofline table for device {device!r}: known are {known}; pass one of them, or the path of a "
        "JSON file with the same keys as eqsat_extraction/cost_models/tables/a100.json"
    )


def _table(fields: dict[str, object]) -> DeviceTable:
    missing = set(DeviceTable.__dataclass_fields__) ^ set(fields)
    if missing:
        raise CostModelError(
            f"device table {fields.get('device')!r}: wrong or missing keys {sorted(missing)}"
        )
    return DeviceTable(**{**fields, "matches": tuple(fields["matches"])})  # type: ignore[arg-type]


def trt_int8(device: str = DEFAULT_DEVICE) -> Roofline:
    """TensorRT with INT8 Q/DQ and FP16 elsewhere; `device` as for `device_table`."""
    return Roofline("trt_int8", device_table(device), int8=True)


def trt_fp16(device: str = DEFAULT_DEVICE) -> Roofline:
    """TensorRT in FP16 throughout; `device` as for `device_table`."""
    return Roofline("trt_fp16", device_table(device), int8=False)


@dataclass(frozen=True)
class Gemm:
    """A weighted kernel: `count` products of m x k by k x n; `channels` is k over the window."""

    count: int
    m: int
    n: int
    k: int
    channels: int

    @property
    def window(self) -> int:
        """Positions of a convolution's window that each of the `channels` is read at; 1 when linear."""
        return self.k // self.channels


def gemm(kernel: Kernel) -> Gemm:
    """The matrix product that a convolution, `linear` or `matmul` kernel computes, by implicit GEMM.

    Shapes: conv2d reads (N, IC, H, W) and (OC, IC/groups, KH, KW); conv_transpose2d (IC, OC/groups, KH, KW);
    linear (..., K) and (N, K); matmul (..., M, K) and (..., K, N).
    """
    source, weight, output = kernel.inputs[0].shape, kernel.inputs[1].shape, kernel.output.shape
    if kernel.op in ("conv_transpose2d", "conv_transpose3d"):
        groups = output[1] // weight[1]
        channels = source[1] // groups
        return Gemm(groups, source[0] * prod(source[2:]), prod(weight[1:]), channels, channels)
    if kernel.kind is Kind.CONVOLUTION:
        groups = source[1] // weight[1]
        return Gemm(groups, output[0] * prod(output[2:]), weight[0] // groups, prod(weight[1:]), weight[1])
    if kernel.op == "linear":
        return Gemm(1, prod(source[:-1]), weight[0], weight[1], weight[1])
    if len(weight) == 2:
        return Gemm(1, prod(source[:-1]), weight[1], weight[0], weight[0])
    return Gemm(prod(output[:-2]), source[-2], weight[-1], source[-1], source[-1])


@dataclass(frozen=True)
class Roofline:
    """The price in microseconds of one kernel of a TensorRT engine on the device of `table`."""

    name: str
    table: DeviceTable
    int8: bool
    unit: str = "us"
    float_dtype: str = "float16"

    def price(self, kernel: Kernel) -> float:
        """Microseconds of one launch; 0 for views and constants, infinity where there is no kernel."""
        if is_free(kernel):
            return 0.0
        if self.refusal(kernel) is not None:
            return inf
        if kernel.kind is Kind.WHOLE_ATTENTION:
            return sum(self.price(part) for part in attention_parts(kernel))
        if kernel.kind is Kind.ATTENTION:
            return self._attention(kernel)
        if kernel.kind in WEIGHTED:
            return self._weighted(kernel)
        arithmetic = kernel.flops / self._rate(self.table.vector_tflops, "pointwise")
        return self.table.launch_us + max(arithmetic, self._move(*self.traffic(kernel), self._kind(kernel)))

    def refusal(self, kernel: Kernel) -> str | None:
        """Why TensorRT does not run `kernel` as one launch; None where it does."""
        integer = kernel.inputs[:1] and kernel.inputs[0].dtype == "int8"
        writes_int8 = kernel.output.dtype == "int8"
        if not self.int8 and (integer or writes_int8):
            return f"{self.name} has no INT8 kernels"
        if kernel.kind is Kind.CONVERSION:
            return None
        if kernel.kind in WEIGHTED:
            return _weighted_refusal(kernel)
        if integer and kernel.kind is Kind.NORMALIZATION:
            return f"{kernel.op} computes in float; INT8 is possible as its output type only"
        if (integer or writes_int8) and (kernel.kind in ATTENTIONS or kernel.kind is Kind.OPAQUE):
            # Fused INT8 attention needs Q/DQ after the softmax, head sizes 16, 32 or 64 and at most 512
            # positions, and was measured slower than FP16 where it did fuse; ModelOpt leaves both products in
            # FP16 as well.
            return f"{kernel.op} stays in FP16"
        if writes_int8 and kernel.kind is Kind.NORMALIZATION and kernel.op not in ONE_PASS:
            return None
        # Recommendation 5: a layer without weights that reads INT8 writes INT8, and the reverse.
        if any((spec.dtype == "int8") != writes_int8 for spec in _data(kernel)):
            return f"{kernel.op} has no weights: all that it reads and writes is INT8, or nothing is"
        return None

    def traffic(self, kernel: Kernel) -> tuple[float, float]:
        """Bytes of parameters and of activations; floats in FP16, weights of an INT8 kernel in INT8."""
        integer = kernel.inputs[:1] and kernel.inputs[0].dtype == "int8"
        parameters = [spec for spec in _operands(kernel) if spec.constant]
        size = float(sum(self._size(spec) for spec in parameters))
        if integer and kernel.kind in WEIGHTED and kernel.inputs[1].constant:
            size += kernel.inputs[1].numel - self._size(kernel.inputs[1])
        return size, float(sum(self._size(spec) for spec in [*_data(kernel), kernel.output]))

    def _size(self, spec: TensorSpec) -> int:
        item = 2 if spec.dtype.startswith(("float", "bfloat")) else ITEM_BYTES.get(spec.dtype, 4)
        return spec.numel * item

    def _rate(self, peak: float, kind: str) -> float:
        return peak * 1e6 * self.table.efficiency[kind]  # operations per microsecond

    def _move(self, parameters: float, activations: float, kind: str) -> float:
        """Microseconds of traffic; activations are in the L2 cache if half of it holds them."""
        bandwidth = self.table.bandwidth_gb_s * 1e3 * self.table.efficiency[kind]
        cached = activations <= self.table.l2_mb * 1e6 / 2
        return (parameters + activations / (self.table.l2_speedup if cached else 1.0)) / bandwidth

    def _kind(self, kernel: Kernel) -> str:
        if kernel.op == "permute":  # reads or writes with a stride; other movement copies in long runs
            return "permute"
        return "reduction" if kernel.kind in REDUCING and kernel.op not in ONE_PASS else "pointwise"

    def _weighted(self, kernel: Kernel) -> float:
        shape = gemm(kernel)
        integer = kernel.inputs[0].dtype == "int8"
        depthwise = kernel.kind is Kind.CONVOLUTION and shape.count > 1 and shape.channels == 1
        # ModelOpt leaves a matrix-vector product (m or n is 1) in FP16: tensor cores do not help it, and INT8
        # gains nothing.
        vector = kernel.kind is not Kind.CONVOLUTION and (shape.m == 1 or shape.n == 1)
        if integer and (vector or (depthwise and kernel.output.dtype != "int8")):
            # Depthwise kernels that read INT8 and write float are poorly covered (ModelOpt quantizes their
            # output, too, to get INT8 ones): priced as a dequantization and the FP16 kernel.
            source, weight, *rest = kernel.inputs
            floating = replace(source, dtype=self.float_dtype)
            return self.price(Kernel("dequantize", Kind.CONVERSION, (source,), floating)) + self._weighted(
                replace(kernel, inputs=(floating, replace(weight, dtype=self.float_dtype), *rest))
            )
        if depthwise or vector:
            rate = self._rate(self.table.vector_tflops, "depthwise")
            # Four INT8 products an instruction (DP4A) against two FP16 ones.
            return self._launched(kernel, kernel.flops / (2 * rate if integer else rate))
        return self._launched(kernel, self._tiled(shape, "int8" if integer else "float16"))

    def _launched(self, kernel: Kernel, arithmetic: float) -> float:
        return self.table.launch_us + max(arithmetic, self._move(*self.traffic(kernel), "pointwise"))

    def _tiled(self, shape: Gemm, dtype: str) -> float:
        """Microseconds of arithmetic: whole waves of tiles over all SMs, best tile and split of k."""
        align = ALIGNMENT[dtype]
        channels = IMAGE_CHANNELS if shape.channels <= IMAGE_CHANNELS else _up(shape.channels, align)
        k = _up(channels * shape.window, align)
        n = _up(shape.n, align)
        rate = self._rate(self.table.tensor_tops[dtype], f"gemm_{dtype}") / self.table.sms
        return min(
            ceil(shape.count * ceil(shape.m / rows) * ceil(n / columns) * split / self.table.sms)
            * (2.0 * rows * columns * _up(ceil(k / split), align) / (rate * share))
            # Partial sums of a split are written and read once more, in 4 bytes.
            + (self._move(0.0, 8.0 * shape.count * shape.m * n * split, "pointwise") if split > 1 else 0.0)
            for rows, columns, share in TILES
            for split in SPLITS
        )

    def _attention(self, kernel: Kernel) -> float:
        """Fused attention over (..., S, H) operands, or three kernels where it does not fuse."""
        query, keys = kernel.inputs[0].shape, kernel.inputs[1].shape
        heads, rows, size, columns = prod(query[:-2]), query[-2], query[-1], keys[-2]
        rate = self._rate(self.table.tensor_tops["float16"], "attention")
        blocks = heads * ceil(rows / 64)
        arithmetic = 4.0 * heads * rows * columns * size / rate * _waste(blocks, self.table.sms)
        parameters, activations = self.traffic(kernel)
        if 16 <= size <= 256 and size % 8 == 0:  # NVIDIA's conditions for fused FP16 attention
            return self.table.launch_us + max(arithmetic, self._move(parameters, activations, "pointwise"))
        # Without fusion the scores are written and read twice: product, softmax, product.
        scores = 4.0 * heads * rows * columns * 2
        return 3 * self.table.launch_us + max(
            arithmetic, self._move(parameters, activations + scores, "reduction")
        )


def _weighted_refusal(kernel: Kernel) -> str | None:
    integer, writes_int8 = kernel.inputs[0].dtype == "int8", kernel.output.dtype == "int8"
    if writes_int8 and not integer:
        return f"{kernel.op} computes in float: its result is quantized by another launch"
    if (
        kernel.op == "matmul"
        and integer
        and kernel.inputs[1].dtype != "int8"
        and not kernel.inputs[1].constant
    ):
        return "matmul reads one operand in INT8 and the other in float"
    if kernel.kind is Kind.CONVOLUTION and (reason := _catalog_refusal(kernel)) is not None:
        return reason
    # Recommendation 4: the precision of the residual operand decides what the fused kernel writes.
    added = (
        step.operand for step in kernel.epilogue if step.operand is not None and not step.operand.constant
    )
    if any((operand.dtype == "int8") != writes_int8 for operand in added):
        return "the residual operand and the result must have the same precision"
    return None


def _catalog_refusal(kernel: Kernel) -> str | None:
    stage = 0
    for step in kernel.epilogue:
        if step.operand is not None and not step.operand.constant:
            needed, following, known = 0, 1, CONV_SUMS
            if step.operand.shape[1:] != kernel.output.shape[1:]:
                return "the sum after a convolution must not broadcast, except over the batch"
        elif step.op in CONV_ACTIVATIONS:
            needed, following, known = 1, 2, CONV_ACTIVATIONS
        else:
            needed, following, known = 0, 0, CONV_SCALES
        if step.op not in known or stage > needed:
            return f"{step.op} is not in the fusion catalog at this place after a convolution"
        if step.op.startswith("gelu") and kernel.inputs[0].dtype != kernel.output.dtype:
            return "Conv + GELU fuses only when input and output have the same precision"
        stage = following
    return None


def _operands(kernel: Kernel) -> list[TensorSpec]:
    return [*kernel.inputs, *(step.operand for step in kernel.epilogue if step.operand is not None)]


def _data(kernel: Kernel) -> list[TensorSpec]:
    return [spec for spec in _operands(kernel) if not spec.constant]


def attention_parts(kernel: Kernel) -> list[Kernel]:
    """The launches of self-attention with its projections, or without them (`packed_attention`).

    Reads (batch, positions, width), or 3 x width when packed; attributes `heads`, and `scale` when packed.
    """
    source, output = kernel.inputs[0], kernel.output
    batch, positions, width = output.shape
    heads = int(kernel.attribute("heads"))  # type: ignore[arg-type]
    part = replace(output, shape=(batch * heads, positions, width // heads))
    scale = tuple((key, value) for key, value in kernel.attributes if key == "scale")
    attention = Kernel("attention", Kind.ATTENTION, (part, part, part), part, scale)
    if kernel.op == "packed_attention":
        return [attention]

    def linear(features: int) -> Kernel:
        weight = TensorSpec((features, width), source.dtype, constant=True)
        result = replace(output, shape=(batch, positions, features))
        return Kernel("linear", Kind.PRODUCT, (source, weight), result, flops=2.0 * result.numel * width)

    return [linear(3 * width), attention, linear(width)]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _waste(blocks: int, sms: int) -> float:
    """How much longer whole waves of thread blocks take than blocks spread evenly over the SMs."""
    return ceil(blocks / sms) * sms / blocks
