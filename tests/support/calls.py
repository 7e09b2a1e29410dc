"""Calls of every torch function that rebuilt modules have, each as a module of its own."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import DEFAULT_BATCH, InputSpec, Signature, record
from eqsat_deploy.engines.onnx import ONNXRUNTIME, export_onnx
from eqsat_deploy.engines.openvino_functions import REDUCTIONS
from eqsat_deploy.engines.openvino_graph import written
from eqsat_deploy.engines.openvino_pointwise import BINARY, OF_FLOATS, UNARY
from eqsat_deploy.quantization.equalization import ChannelScale
from eqsat_deploy.quantization.fake_quantize import Clipped, FakeQuantize, QuantizedConv2d

IMAGE, ROWS = (3, 6, 9, 8), (3, 5, 8)


def some(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def calling(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> fx.GraphModule:
    """A module of one call, on an input like `x`, of a function or of the method of that name; tensors are held."""
    root, graph = nn.Module(), fx.Graph()
    given = graph.placeholder("x")

    def held(value: Any) -> Any:
        if value is x:
            return given
        if not isinstance(value, Tensor):
            return value
        name = f"held_{len(list(root.buffers()))}"
        root.register_buffer(name, value)
        return graph.get_attr(name)

    args, kwargs = fx.node.map_aggregate((args, kwargs), held)
    called = graph.call_method if isinstance(function, str) else graph.call_function
    result = called(function, (given, *args), kwargs)
    several = function in ("unbind", torch.unbind, torch.topk, torch.ops.aten.max.dim)
    graph.output(
        tuple(graph.call_function(operator.getitem, (result, i)) for i in (1, 0)) if several else result
    )
    module = fx.GraphModule(root, graph)
    record(module, inputs=(InputSpec("x", (None, *x.shape[1:]), x.dtype),))
    return module


def calls() -> list[tuple[Any, ...]]:
    """A function, its first argument and the others; the last of them may be keywords."""
    image, rows, channels = some(*IMAGE), some(*ROWS), (some(6).abs() + 0.5, some(6))
    within = {torch.acos: rows.tanh(), torch.asin: rows.tanh(), torch.atanh: rows.tanh() * 0.9,
              torch.acosh: rows.abs() + 1.1, torch.log: rows.abs() + 0.1, torch.sqrt: rows.abs()}  # fmt: skip
    truths = (torch.logical_and, torch.logical_or)
    whole_numbers, volume = torch.tensor([[-1, 0, 2], [2, 5, -7], [1, 1, 0]]), some(2, 6, 5, 6, 7)
    parts = some(*ROWS).unflatten(2, (2, 4))
    heads = some(3, 2, 5, 4)
    return [
        *((function, within.get(function, rows)) for function in UNARY),
        *((f, rows, some(5, 1).abs() + 0.5) for f in BINARY if f not in truths),
        *((f, rows.abs(), some(5, 1).abs() + 0.5) for f in OF_FLOATS),
        *((f, rows > 0, some(5, 1) > 0) for f in (*truths, torch.eq)),
        *((f, whole_numbers, 2) for f in (torch.add, torch.sub, torch.mul, torch.eq, torch.ne, torch.lt)),
        (torch.add, rows, torch.arange(8)), (torch.where, rows > 0, some(1, 5, 8), torch.tensor(0.5)),
        *(("to", x, dtype) for x in (rows * 3, whole_numbers) for dtype in (torch.float32, torch.int64, torch.bool)),
        (F.celu, rows, 0.7), (F.selu, rows), (F.softplus, rows), (F.logsigmoid, rows),
        (torch.round, rows * 4), (torch.expm1, rows), (torch.log1p, rows.abs()), (torch.log2, rows.abs() + 0.1),
        (torch.log10, rows.abs() + 0.1), (torch.flip, image, (1, -1)),
        (torch.cumsum, rows, 1, {"dtype": torch.float32}),
        (torch.cumsum, whole_numbers, -1), (torch.logsumexp, rows * 9, (1, 2)), (torch.logsumexp, rows, -1, True),
        (F.rms_norm, rows, (8,), some(8), 1e-3), (F.rms_norm, rows, (5, 8)),
        (operator.getitem, rows, (slice(None), slice(None), torch.tensor([1, -1, 0, 3]))),
        (operator.getitem, rows, (slice(None), torch.tensor([4, 0], dtype=torch.int32))),
        (torch.gather, rows, 0, torch.ones(2, 5, 8, dtype=torch.int64)),
        (torch.conv3d, volume, some(6, 2, 3, 3, 2), some(6), (1, 2, 1), 1, 1, 3),
        (torch.conv_transpose3d, volume, some(6, 4, 3, 2, 2), some(4), 2, (1, 0, 1)),
        *((function, rows.abs() + 0.1, 2.5) for function in (operator.add, operator.mul, torch.pow)),
        (operator.add, rows, torch.tensor(2.0, dtype=torch.float64)),
        *((function, rows, [1, -1], {"keepdim": True}) for function in REDUCTIONS),
        *((function, rows, 1) for function in (torch.mean, "mean")),
        *((F.gelu, rows, {"approximate": how}) for how in ("none", "tanh")),
        (F.elu, rows, 0.7), (F.leaky_relu, rows, 0.2), (torch.prelu, image, channels[0]),
        (torch.clamp, rows, -0.5, 0.5), (torch.clamp, rows, {"max": 0.5}), (torch.clamp, rows, {"min": 0.5}),
        (torch.rsqrt, rows.abs() + 0.1), (torch.reciprocal, rows.abs() + 0.1),
        (torch.conv2d, image, some(4, 6, 3, 3), some(4), 2, (1, 2)),
        (torch.conv2d, image, some(4, 3, 3, 3), None, 1, 0, 2, 2),
        (torch.conv_transpose2d, image, some(6, 4, 3, 2), some(4), (2, 3), (1, 0), (1, 2)),
        (torch.conv_transpose2d, image, some(6, 2, 3, 3), None, 1, 1, 0, 3),
        (F.linear, rows, some(7, 8), some(7)), (F.linear, rows, some(7, 8)),
        (torch.matmul, rows, some(8, 3)), ("matmul", rows, some(8, 3)),
        (F.embedding, torch.tensor([[1, 0, 3], [2, 2, 1]]), some(4, 5)),
        (F.scaled_dot_product_attention, heads, some(1, 2, 6, 4), some(1, 2, 6, 3)),
        (F.scaled_dot_product_attention, heads, heads, heads, {"scale": 0.3, "is_causal": True}),
        (F.scaled_dot_product_attention, heads, heads, heads, some(5, 5), {"scale": 0.3}),
        (F.batch_norm, image, some(6), some(6).abs() + 0.5, *channels),
        (F.layer_norm, rows, (8,), some(8), some(8)), (F.layer_norm, rows, (5, 8), {"eps": 0.1}),
        (F.group_norm, image, 3, *channels), (F.softmax, rows, {"dim": 1}), (F.log_softmax, rows, {"dim": -1}),
        (F.max_pool2d, image, 3, 2, 1, {"ceil_mode": True}), (F.max_pool2d, image, (2, 3), {"dilation": 2}),
        (F.avg_pool2d, image, 3, 2, 1, True, False), (F.avg_pool2d, image, (2, 3), None, (1, 1)),
        (F.adaptive_avg_pool2d, image, 1), (F.adaptive_avg_pool2d, image, (4, 3)),
        *((function, rows, (-1, 4, 10)) for function in (torch.reshape, "reshape", "view")), ("view", rows, -1, 8),
        (torch.flatten, image, 1), ("flatten", parts, 0, 2), (torch.flatten, image, 2, 3),
        (torch.permute, image, (0, 2, 3, -3)), ("permute", image, 0, 3, 1, 2),
        *((function, rows, 1, -1) for function in (torch.transpose, "transpose")),
        *((function, rows, -1, 2, 3) for function in (torch.narrow, "narrow")),
        (torch.ops.aten.slice.Tensor, rows, 2, 1, 7, 2),
        *((function, parts, 2) for function in ("unbind", torch.unbind)),
        (torch.roll, rows, 2, 1), (torch.roll, rows, (1, -1), (1, 2)),
        (F.pad, image, (1, 2, 0, 3), {"value": 0.5}), (F.pad, image, (1, 2, 2, 0), "reflect"),
        (F.pad, image, (1, -1), "constant"), (F.pad, image, (1, 2, 2, 0), "replicate"),
        *((F.interpolate, image, (12, 5), {"mode": mode}) for mode in ("nearest", "bilinear", "bicubic")),
        (F.interpolate, image, 13, {"mode": "bilinear", "align_corners": True}),
        ("expand", rows[:, :1], -1, 4, 8), ("size", rows, 1),
    ]  # fmt: skip


def arguments(case: tuple[Any, ...]) -> tuple[Any, Tensor, list[Any], dict[str, Any]]:
    """One of `calls` as the function, its first argument, the others, and keywords."""
    function, x, *args = case
    kwargs = args.pop() if args and isinstance(args[-1], dict) else {}
    return function, x, args, kwargs


def called(case: tuple[Any, ...]) -> str:
    function, _, *args = case
    words = (v if isinstance(v, str | int | float | dict | tuple) else "" for v in args)
    return f"{getattr(function, '__name__', function)} {' '.join(map(str, words))}"


def sized(x: Tensor, axis: int) -> fx.GraphModule:
    """Repeats a column as often as `x` has rows of an axis."""
    module = calling("expand", torch.zeros(3, 1), 3, 4)
    (call,) = (node for node in module.graph.nodes if node.op == "call_method")
    with module.graph.inserting_before(call):
        module.register_buffer("other", x)
        size = module.graph.call_method("size", (module.graph.get_attr("other"), axis))
    call.args = (call.args[0], -1, size)
    module.recompile()
    return module


class Counting(nn.Module):
    """Reads the size of the batch, and a dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("token", some(1, 1, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.size(0)
        windows = x.reshape(size * 5, 2, 4)
        return torch.cat([self.token.to(x.dtype).expand([size, 1, 8]), x], 1), windows + 1


class Rounded(nn.Module):
    """Quantizers, and what calibration puts beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = ChannelScale(some(6, 1, 1).abs() + 0.5)
        self.clipped = Clipped(some(6, 1, 1).abs())
        self.rounded = FakeQuantize(torch.tensor(0.05), low=0, high=255, zero_point=7)
        self.layer = QuantizedConv2d.from_float(nn.Conv2d(6, 4, 3, groups=2))
        self.register_buffer("table", some(7, 6).abs())
        self.unsigned = FakeQuantize(torch.tensor(0.01), low=0, high=255)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.rounded(self.clipped(self.scaled(x)))) + self.unsigned(self.table)


class Leaves(fx.Tracer):
    """Keeps modules whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def whole(model: nn.Module, *shape: int) -> fx.GraphModule:
    """`model` with its modules as nodes, for an input of that shape behind the batch."""
    module = fx.GraphModule(model, Leaves().trace(model))
    record(module, inputs=(InputSpec("x", (None, *shape), torch.float32),))
    return module


class Chosen(nn.Module):
    """Which rows there are is known when it runs."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.nonzero(x[:, 0, 0] > 0)[:, 0]
        return x.index_select(0, rows).relu() + 1


class Numbered(nn.Module):
    """Numbers the samples of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.size(0)).reshape(-1, 1, 1)


class Dotted(nn.Module):
    """Tensors whose names are the same but for where the dot is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_b = nn.Module(), nn.Module()
        self.a.b_c = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.a_b.c = nn.Parameter(torch.tensor([10.0, 20.0, 30.0]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * self.a.b_c) + torch.sigmoid(x) * self.a_b.c


def reshaped(values: Tensor) -> Tensor:
    """A function that reads sizes by itself."""
    return values.reshape(values.shape) * values.shape[1]


# Not in the tables: a function, a way to call one, a dtype.
UNKNOWN = [
    (F.unfold, some(*IMAGE), (3,)),
    (torch.cumsum, torch.tensor([[1, 2], [3, 4]], dtype=torch.int32), (1,)),
    (F.interpolate, some(*IMAGE), ((12, 5), None, "area")),
    (operator.add, torch.tensor([[1, 2]]), (0.5,)),
    (operator.truediv, torch.tensor([[1, 2]]), (3,)),
    (F.softplus, some(*ROWS), (2.0,)),
    (F.conv2d, some(*IMAGE), (some(4, 6, 3, 3), None, 1, "same")),
    (F.softmax, some(*ROWS), (1, 3, torch.float64)),
    (torch.topk, some(*ROWS), (2, 1)),
    (reshaped, some(*ROWS), ()),
    (torch.ops.aten.max.dim, some(*ROWS), (2,)),
]  # fmt: skip


def in_onnx(module: fx.GraphModule, *inputs: Tensor, opset: int | None = None) -> list[Tensor]:
    """What ONNX Runtime computes of the file, operator by operator."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file = export_onnx(module, lane=ONNXRUNTIME, opset=opset).model
    onnx.checker.check_model(onnx.load_model_from_string(file), full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feeds)]


def in_openvino(module: fx.GraphModule, *inputs: Tensor) -> list[Tensor]:
    """What OpenVINO computes of the module as written."""
    openvino = pytest.importorskip("openvino")
    model = written(module, Signature.of(module, DEFAULT_BATCH))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [torch.from_numpy(value.copy()) for value in compiled([x.numpy() for x in inputs]).values()]


def agree(run: Callable[..., list[Tensor]], module: fx.GraphModule, *inputs: Tensor) -> None:
    """Assert that it computes what the module computes."""
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for wanted, found in zip(expected, run(module, *inputs), strict=True):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, check_dtype=run is in_onnx)
