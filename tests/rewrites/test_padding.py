"""Pads in front of convolutions and pools are theirs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._models import rerandomize
from tests.support.models import image, randomized
from tests.support.stages import assert_same, called, optimized


class Padded(nn.Module):
    """A convolution, a pad, and what reads it."""

    def __init__(self, widths, reader, before=None, value: float = 0.0) -> None:
        super().__init__()
        self.stem, self.reader, self.before = nn.Conv2d(3, 8, 3), reader, before or nn.Identity()
        self.widths, self.value = widths, value

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(F.pad(self.before(self.stem(x)), self.widths, value=self.value))


def pads(module: torch.fx.GraphModule) -> int:
    return sum("pad" in str(n.target) for n in module.graph.nodes if n.op == "call_function")


INF = float("-inf")
CASES = {
    "even": Padded((1, 1, 2, 2), nn.Conv2d(8, 4, 5, stride=2)),
    "before an activation": Padded((1, 1, 1, 1), nn.Sequential(nn.GELU(), nn.Conv2d(8, 4, 3))),
    "twice": Padded((0, 1, 0, 1), nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(8, 4, 3))),
    "grouped": Padded((1, 1, 1, 1), nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8))),
    "uneven": Padded((0, 1, 0, 1), nn.Conv2d(8, 4, 3, stride=2)),
    "uneven, depthwise": Padded((1, 2, 1, 2), nn.Conv2d(8, 8, 5, stride=2, groups=8)),
    "max": Padded((1, 1, 1, 1), nn.MaxPool2d(3, 2), value=INF),
    "uneven max": Padded((0, 1, 0, 1), nn.MaxPool2d(3, 2), value=INF),
    "zeros under max": Padded((1, 1, 1, 1), nn.MaxPool2d(3, 2), nn.ReLU()),
    "average": Padded((1, 1, 1, 1), nn.AvgPool2d(3, 2)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_pad_is_absorbed(case):
    model = randomized(CASES[case])
    x = image(2, 3, 14, 14)
    module = optimized(model, x)
    assert pads(module) == 0, module.code
    assert_same(model, module, x)


KEPT = {
    "a value": Padded((1, 1, 1, 1), nn.Conv2d(8, 4, 3), value=1.0),
    "zeros below a max": Padded((1, 1, 1, 1), nn.MaxPool2d(3, 2)),
    "channels": Padded((0, 0, 0, 0, 1, 1), nn.Conv2d(10, 4, 3)),
    "more than half a window": Padded((2, 2, 2, 2), nn.MaxPool2d(3, 2), value=INF),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_pad_that_nothing_can_absorb_stays(case):
    model = randomized(KEPT[case])
    x = image(2, 3, 14, 14)
    module = optimized(model, x)
    assert pads(module) == 1, module.code
    assert_same(model, module, x)


def test_same_padding_of_timm_becomes_padding_of_convolutions():
    timm = pytest.importorskip("timm")
    model = rerandomize(timm.create_model("tf_efficientnet_b0", num_classes=5), 0).eval()
    model.blocks = model.blocks[:2]
    model.conv_head, model.bn2 = nn.Conv2d(24, 16, 1), nn.Identity()
    model.classifier = nn.Linear(16, 5)
    model, x = model.eval(), image(2, 3, 32, 32)
    module = optimized(model, x)
    assert pads(module) == 0, module.code
    assert called(module).count("Conv2d") == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert_same(model, module, x)


@pytest.mark.parametrize("widths", [(-1, 1, -1, 1), (-1, -2), (0, 0, 2, -3)])
def test_a_negative_width_cuts_off(widths):
    model = randomized(Padded(widths, nn.Conv2d(8, 4, 3)))
    x = image(2, 3, 14, 14)
    module = optimized(model, x)
    assert not module.report.opaque
    assert_same(model, module, x)
