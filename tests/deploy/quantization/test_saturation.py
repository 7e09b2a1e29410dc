"""INT8 where the products of two neighbours are added in 16 bits, which saturate."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from eqsat_deploy.engines.onnxruntime import ONNXRuntimeEngine
from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.processors import saturating
from eqsat_deploy.quantization import FakeQuantize, finetune, quantize
from eqsat_deploy.quantization.fake_quantize import Layer
from eqsat_deploy.targets import find_target
from tests.deploy.placing import MATMULS, WEIGHTED, Residual, images, int8, traced

SATURATING = IntegerGrid(unsigned=True, asymmetric=True, saturating=True)
INT16 = np.iinfo(np.int16)


def neighbours(codes: np.ndarray, axis: int, groups: int, unrolled: bool) -> list[tuple[int, int]]:
    """The codes of a weight that an instruction adds two of, output by output and group by group."""
    # A transposed convolution's are (inputs, outputs of a group, ...).
    blocks = [block.swapaxes(0, 1) for block in np.split(codes, groups)] if axis == 1 else [codes]
    found = []
    for row in (row for block in blocks for row in block):
        window = np.moveaxis(row, 0, -1)
        lines = [window.reshape(-1)] if unrolled else list(window.reshape(-1, window.shape[-1]))
        found += [(int(a), int(b)) for line in lines for n, (a, b) in enumerate(pairwise(line)) if n % 2 == 0]
    return found


def worst(pairs: list[tuple[int, int]]) -> int:
    """The sum of products with codes of activations, 0 to 255, that is furthest from 0."""
    return max((abs(255 * (max(a, 0) + max(b, 0))) for a, b in pairs), default=0)


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """A weight, the axis of its outputs and its groups, some as of depthwise layers."""
    groups, inputs, outputs = (draw(st.integers(1, limit)) for limit in (4, 6, 3))
    size = draw(st.integers(1, 3))
    axis = draw(st.sampled_from([0, 1]))
    shape = (groups * outputs, inputs, size, size) if axis == 0 else (groups * inputs, outputs, size, size)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    signed = draw(st.sampled_from([-1.0, 0.0, 1.0]))  # of one sign, the worst
    return (values if signed == 0 else signed * values.abs()), axis, groups


@settings(deadline=None, max_examples=200)
@given(weights())
def test_no_two_neighbours_of_a_rounded_weight_saturate(case: tuple[Tensor, int, int]) -> None:
    weight, axis, groups = case
    fake = FakeQuantize.of_weight(weight, axis, groups=groups)
    step = fake.step.reshape([-1 if dim == axis else 1 for dim in range(4)])
    codes = (fake(weight) / step).round().int().numpy()
    depthwise = groups > 1 and weight.shape[:2] == (groups, 1)
    for sign in (1, -1):
        assert worst(neighbours(sign * codes, axis, groups, unrolled=False)) <= INT16.max
        if axis == 0 and not depthwise:
            assert worst(neighbours(sign * codes, axis, groups, unrolled=True)) <= INT16.max


def test_scales_grow_by_what_neighbours_of_one_sign_need_and_no_more() -> None:
    weight = torch.tensor(
        [[4.0, 0.0, 0.0, 4.0], [4.0, 4.0, 0.0, 0.0], [4.0, -4.0, 0.0, 0.0], [4.0, 1.0, -2.0, -2.0]]
    )
    plain, bounded = FakeQuantize.of_weight(weight, 0), FakeQuantize.of_weight(weight, 0, groups=1)
    assert (bounded.step / plain.step).tolist() == pytest.approx([1, 2, 1, 1.25])


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 4, 3, groups=4)])
def test_depthwise_weights_keep_all_their_codes(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    axis = int(isinstance(layer, nn.ConvTranspose2d))
    assert torch.equal(
        FakeQuantize.of_weight(layer.weight, axis, groups=4).step,
        FakeQuantize.of_weight(layer.weight, axis).step,
    )


def layers(module: fx.GraphModule) -> list[Layer]:
    return [layer for layer in module.modules() if isinstance(layer, Layer)]


def excess(module: fx.GraphModule) -> float:
    """How much smaller some scale of a weight is than it has to be for no neighbours to saturate."""
    found = []
    for layer in layers(module):
        fake = layer.weight_quantizer
        groups = getattr(layer, "groups", 1)
        least = FakeQuantize.of_weight(layer.weight, fake.axis or 0, groups=groups).step
        found.append(float((least / fake.step).max()))
    return max(found)


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_every_weight_of_a_module_is_bounded_where_the_grid_says_so(effort: str) -> None:
    torch.manual_seed(0)
    module = int8(traced(Residual(), torch.zeros(1, 3, 32, 32)))
    assert excess(quantize(module, images(4), effort=effort, grid=SATURATING)) == pytest.approx(1, abs=1e-5)
    assert excess(quantize(module, images(4), effort=effort, grid=IntegerGrid(unsigned=True))) > 1.1


@pytest.mark.parametrize("learnable", [False, True])
def test_training_leaves_weights_bounded(learnable: bool) -> None:
    torch.manual_seed(0)
    module = int8(traced(Residual(), torch.zeros(1, 3, 32, 32)))
    quantized = quantize(module, images(2), effort="fast", grid=SATURATING, learnable=learnable)
    trained = finetune(quantized, module, images(4), epochs=3, rate=1e-2)
    moved = [
        not torch.equal(a.weight, b.weight) for a, b in zip(layers(quantized), layers(trained), strict=True)
    ]
    assert all(moved)
    assert excess(trained) <= 1 + 1e-5


class Scores(nn.Module):
    """The products of two activations, and of one with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.query(x), self.key(x).transpose(1, 2))


def rows(count: int) -> list[Tensor]:
    return [torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_the_second_operand_of_a_product_takes_half_the_codes(effort: str) -> None:
    torch.manual_seed(0)
    module = int8(traced(Scores(), torch.zeros(1, 8, 16)), (nn.Linear, *MATMULS))
    steps = [
        {
            name: float(child.step)
            for name, child in quantize(module, rows(2), effort=effort, grid=grid).named_modules()
            if isinstance(child, FakeQuantize) and child.axis is None
        }
        for grid in (IntegerGrid(), IntegerGrid(saturating=True))
    ]
    assert {name: steps[1][name] / steps[0][name] for name in steps[0]} == pytest.approx(
        {"x_quantizer": 1, "query_quantizer": 1, "key_quantizer": 2}, rel=0.02
    )


class Loud(nn.Module):
    """Layers of positive weights, all as great, that read what is at its greatest everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, stride=2)
        self.grouped, self.spread = nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.head = nn.Linear(12, 4)
        for layer in self.children():
            nn.init.constant_(layer.weight, 0.1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(self.conv(self.stem(x).relu()).relu()).relu()
        return self.head(self.spread(y).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [OpenVINOEngine, ONNXRuntimeEngine])
def test_engines_of_this_machine_compute_what_would_saturate(
    kind: type[OpenVINOEngine] | type[ONNXRuntimeEngine],
) -> None:
    module = int8(traced(Loud(), torch.zeros(1, 3, 16, 16)), WEIGHTED)
    batches = [torch.full((2, 3, 16, 16), value) for value in (0.5, 1.0)]
    quantized = quantize(module, batches, grid=find_target(kind.name).grid_here, effort="fast")
    x = batches[-1]
    torch.testing.assert_close(kind.build(quantized)(x), quantized(x), rtol=0.02, atol=1e-3)


@pytest.mark.skipif(not saturating(), reason="this CPU adds products in 32 bits")
def test_engines_saturate_where_nothing_is_done() -> None:
    module = int8(traced(Loud(), torch.zeros(1, 3, 16, 16)), WEIGHTED)
    x = torch.ones(2, 3, 16, 16)
    quantized = quantize(module, [x], grid=IntegerGrid(unsigned=True), effort="fast")
    assert (OpenVINOEngine.build(quantized)(x) < 0.8 * quantized(x)).all()


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2"}, True), ({"avx2", "avx512f", "avx512bw"}, True), ({"avx2", "avx_vnni"}, False),
        ({"avx2", "avx512_vnni", "amx_int8"}, False), ({"asimddp"}, False), (set(), False),
    ],
)  # fmt: skip
def test_a_cpu_saturates_where_it_has_no_dot_products(monkeypatch, features, expected) -> None:
    monkeypatch.setattr("eqsat_deploy.processors.cpu", lambda: ("some CPU", features))
    assert saturating() is expected
    for name in ("openvino", "onnxruntime"):
        assert find_target(name).grid_here.saturating is expected
    assert not find_target("tensorrt").grid_here.saturating


def test_a_cpu_that_is_named_saturates_where_that_one_does(monkeypatch) -> None:
    monkeypatch.setattr("eqsat_deploy.processors.cpu", lambda: ("some CPU", {"avx2", "avx512_vnni"}))
    assert not saturating()
    monkeypatch.setenv("EQSAT_DEPLOY_CPU", "avx2")
    assert saturating()


def test_a_copy_of_a_quantizer_is_bounded_too() -> None:
    weight = torch.ones(2, 4)
    fake = copy.deepcopy(FakeQuantize.of_weight(weight, 0, groups=1))
    assert torch.equal(fake.fitted(3 * weight).step, 3 * fake.step)
