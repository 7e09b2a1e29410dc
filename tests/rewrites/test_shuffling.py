"""Channel shuffles are an order of weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks._models import rerandomize
from tests.support.models import image, randomized
from tests.support.stages import assert_same, called, optimized


def moves(module: torch.fx.GraphModule) -> list[str]:
    """Permutes, slices and shuffles that are left."""
    wanted = ("permute", "narrow", "slice", "channel_shuffle")
    return [
        n.name
        for n in module.graph.nodes
        if n.op == "call_function" and any(w in str(n.target) for w in wanted)
    ]


class Shuffled(nn.Module):
    """A convolution, a shuffle of its channels, and what reads it."""

    def __init__(self, groups: int, reader: nn.Module) -> None:
        super().__init__()
        self.stem, self.shuffle, self.reader = nn.Conv2d(3, 12, 3), nn.ChannelShuffle(groups), reader

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, self.shuffle.groups, c // self.shuffle.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.reader(x)


READERS = {
    "convolution": nn.Conv2d(12, 5, 3, stride=2, padding=1),
    "depthwise": nn.Sequential(nn.Conv2d(12, 12, 3, groups=12), nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)),
    "BatchNorm and ReLU": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)),
}


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("reader", READERS)
def test_a_shuffle_is_absorbed(reader, groups):
    model = randomized(Shuffled(groups, READERS[reader]))
    x = image(2, 3, 9, 8)
    module = optimized(model, x)
    assert not moves(module), module.code
    assert_same(model, module, x)


def test_shufflenet_has_no_shuffles():
    torchvision = pytest.importorskip("torchvision")
    model = rerandomize(torchvision.models.shufflenet_v2_x0_5(num_classes=5), 0).eval()
    model.stage3, model.stage4 = model.stage3[:2], nn.Identity()
    model.conv5 = nn.Sequential(nn.Conv2d(96, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
    model.fc = nn.Linear(16, 5)
    model, x = model.eval(), image(2, 3, 32, 32)
    module = optimized(model, x)
    assert not moves(module), module.code
    assert called(module).count("Conv2d") > 0
    assert_same(model, module, x)
