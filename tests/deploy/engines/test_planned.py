"""What the form says runs in INT8 runs in INT8."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.models import randomized
from tests.support.stages import optimized

CHANNELS = 64


def conv(kernel: int = 3, channels: int = CHANNELS) -> nn.Conv2d:
    return nn.Conv2d(channels, CHANNELS, kernel, padding=kernel // 2)


class Sums(nn.Module):
    """Chains of sums between convolutions, one of which is also read by another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv() for _ in range(4))
        self.head = conv(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second, third, fourth = self.convs
        y = first(x)
        z = F.relu(second(y))
        w = third(z)
        return self.head(F.relu(y + z + w + x)), fourth(y + w)


class Joined(nn.Module):
    """A max-pool and a convolution that read a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(), conv(1)
        self.pooled, self.whole = conv(3, 2 * CHANNELS), conv(1, 2 * CHANNELS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.pooled(F.max_pool2d(y, 2)), self.whole(y)


def transposed(kernel: int = 3, **options: int) -> nn.Module:
    return nn.Sequential(
        conv(), nn.ReLU(), nn.ConvTranspose2d(CHANNELS, CHANNELS, kernel, **options), nn.ReLU(), conv()
    )


MODELS = {
    "sums": Sums,
    "concatenation": Joined,
    "weight_norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), nn.ReLU(), conv()),
    "transposed, doubling": lambda: transposed(4, stride=2, padding=1),
    "transposed, odd": lambda: transposed(stride=2, padding=1, output_padding=1),
    "transposed, dilated": lambda: transposed(dilation=2),
    "transposed, depthwise": lambda: transposed(4, stride=2, padding=1, groups=CHANNELS),
}


@pytest.mark.filterwarnings("ignore:the calibration data")
@pytest.mark.parametrize("name", MODELS)
def test_what_is_planned_in_int8_runs_in_int8(name: str) -> None:
    torch.manual_seed(0)
    model = randomized(MODELS[name]())
    batch = torch.randn(4, CHANNELS, 28, 28)
    quantized = optimized(model, batch, cost="openvino_int8").quantize([batch])
    report = quantized.build(baseline=False).report["engine"]
    assert report["realized_int8"] == report["expected_int8"] >= 2
