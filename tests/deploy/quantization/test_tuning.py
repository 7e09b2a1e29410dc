from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import deployment
from eqsat_deploy.noise import decibels
from eqsat_deploy.quantization import FakeQuantize, quantize, tuning
from tests.deploy.placing import WEIGHTED, int8, traced
from tests.support.stages import optimized, outputs

pytestmark = pytest.mark.filterwarnings("ignore:the calibration data", "ignore:in INT8, on calibration data")


class Deep(nn.Module):
    """Convolutions whose errors add up, behind activations that no division passes."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 32, 32, 3, padding=1) for i in range(6))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.nn.functional.relu6(conv(x) * 2)
        return self.head(x[:, :, 8, 8])  # type: ignore[no-any-return]


def batches(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 16, 16, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def deep() -> fx.GraphModule:
    torch.manual_seed(0)
    return int8(traced(Deep().eval(), batches(1)[0]), WEIGHTED)


def test_scales_and_biases_are_trained_and_weights_left_alone(deep: fx.GraphModule) -> None:
    quantized = quantize(deep, batches(16))
    with torch.no_grad():
        quantized.head.bias += 0.004
    found = tuning.tuned(quantized, deep, (torch.cat(batches(16)),))
    data = torch.cat(batches(8, seed=1))
    expected = outputs(deep, data)[0]
    assert decibels(expected, outputs(found, data)[0]) > decibels(expected, outputs(quantized, data)[0]) + 0.5
    for fake in (child for child in found.modules() if isinstance(child, FakeQuantize)):
        assert fake.log_scale is None
    for (name, mine), (_, theirs) in zip(found.named_parameters(), quantized.named_parameters(), strict=True):
        assert mine.requires_grad == theirs.requires_grad
        assert name.endswith("bias") or torch.equal(mine, theirs), f"{name} is not trained"


def test_what_does_not_help_on_data_left_out_is_not_kept(
    deep: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    balanced = quantize(deep, batches(8))
    monkeypatch.setattr(tuning, "RATE", 10.0)
    best = quantize(deep, batches(8), effort="best")
    data = batches(1, seed=1)[0]
    torch.testing.assert_close(outputs(best, data)[0], outputs(balanced, data)[0])


def test_scales_are_trained_further_where_asked_for(deep: fx.GraphModule) -> None:
    best = quantize(deep, batches(4), effort="best", learnable=True)
    fakes = [child for child in best.modules() if isinstance(child, FakeQuantize)]
    assert fakes
    assert all(fake.log_scale is not None for fake in fakes)


def test_there_is_no_plain_form_that_is_less_accurate_and_could_win() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    module = optimized(model.eval(), batches(1)[0], cost="openvino_int8")
    assert deployment(quantize(module, batches(2))).plain is not None
    assert deployment(quantize(module, batches(2), effort="best")).plain is None
