"""Q/DQ in exported files by the rules of TensorRT's explicit quantization, on forms that were chosen for it.

The rules are those of NVIDIA's guide (inference-library/quantized-types-explicit-quantization), of the parser
(onnx-tensorrt) and of its issues; each is cited where it is checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqsat_deploy as eqd
from eqsat_deploy.deployment import Batch
from eqsat_deploy.engines.onnx import TENSORRT, export_onnx
from tests.deploy.placing import Attention, Residual, images

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
AXES = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}
POOLS = ("AveragePool", "GlobalAveragePool", "ReduceMean")
# Q(Op(x)) == Op(Q(x)), so that INT8 goes through them.
COMMUTING = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat")
EPILOGUES = ("Relu", "Clip", "Add", "Sigmoid", "Mul", "Gelu")
QUANTIZED = (*WEIGHTED, *POOLS, "Add")
HALF, INT8 = 10, 3


@dataclass(frozen=True)
class File:
    """A graph that can be walked: who writes a tensor, who reads it, and what is constant."""

    graph: Any

    def writer(self, name: str) -> Any:
        return next((node for node in self.graph.node if name in node.output), None)

    def readers(self, name: str) -> list[Any]:
        return [node for node in self.graph.node if name in node.input]

    def constant(self, name: str) -> np.ndarray | None:
        tensor = next((tensor for tensor in self.graph.initializer if tensor.name == name), None)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def of(self, *kinds: str) -> Iterator[Any]:
        return (node for node in self.graph.node if node.op_type in kinds)

    def integer(self, name: str) -> Any:
        """The DequantizeLinear that INT8 at `name` comes from, through what commutes; None where it is not INT8."""
        node = self.writer(name)
        while node is not None and node.op_type in COMMUTING:
            node = self.writer(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def quantized(self, name: str) -> bool:
        """Whether all that reads `name` reads it rounded, after an epilogue that one kernel computes."""
        readers = self.readers(name)
        return bool(readers) and all(
            node.op_type == "QuantizeLinear"
            or (node.op_type in (*EPILOGUES, *COMMUTING) and self.quantized(node.output[0]))
            for node in readers
        )


def violations(file: File) -> list[str]:
    """Every breach of a rule, by the name of its node."""
    return [f"{node.name}: {text}" for node, text in (*_pairs(file), *_weighted(file), *_others(file))]


def _pairs(file: File) -> Iterator[tuple[Any, str]]:
    seen: set[str] = set()
    for node in file.of("QuantizeLinear", "DequantizeLinear"):
        scale, zero = file.constant(node.input[1]), file.constant(node.input[2])
        if scale is None or zero is None:
            yield node, "scales and zero points are constants of the build"
            continue
        if scale.dtype != np.float16:
            yield node, "under strong typing what is not INT8 has the type of scales: FP16"
        if not (scale > 0).all() or not np.isfinite(scale).all():
            yield node, "the parser wants scales above 0"
        if zero.dtype != np.int8 or zero.any():
            yield node, "TensorRT is symmetric: INT8, zero point 0"
        if node.op_type == "DequantizeLinear":
            continue
        if scale.ndim:
            yield node, "activations have one scale (recommendation 7)"
        if node.input[0] in seen:
            yield node, "one tensor has one Q"
        seen.add(node.input[0])
        for reader in file.readers(node.output[0]):
            if reader.op_type != "DequantizeLinear" or list(reader.input[1:]) != list(node.input[1:]):
                yield node, "Q is read by a DQ of the same scale"
        if file.writer(node.input[0]) is not None and file.writer(node.input[0]).op_type == "Pad":
            yield node, "Q between Pad and Conv keeps them apart (NVIDIA/TensorRT#2592)"


def _weighted(file: File) -> Iterator[tuple[Any, str]]:
    for node in file.of(*WEIGHTED):
        inputs = [file.integer(name) for name in node.input[:2]]
        if any(inputs) != all(inputs):
            yield node, "activations and weights are quantized, both or neither (recommendation 1)"
        if len(node.input) > 2 and file.integer(node.input[2]) is not None:
            yield node, "a bias needs no Q, TensorRT makes it INT32"
        weight = inputs[1]
        stored = None if weight is None else file.constant(weight.input[0])
        if stored is None:
            continue
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = AXES.get(node.op_type, 0 if transposed else 1)
        found = [attribute.i for attribute in weight.attribute if attribute.name == "axis"]
        if stored.dtype != np.int8:
            yield node, "weights are stored as INT8"
        if found != [axis]:
            yield node, f"scales of weights are along axis {axis}"
        if file.writer(node.input[1]) is not weight:
            yield node, "DQ of a weight is read by its node"


def _others(file: File) -> Iterator[tuple[Any, str]]:
    for node in file.of("DequantizeLinear"):
        for reader in file.readers(node.output[0]):
            if reader.op_type not in (*QUANTIZED, *COMMUTING):
                yield reader, "has no INT8 kernel, so that its DQ costs a pass (recommendation 6)"
    for node in file.of(*POOLS):
        if file.integer(node.input[0]) is not None and not file.quantized(node.output[0]):
            yield node, "INT8 in, so INT8 out (recommendation 5)"
    for node in file.of("Add"):
        integers = [file.integer(name) for name in node.input]
        if all(integers) and not file.quantized(node.output[0]):
            yield node, "INT8 in, so INT8 out (recommendation 5)"
        raw = [file.writer(name) for name, known in zip(node.input, integers, strict=True) if known is None]
        kinds = [writer.op_type for writer in raw if writer is not None]
        if (
            file.quantized(node.output[0])
            and not any(integers)
            and all(kind == "Conv" for kind in kinds)
            and kinds
        ):
            yield node, "the other operand of a residual is quantized (recommendation 4)"
        if any(integers) and not all(integers) and not set(kinds) <= {"Conv"}:
            yield node, "INT8 beside what no kernel adds it to"
    for node in file.of("Concat"):
        scales = {known.input[1] for name in node.input if (known := file.integer(name)) is not None}
        values = {float(file.constant(name)) for name in scales}  # type: ignore[arg-type]
        if len(values) > 1:
            yield node, "operands of a concatenation have one scale"
    for node in file.of("LayerNormalization", "Softmax"):
        if any(file.integer(name) is not None for name in node.input if name):
            yield node, "is not computed in INT8"


class Activated(nn.Module):
    """SiLU between convolutions, and a residual that starts after one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3 if i == 0 else 256, 256, 3, padding=1) for i in range(3))
        self.head = nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        y = self.c(F.silu(self.b(x))) + x
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Joined(nn.Module):
    """A concatenation, a max-pool, a residual over a strided convolution, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 256, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(256)
        self.one, self.two = nn.Conv2d(256, 128, 1), nn.Conv2d(256, 128, 3, padding=1)
        self.a, self.b = nn.Conv2d(256, 256, 3, stride=2, padding=1), nn.Conv2d(256, 256, 3, padding=1)
        self.skip = nn.Conv2d(256, 256, 1, stride=2)
        self.up = nn.ConvTranspose2d(256, 64, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(torch.cat([F.relu(self.one(x)), F.relu(self.two(x))], 1), 2)
        return self.up(F.relu(self.b(F.relu(self.a(x))) + self.skip(x)))


NETWORKS = {
    "residual": (lambda: Residual(256), 64),
    "activated": (Activated, 32),
    "joined": (Joined, 64),
    "attention": (lambda: Attention(width=512, heads=8, size=64, patch=4), 64),
}


@cache
def exported(name: str) -> bytes:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    data = images(1, size=size, batch=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four samples are few
        form = eqd.optimize(make().eval(), (data[0][:2],), cost="trt_int8", batch=64)
        quantized = form.quantize(data, effort="fast")
    return export_onnx(quantized, lane=TENSORRT, batch=Batch(1, 4, 4)).model


def parsed(name: str) -> File:
    return File(onnx.load_model_from_string(exported(name)).graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_files_keep_the_rules(name: str) -> None:
    file = parsed(name)
    assert violations(file) == []
    integer = [node for node in file.of(*WEIGHTED) if file.integer(node.input[1]) is not None]
    assert len(integer) >= 3
    assert {tensor.data_type for tensor in file.graph.initializer} <= {HALF, INT8, onnx.TensorProto.INT64}
    # Convolutions meet their activation, their sum and what follows without anything between.
    for node in file.of("Conv"):
        if file.integer(node.input[0]) is not None:
            kinds = {reader.op_type for reader in file.readers(node.output[0])}
            assert kinds <= {"Relu", "Clip", "Add", "Sigmoid", "Mul", "QuantizeLinear", "Cast", "MaxPool"}


def planted(graph: Any) -> Iterator[str]:
    """A breach of every kind of reading, made in `graph` one at a time, and mended: the rule that it breaks."""
    convolution = next(n for n in graph.node if n.name == "stem")
    quantize = next(n for n in graph.node if n.name == "relu_quantize")
    pool = next(n for n in graph.node if n.op_type == "ReduceMean")
    add = next(n for n in graph.node if n.op_type == "Add")
    linear = next(n for n in graph.node if n.op_type == "Gemm")
    relu = next(n for n in graph.node if n.op_type == "Relu")
    last = next(n for n in graph.node if n.name == "adaptive_avg_pool2d_quantize")
    for node, position, value, rule in (
        (convolution, 0, "relu", "both or neither"),
        (convolution, 2, convolution.input[0], "a bias needs no Q"),
        (quantize, 0, "x_half", "one tensor has one Q"),
        (linear, 0, pool.output[0], "both or neither"),
        (relu, 0, convolution.input[0], "no INT8 kernel"),
        (last, 0, "x_half", "INT8 in, so INT8 out"),
        (add, 1, "depthwise", "the other operand of a residual"),
        (add, 0, "adaptive_avg_pool2d", "no kernel adds it to"),
    ):
        before = node.input[position]
        node.input[position] = value
        yield rule
        node.input[position] = before


@pytest.mark.slow
def test_planted_breaches_are_found() -> None:
    file = parsed("residual")
    constants = {tensor.name: tensor for tensor in file.graph.initializer}
    for name, value, rule in (
        ("relu_scale", np.float32(0.1), "the type of scales"),
        ("relu_scale", np.float16(0), "above 0"),
        ("relu_scale", np.full(2, 0.1, np.float16), "have one scale"),
        ("relu_zero_point", np.int8(3), "symmetric"),
        ("relu_zero_point", np.uint8(0), "symmetric"),
        ("stem.weight_int8", np.zeros((256, 3, 3, 3), np.float16), "stored as INT8"),
    ):
        before = constants[name].SerializeToString()
        constants[name].CopyFrom(onnx.numpy_helper.from_array(np.asarray(value), name))
        assert any(rule in text for text in violations(file)), rule
        constants[name].ParseFromString(before)
    weight = next(n for n in file.graph.node if n.name == "stem.weight_dequantize")
    weight.attribute[0].i = 1
    assert any("along axis 0" in text for text in violations(file))
    weight.attribute[0].i = 0
    for rule in planted(file.graph):
        assert any(rule in text for text in violations(file)), rule
    assert violations(file) == []


@pytest.mark.slow
def test_operands_of_a_concatenation_are_compared() -> None:
    file = parsed("joined")
    (join,) = file.of("Concat")
    scale = file.integer(join.input[0]).input[1]
    tensor = next(tensor for tensor in file.graph.initializer if tensor.name == scale)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(7, np.float16), scale))
    assert any("one scale" in text for text in violations(file))
