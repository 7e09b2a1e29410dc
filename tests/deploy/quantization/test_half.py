"""Modules in half precision: INT8 grids are float32, everything else has the module's dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from eqsat_deploy.build import build
from eqsat_deploy.deployment import DEFAULT_BATCH
from eqsat_deploy.engines import Engine
from eqsat_deploy.quantization import FakeQuantize, quantize
from tests.deploy.placing import Attention, Residual, images, int8, traced
from tests.support.stages import optimized

HALVES = [torch.float16, torch.bfloat16]


class Mixed(nn.Module):
    """Convolution with BatchNorm, LayerNorm, and layers large enough that INT8 pays."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.Conv2d(32, 64, 3, stride=2)
        self.one, self.two, self.norm = nn.BatchNorm2d(32), nn.BatchNorm2d(64), nn.LayerNorm(64)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.two(self.second(torch.relu(self.one(self.first(x))))))
        return self.down(nn.functional.gelu(self.up(self.norm(x.flatten(2).transpose(1, 2)))))


def decibels(expected: Tensor, found: Tensor) -> float:
    expected, found = expected.double(), found.double()
    return float(10 * torch.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


def halved(model: type[nn.Module], dtype: torch.dtype) -> tuple[fx.GraphModule, fx.GraphModule]:
    """`model`, placed, in `dtype` and in float32, with the same weights."""
    made = []
    for wanted in (dtype, torch.float32):
        torch.manual_seed(0)
        module = model().to(dtype).to(wanted)
        made.append(int8(traced(module, torch.zeros(1, 3, 32, 32, dtype=wanted))))
    return made[0], made[1]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize("model", [Residual, Attention])
def test_half_precision_quantizes_as_float32_does(model: Any, effort: Any, dtype: torch.dtype) -> None:
    narrow, wide = halved(model, dtype)
    batches = [x.to(dtype) for x in images(3)]
    quantized = quantize(narrow, batches, effort=effort)
    reference = quantize(wide, [x.float() for x in batches], effort=effort)
    with torch.no_grad():
        found = quantized(batches[0])
        assert found.dtype == dtype
        assert decibels(reference(batches[0].float()), found) > 28
    assert {p.dtype for p in quantized.parameters()} == {dtype}
    scales = [fake.step for fake in quantized.modules() if isinstance(fake, FakeQuantize)]
    assert scales
    assert {scale.dtype for scale in scales} == {torch.float32}


@pytest.mark.parametrize("observer", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("dtype", HALVES)
def test_every_observer_reads_half_precision(observer: str, dtype: torch.dtype) -> None:
    narrow, _ = halved(Residual, dtype)
    batches = [x.to(dtype) for x in images(2)]
    with torch.no_grad():
        found = quantize(narrow, batches, observer=observer)(batches[0])
        assert decibels(narrow(batches[0]), found) > 20


@pytest.mark.parametrize("dtype", HALVES)
def test_codes_are_those_of_float32(dtype: torch.dtype) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    fake = FakeQuantize(torch.tensor(0.0237))
    assert torch.equal(fake(values), fake(values.float()).to(dtype))


def test_a_channel_of_the_least_half_has_a_scale() -> None:
    weight = torch.full((2, 4), 2.0**-24, dtype=torch.float16)  # a 127th of it is none
    fake = FakeQuantize.of_weight(weight, 0)
    assert bool((fake.step > 0).all())
    assert torch.equal(fake(weight), weight)


def test_ranges_are_chosen_by_squares_beyond_half_precision() -> None:
    steps = []
    for dtype in (torch.float16, torch.float32):
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(64, 64)).to(dtype)
        nn.init.uniform_(layer[0].weight, 0, 8)  # outputs whose squares are beyond 65504
        x = torch.rand(8, 64).to(dtype)
        with torch.no_grad():
            layer[0].weight[:, 0] = 0.01  # type: ignore[index]
        x[0, 0] = 3  # where nearly nothing reads it, one value clipped is a finer step for all others
        module = int8(traced(layer, torch.zeros(1, 64, dtype=dtype)))
        quantizer = quantize(module, [x]).get_submodule("input_1_quantizer")
        assert isinstance(quantizer, FakeQuantize)
        steps.append(float(quantizer.step))
    assert steps[0] == pytest.approx(steps[1], rel=1e-3)
    assert steps[0] < 2 / 255


def test_learnable_scales_train_in_bfloat16() -> None:
    narrow, _ = halved(Residual, torch.bfloat16)
    batches = [x.to(torch.bfloat16) for x in images(2)]
    quantized = quantize(narrow, batches, learnable=True).train()
    quantized(batches[0]).float().square().mean().backward()
    learned = [f.log_scale for f in quantized.modules() if isinstance(f, FakeQuantize)]
    assert all(scale is not None and scale.grad is not None for scale in learned)
    assert any(float(scale.grad.abs().max()) > 0 for scale in learned)  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("dtype", HALVES)
def test_engines_take_and_return_half_precision(runtime: str, dtype: torch.dtype) -> None:
    pytest.importorskip(runtime)
    torch.manual_seed(0)
    model = Mixed().eval()
    for norm in (model.one, model.two):
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    model = model.to(dtype)
    x = torch.randn(4, 3, 24, 24).to(dtype)
    quantized = optimized(model, x[:2], cost="openvino_int8", batch=4).quantize([x])
    engine: Engine = build(quantized, runtime, batch=4, baseline=False)
    found = engine(x)
    assert found.dtype == dtype
    assert decibels(model(x).detach(), found) > 30
    assert engine.report is not None
    assert engine.report["engine"]["realized_int8"] >= 2


@pytest.mark.parametrize("dtype", HALVES)
def test_the_tensorrt_lane_writes_half_precision_with_quantizers(dtype: torch.dtype) -> None:
    onnx = pytest.importorskip("onnx")
    from eqsat_deploy.engines.onnx import TENSORRT, export_onnx

    narrow, _ = halved(Attention, dtype)
    quantized = quantize(narrow, [x.to(dtype) for x in images(2)])
    file = export_onnx(quantized, lane=TENSORRT, batch=DEFAULT_BATCH)
    kinds = [node.op_type for node in onnx.load_model_from_string(file.model).graph.node]
    assert kinds.count("QuantizeLinear") == sum(isinstance(m, FakeQuantize) and m.axis is None
                                               for m in quantized.modules())  # fmt: skip
