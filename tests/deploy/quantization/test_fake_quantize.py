from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eqsat_deploy.quantization import (
    FakeQuantize,
    Grid,
    QuantizedConv2d,
    QuantizedConvTranspose2d,
    QuantizedLinear,
)


@pytest.mark.parametrize("grid", [Grid(0.05, 0, -128, 127), Grid(0.05, 0, 0, 255), Grid(0.02, 37, 0, 255)])
def test_it_rounds_as_torch_does_per_tensor(grid: Grid) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 4
    expected = torch.fake_quantize_per_tensor_affine(values, grid.scale, grid.zero_point, grid.low, grid.high)
    torch.testing.assert_close(FakeQuantize.of_grid(grid)(values), expected)


def test_it_rounds_as_torch_does_per_channel() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    fake = FakeQuantize.of_weight(weight, 0)
    zero = torch.zeros(6, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, fake.step, zero, 0, -128, 127)
    torch.testing.assert_close(fake(weight), expected)


def test_a_weight_never_reaches_the_lowest_code_and_zeros_stay_zero() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    fake = FakeQuantize.of_weight(weight, 0)
    codes = fake(weight) / fake.step[:, None]
    assert codes.abs().max() <= 127.001
    assert (fake.step > 0).all()
    assert torch.equal(fake(weight)[2], torch.zeros(7))
    torch.testing.assert_close(fake.amax[[0, 1, 3, 4]], weight.abs().amax(1)[[0, 1, 3, 4]])


def test_gradients_pass_straight_through_inside_the_range_only() -> None:
    values = torch.tensor([-20.0, -1.03, 0.26, 0.9, 20.0], requires_grad=True)
    FakeQuantize.of_grid(Grid(0.1, 0, -128, 127))(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_learnable_scale_has_the_gradient_of_lsq() -> None:
    fake = FakeQuantize.of_grid(Grid(0.1, 0, -128, 127), learnable=True).train()
    values = torch.tensor([-20.0, 0.26, 20.0])
    fake(values).sum().backward()
    # d(sum)/d(step): round(v/s) - v/s inside, the bound itself outside; scaled by 1/sqrt(N * Qp).
    # The parameter is the logarithm: times the step.
    expected = ((3 - 2.6) - 128 + 127) / (3 * 127) ** 0.5
    assert fake.log_scale is not None
    assert fake.log_scale.grad is not None
    assert float(fake.log_scale.grad) == pytest.approx(expected * 0.1, rel=1e-4)


def test_a_learnable_step_stays_positive() -> None:
    fake = FakeQuantize.of_grid(Grid(0.1, 0, -128, 127), learnable=True).train()
    optimizer = torch.optim.Adam(fake.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        fake(torch.full((4,), 100.0)).square().sum().backward()
        optimizer.step()
    assert 0 < fake.step < 0.01


def test_training_a_learnable_scale_lowers_the_error() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    fake = FakeQuantize.of_grid(Grid(0.2, 0, -128, 127), learnable=True).train()
    optimizer = torch.optim.Adam(fake.parameters(), lr=3e-2)
    first = F.mse_loss(fake(values), values).item()
    for _ in range(100):
        optimizer.zero_grad()
        F.mse_loss(fake(values), values).backward()
        optimizer.step()
    assert F.mse_loss(fake(values), values).item() < 0.2 * first


LAYERS = [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1, groups=2), QuantizedConv2d, 0),
    (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", bias=False), QuantizedConv2d, 0),
    (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        QuantizedConvTranspose2d,
        1,
    ),
    (nn.Linear(8, 5), QuantizedLinear, 0),
]


@pytest.mark.parametrize(("layer", "kind", "axis"), LAYERS)
def test_a_quantized_layer_is_the_layer_with_its_weight_rounded(
    layer: nn.Module, kind: type[QuantizedConv2d], axis: int
) -> None:
    shape = (2, 8) if isinstance(layer, nn.Linear) else (2, 4, 9, 9)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    quantized = kind.from_float(layer)  # type: ignore[arg-type]
    assert torch.equal(state, torch.random.get_rng_state())
    reference = copy.deepcopy(layer)
    with torch.no_grad():
        reference.weight.copy_(FakeQuantize.of_weight(layer.weight, axis)(layer.weight))  # type: ignore[operator,arg-type,union-attr]
    torch.testing.assert_close(quantized(values), reference(values))
    assert not torch.equal(quantized(values), layer(values))
    assert quantized.weight is layer.weight
