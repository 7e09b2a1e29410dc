"""Modules written in OpenVINO's operators: each function computes what torch's does, and nothing is guessed."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import openvino
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, reject, settings
from torch import Tensor, fx, nn

import eqsat_deploy as eqd
from eqsat_deploy.deployment import DEFAULT_BATCH, InputSpec, Signature, deployment, record
from eqsat_deploy.engines import openvino_model as engine
from eqsat_deploy.engines.openvino_functions import BINARY, REDUCTIONS, UNARY
from eqsat_deploy.engines.openvino_graph import written
from eqsat_deploy.engines.openvino_writing import FUNCTIONS, Unwritten
from eqsat_deploy.engines.program import flat_module, prepared
from eqsat_deploy.quantization.equalization import ChannelScale
from eqsat_deploy.quantization.fake_quantize import Clipped, FakeQuantize, QuantizedConv2d, swapped
from tests.deploy.test_random_networks import exportable
from tests.support.models import Fire, Residual, Transformer, randomized
from tests.support.networks import networks

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
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
    several = function in ("unbind", torch.unbind)
    graph.output(
        tuple(graph.call_function(operator.getitem, (result, i)) for i in (1, 0)) if several else result
    )
    module = fx.GraphModule(root, graph)
    record(module, inputs=(InputSpec("x", (None, *x.shape[1:]), x.dtype),))
    return module


def run(module: fx.GraphModule, *inputs: Tensor) -> list[Tensor]:
    """What OpenVINO computes of the module as written."""
    model = written(module, Signature.of(module, DEFAULT_BATCH))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [torch.from_numpy(value.copy()) for value in compiled([x.numpy() for x in inputs]).values()]


def agree(module: fx.GraphModule, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for wanted, found in zip(expected, run(module, *inputs), strict=True):
        torch.testing.assert_close(found.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)


def calls() -> list[tuple[Any, ...]]:
    """A function, its first argument and the others; the last of them may be keywords."""
    image, rows, channels = some(*IMAGE), some(*ROWS), (some(6).abs() + 0.5, some(6))
    within = {torch.acos: rows.tanh(), torch.asin: rows.tanh(), torch.atanh: rows.tanh() * 0.9,
              torch.acosh: rows.abs() + 1.1, torch.log: rows.abs() + 0.1, torch.sqrt: rows.abs()}  # fmt: skip
    positive = {operator.pow, torch.pow, operator.truediv}
    parts = some(*ROWS).unflatten(2, (2, 4))
    heads = some(3, 2, 5, 4)
    return [
        *((function, within.get(function, rows)) for function in UNARY),
        *((function, rows.abs() if function in positive else rows, some(5, 1).abs() + 0.5) for function in BINARY),
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
        (F.scaled_dot_product_attention, heads, some(3, 2, 6, 4), some(3, 2, 6, 3)),
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


def called(case: tuple[Any, ...]) -> str:
    function, _, *args = case
    words = (v if isinstance(v, str | int | float | dict | tuple) else "" for v in args)
    return f"{getattr(function, '__name__', function)} {' '.join(map(str, words))}"


@pytest.mark.parametrize("case", calls(), ids=called)
def test_a_function_computes_what_torch_has(case: tuple[Any, ...]) -> None:
    function, x, *args = case
    kwargs = args.pop() if args and isinstance(args[-1], dict) else {}
    if function == "size":
        assert run_size(x, *args) == x.shape[args[0]]
        return
    agree(calling(function, x, *args, **kwargs), x)


def run_size(x: Tensor, axis: int) -> int:
    module = calling("expand", torch.zeros(3, 1), 3, 4)
    (call,) = (node for node in module.graph.nodes if node.op == "call_method")
    with module.graph.inserting_before(call):
        module.register_buffer("other", x)
        size = module.graph.call_method("size", (module.graph.get_attr("other"), axis))
    call.args = (call.args[0], -1, size)
    module.recompile()
    return run(module, torch.zeros(3, 1))[0].shape[1]


def test_every_function_is_tried() -> None:
    tried = {case[0] for case in calls()} | {torch.cat, operator.getitem}  # of several: below
    assert tried == set(FUNCTIONS)


def test_what_is_concatenated_and_repeated_for_the_batch() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("token", some(1, 1, 8))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            size = x.size(0)
            windows = x.reshape(size * 5, 2, 4)
            return torch.cat([self.token.expand([size, 1, 8]), x], 1), windows + 1

    module = fx.symbolic_trace(Model())
    record(module, inputs=(InputSpec("x", (None, 5, 8), torch.float32),))
    for size in (1, 4):
        agree(module, some(size, 5, 8))


def test_quantizers_and_what_calibration_puts_beside_them() -> None:
    class Model(nn.Module):
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
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    module = fx.GraphModule(root := Model().eval(), Leaves().trace(root))
    record(module, inputs=(InputSpec("x", (None, 6, 9, 8), torch.float32),))
    agree(module, some(*IMAGE))


@pytest.mark.parametrize(
    ("function", "x", "args"),
    [
        (torch.fft.rfft, some(*ROWS), ()),
        (F.interpolate, some(*IMAGE), ((12, 5), None, "area")),
        (operator.add, torch.tensor([[1, 2]]), (0.5,)),
        (operator.add, some(*ROWS), (torch.ones(8, dtype=torch.int64),)),
        (operator.add, some(*ROWS).double(), (1.0,)),
        (F.avg_pool2d, some(*IMAGE), (2, None, 0, False, True, 3)),
        (F.pad, some(*IMAGE), ((1, 1), "circular")),
        (F.softmax, some(*ROWS), (1, 3, torch.float64)),
    ],
)  # fmt: skip
def test_what_is_not_known_is_not_guessed(function: Any, x: Tensor, args: tuple[Any, ...]) -> None:
    module = calling(function, x, *args)
    with pytest.raises(Unwritten):
        written(module, Signature.of(module, DEFAULT_BATCH))


@pytest.mark.parametrize(("model", "side"), [(Fire, 32), (Residual, 32), (Transformer, 8)])
def test_it_is_the_model_that_the_frontend_makes_of_a_tracing(
    model: Callable[[], nn.Module], side: int
) -> None:
    with exportable():
        optimized = eqd.optimize(randomized(model()).eval(), some(2, 3, side, side), cost="openvino_int8")
        quantized = optimized.quantize([some(8, 3, side, side)], effort="fast")
    module, signature = prepared(quantized, DEFAULT_BATCH)
    graph = engine._traced(swapped(module, engine._Marker), signature, engine._decompositions())
    expected, found = (
        engine._transformed(engine._of_graph(graph)),
        engine._transformed(written(module, signature)),
    )

    def computing(made: Any) -> Counter[str]:
        kinds = (op.get_type_name() for op in made.get_ordered_ops())
        return Counter(
            kind for kind in kinds if kind not in ("Constant", "Split", "Slice", "Squeeze", "Reshape")
        )

    assert computing(found) == computing(expected)


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=QUIET)
@given(networks())
def test_networks_that_are_written_compute_what_they_are(network: Any) -> None:
    with exportable():
        optimized = eqd.optimize(network, network.inputs(), cost="openvino_fp32", check=False)
    inputs = deployment(optimized).samples
    try:
        found = run(optimized, *inputs)
    except Unwritten:
        reject()
    with torch.no_grad():
        expected = flat_module(optimized)(*inputs)
    for wanted, got in zip(expected, found, strict=True):
        scale = float(wanted.abs().max()) + 1e-6
        assert float((wanted - got.reshape(wanted.shape)).abs().max()) <= 1e-3 * scale
