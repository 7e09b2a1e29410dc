"""OpenVINO on a CPU: linear prices per kind of kernel, over a table fitted to kernels measured in whole models.

    price = launch + operations / rate + activations / bandwidth + weights / bandwidth + elements * fused steps

The rates belong to the kind of kernel and its precision, the price of a step (an activation, a join) to the step.
They are sums, not the maximum of a roofline: loading and computing overlap badly on a core with INT8 dot products,
and a sum is what bounded least squares can fit. What fuses is what OpenVINO 2026.4 was seen to do; steps after one
that does not fuse are a pointwise pass of their own. Prices are of one core: more cores divide all but launches.
There is a table for each kind of CPU, with its provenance; `benchmarks/results/openvino_kernels_*.md` says how
well they predict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import inf, prod
from typing import Any

from eqsat_extraction.cost_models import CostModelError
from eqsat_extraction.cost_models.counting import is_free
from eqsat_extraction.cost_models.roofline import attention_parts, gemm
from eqsat_extraction.kernel import WEIGHTED, Epilogue, Kernel, Kind

# Flags of CPUs, as Linux lists them, that a table of prices was fitted on, the fastest first.
TABLES = ("amx_int8", "avx512_vnni", "avx2")
DEFAULT = "avx512_vnni"
# The row of the table that prices a kind of kernel, and those of operators that were measured on their own.
ROWS = {
    Kind.CONVOLUTION: "convolution",
    Kind.PRODUCT: "linear",
    Kind.ATTENTION: "attention",
    Kind.WHOLE_ATTENTION: "attention",  # its own is the price of its parts
    Kind.NORMALIZATION: "layer_norm",
    Kind.REDUCTION: "reduction",
    Kind.POOL: "pool",
    Kind.POINTWISE: "pointwise",
    Kind.MOVEMENT: "copy",
    Kind.CONCAT: "concat",
    Kind.RESAMPLING: "pointwise",
    Kind.LOOKUP: "other",
    Kind.CONVERSION: "quantize",
    Kind.OPAQUE: "other",
}
OWN_ROWS = frozenset({"conv_transpose2d", "linear", "matmul", "channel_norm", "group_norm", "softmax"})
# Priced as one pass over the data, although their kinds have a row: they were not among what it was fitted to.
ONE_PASS = frozenset({"amin", "cumsum", "pad_edges", "take"})
JOINS = frozenset({"add", "sub", "mul", "div", "maximum", "minimum", "pow"})
# Vectors of 16 floats; INT8 dot products take 4 neighbours at once.
LANES, DOT = 16, 4
ROUNDED = "quantize"  # the step of a pass over floats that writes codes
STEM_CHANNELS = 4
CACHE_LINE = 64
# The precision of convolutions in float beside INT8, whose channels lie last: they are slower than where all is float.
BESIDE = "float32 beside int8"
TRANSPOSED_STRIDE = 3  # the greatest with INT8 kernels of transposed convolutions
SLOTS = 7  # an axis is counted in a frame of so many, to whose right end shapes are aligned
# The table's attentions scale their queries in a pass of its own, which OpenVINO 2026.4 leaves out where the scale is
# 1: 0.95 to 0.99 of the time at (heads, positions, size) = (12, 197, 64) and (192, 49, 32) on one core.
UNSCALED = 0.97


@dataclass(frozen=True)
class Work:
    """What a kernel does, in the terms of its price: the features that the table's coefficients multiply.

    `operations` counts multiplications and additions of the anchor, channels padded to whole vectors, and what a
    concatenation copies piece by piece;
    `traffic` bytes of activations, `weights` those of constants; `elements` those of the result; `steps` the
    fused epilogue's functions, and `first` what a pass over the data computes before them;
    `widened` those bytes of the traffic that a kernel on INT8 writes because its result is in float.
    """

    kind: str
    precision: str
    operations: float
    traffic: float
    weights: float
    elements: int
    steps: tuple[str, ...] = ()
    first: str | None = None
    widened: float = 0.0


@dataclass(frozen=True)
class Rates:
    """Coefficients of one kind of kernel: microseconds, 10^9 operations a second, 10^9 bytes a second.

    A rate of 0 stands for a term that costs nothing.
    """

    launch_us: float
    gops: float
    gb_s: float
    weights_gb_s: float

    def price(self, work: Work) -> float:
        """Microseconds, fused steps not counted."""
        price = self.launch_us
        terms = ((work.operations, self.gops), (work.traffic, self.gb_s), (work.weights, self.weights_gb_s))
        for amount, rate in terms:
            if rate:
                price += amount / (rate * 1e3)
        return price


@dataclass(frozen=True)
class OpenVINOModel:
    """The price in microseconds of one node of OpenVINO's executed graph.

    `passes` says whether what a pass computes first is priced as a step like what it computes then, and so is rounding
    what it writes; else the one is in its rates, and the other priced as a conversion. It also says whether what is
    written in float by a kernel on INT8 is as fast as in a pass, or as slow as the kernel's other traffic.
    """

    name: str
    int8: bool
    rates: Mapping[str, Mapping[str, Rates]]
    steps: Mapping[str, float]
    passes: bool = True
    unit: str = "us"
    float_dtype: str = "float32"

    def price(self, kernel: Kernel) -> float:
        """Microseconds of one kernel; 0 for views and constants, infinity where there is no such kernel."""
        if is_free(kernel):
            return 0.0
        if self.refusal(kernel) is not None:
            return inf
        if kernel.kind is Kind.WHOLE_ATTENTION:
            return sum(self.price(part) for part in attention_parts(kernel))
        unscaled = kernel.kind is Kind.ATTENTION and dict(kernel.attributes).get("scale") == 1.0
        share = UNSCALED if unscaled else 1.0
        return share * sum(self._price(part) for part in launches(kernel))

    def refusal(self, kernel: Kernel) -> str | None:
        """Why OpenVINO does not compute `kernel` as described; None where it does."""
        integer = bool(kernel.inputs) and kernel.inputs[0].dtype == "int8"
        if not self.int8 and (integer or kernel.output.dtype == "int8"):
            return "this model prices float32 only"
        if integer and kernel.kind in (Kind.NORMALIZATION, Kind.ATTENTION):
            return f"{kernel.op} computes in float"
        if integer and kernel.op == "conv_transpose2d":
            return _transposed_in_float(kernel)
        return None

    def _price(self, work: Work) -> float:
        known = self.rates.get(work.kind) or self.rates["other"]
        rates = known.get(work.precision) or known["float32"]
        if self.int8 and work.precision == "float32":
            rates = known.get(BESIDE, rates)
        first = (work.first,) if work.first is not None and (self.passes or work.first in JOINS) else ()
        steps = (*first, *work.steps)
        price = rates.price(work)
        if self.passes and work.widened:
            price = rates.price(replace(work, traffic=work.traffic - work.widened))
            price += work.widened / (self.rates["pointwise"]["float32"].gb_s * 1e3)
        if not self.passes and ROUNDED in steps:
            steps = tuple(step for step in steps if step != ROUNDED)
            price += self._price(converted("quantize", work.elements))
        added = sum(self.steps.get(step, self.steps["other"]) for step in steps)
        return price + work.elements * added / 1e6


def _transposed_in_float(kernel: Kernel) -> str | None:
    """Why a transposed convolution computes in float (OpenVINO 2026.4.1, as its executed graph says)."""
    stride, window = kernel.attribute("stride"), kernel.inputs[1].shape[2:]
    assert isinstance(stride, tuple)
    if kernel.attribute("groups") != 1:
        return "transposed convolutions with groups compute in float"
    if max(stride) > TRANSPOSED_STRIDE or any(k < s for k, s in zip(window, stride, strict=True)):
        return f"transposed convolutions of stride {stride} and window {window} compute in float"
    return None


def launches(kernel: Kernel) -> tuple[Work, ...]:
    """The nodes of the executed graph that a kernel becomes: its own, and a pass for steps that do not fuse."""
    fused = fused_steps(kernel)
    steps = kernel.epilogue[:fused]
    rest = kernel.epilogue[fused:]
    output = kernel.output.numel
    reordered = _leaves(kernel) and kernel.kind in WEIGHTED and not rest
    written = output * 4 if rest or reordered else kernel.output.bytes
    codes = (ROUNDED,) if _leaves(kernel) and not reordered else ()
    own = Work(
        kind_of(kernel),
        precision_of(kernel),
        operations(kernel),
        sum(s.bytes for s in kernel.inputs if not s.constant)
        + sum(s.operand.bytes for s in steps if s.operand is not None)
        + written,
        _weights(kernel),
        output,
        tuple(step.op for step in steps) + (() if rest else codes),
        kernel.op if kernel.kind is Kind.POINTWISE else None,
        float(written - output) if precision_of(kernel) == "int8" else 0.0,
    )
    more: tuple[Work, ...] = ()
    if rest:
        traffic = written + sum(s.operand.bytes for s in rest if s.operand is not None) + kernel.output.bytes
        more = (
            Work("pointwise", "float32", 0.0, traffic, 0.0, output, tuple(step.op for step in rest) + codes),
        )
    elif reordered:
        more = (converted("reorder", output),)
    return (own, *more)


def converted(kind: str, elements: int) -> Work:
    """Floats that become codes: `quantize` in any layout, `reorder` in that of products."""
    return Work(kind, "float32", 0.0, 5.0 * elements, 0.0, elements)


def _leaves(kernel: Kernel) -> bool:
    """Whether it computes in float what is read as INT8 next."""
    return (
        kernel.kind is not Kind.CONVERSION
        and precision_of(kernel) != "int8"
        and kernel.output.dtype == "int8"
    )


def fused_steps(kernel: Kernel) -> int:
    """How many leading steps of the epilogue run inside the anchor's own node."""
    joined = 0
    for index, step in enumerate(kernel.epilogue):
        if not _fuses(kernel, step, joined):
            return index
        joined += _joins(kernel, step)
    return len(kernel.epilogue)


def _joins(kernel: Kernel, step: Epilogue) -> bool:
    """Whether `step` reads a tensor as large as the result (not a constant of one value a channel)."""
    return step.operand is not None and not step.operand.constant and step.operand.numel > 1


def _fuses(kernel: Kernel, step: Epilogue, joined: int) -> bool:
    kind = kind_of(kernel)
    if kind in ("pointwise", "join", "other"):
        return True
    if kernel.kind in WEIGHTED:
        if not _joins(kernel, step):
            return True
        return (
            kernel.op == "conv2d" and step.op == "add" and joined == 0 and precision_of(kernel) == "float32"
        )
    return False


def kind_of(kernel: Kernel) -> str:
    """The row of the table that prices a kernel."""
    if kernel.kind is Kind.CONVOLUTION and kernel.op not in OWN_ROWS:
        weight = kernel.inputs[1].shape
        groups = kernel.inputs[0].shape[1] // weight[1]
        if groups > 1:
            return "depthwise" if weight[1] == 1 else "grouped"
        if weight[1] <= STEM_CHANNELS:
            return "stem"
        return "pointwise_convolution" if prod(weight[2:]) == 1 else "convolution"
    if kernel.op == "permute":
        return "transpose" if _gathers(kernel) else "permute"
    if kernel.op in JOINS and len(kernel.inputs) > 1 and all(s.dtype == "int8" for s in kernel.inputs):
        return "join"
    if kernel.op in OWN_ROWS:
        return kernel.op
    return "pointwise" if kernel.op in ONE_PASS else ROWS[kernel.kind]


def precision_of(kernel: Kernel) -> str:
    """`int8` for kernels that read INT8."""
    return "int8" if kernel.inputs and kernel.inputs[0].dtype == "int8" else "float32"


def operations(kernel: Kernel) -> float:
    """Operations of the anchor alone, channels padded to what the vector units process at once."""
    if kernel.kind in WEIGHTED:
        product = gemm(kernel)
        if product.count > 1 and product.channels == 1:
            return 2.0 * _pad(product.count, LANES) * product.m * product.n * product.k
        inner = DOT if precision_of(kernel) == "int8" else 1
        padded = product.k // product.channels * _pad(product.channels, inner)
        return 2.0 * product.count * product.m * _pad(product.n, LANES) * padded
    if kernel.kind is Kind.ATTENTION:
        query, key, value = (spec.shape for spec in kernel.inputs[:3])
        return 2.0 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if kernel.kind is Kind.CONCAT:
        return float(_runs(kernel))
    return kernel.flops - kernel.output.numel * len(kernel.epilogue)


def _weights(kernel: Kernel) -> float:
    """Bytes of constants the anchor reads; those of integer kernels are stored as INT8."""
    integer = precision_of(kernel) == "int8"
    return sum(s.numel if integer and len(s.shape) > 1 else s.bytes for s in kernel.inputs if s.constant)


def _runs(kernel: Kernel) -> int:
    """How many pieces a concatenation copies one by one: what lies together of a part, in images the channels."""
    shape, slot = kernel.output.shape, dict(kernel.attributes).get("slot")
    axis = slot - SLOTS if isinstance(slot, int) else -len(shape)
    image = len(shape) == 4 and axis == -3
    return len(kernel.inputs) * (shape[0] * prod(shape[2:]) if image else prod(shape[:axis]))


def _gathers(kernel: Kernel) -> bool:
    """Whether a permute copies less than a cache line at a time: its last axis moves, or is short."""
    source, result = kernel.inputs[0], kernel.output
    order = dict(kernel.attributes).get("order")
    moved = order[-1] != max(order) if isinstance(order, tuple) else source.shape[-1:] != result.shape[-1:]
    return moved or result.shape[-1] * (result.bytes // max(result.numel, 1)) < CACHE_LINE


def _pad(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@cache
def table(cpu: str = DEFAULT) -> Mapping[str, Any]:
    """The table fitted on CPUs of one of `TABLES` as it is stored, provenance included.

    Raises:
        CostModelError: there is none.
    """
    if cpu not in TABLES:
        raise CostModelError(f"no table of OpenVINO's prices for cpu={cpu!r}: there are {', '.join(TABLES)}")
    text = (files("eqsat_extraction.cost_models") / "tables" / f"openvino_{cpu}.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def model(name: str, int8: bool, data: Mapping[str, Any]) -> OpenVINOModel:
    """The cost model over a table of the stored form."""
    rates = {
        kind: {precision: Rates(**row) for precision, row in rows.items()}
        for kind, rows in data["kinds"].items()
    }
    return OpenVINOModel(name, int8, rates, data["steps_ps"], data.get("passes", False))


def openvino_int8(cpu: str = DEFAULT) -> OpenVINOModel:
    """OpenVINO's CPU plugin, INT8 where it has kernels for it and float32 elsewhere; `cpu` is one of `TABLES`."""
    return model("openvino_int8", True, table(cpu))


def openvino_fp32(cpu: str = DEFAULT) -> OpenVINOModel:
    """OpenVINO's CPU plugin in float32; `cpu` is one of `TABLES`."""
    return model("openvino_fp32", False, table(cpu))
