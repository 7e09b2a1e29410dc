"""Consecutive linear maps are one where that is no more arithmetic, and stay two where it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.models import image, randomized, timm_model
from tests.support.stages import assert_same, called, optimized

COMPOSED = {
    "Linears": (nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4)), torch.randn(2, 6), ["Linear"]),
    "1x1 after 3x3": (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)), image(2, 3, 7, 7), ["Conv2d"]),
    "3x3 after 1x1": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3)), image(2, 3, 7, 7), ["Conv2d"]),
    "padded 3x3 after 1x1 without bias": (
        nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 3, padding=1)), image(2, 3, 7, 7), ["Conv2d"]),
    "padded 3x3 after 1x1 with bias": (
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1)), image(2, 3, 7, 7), ["Conv2d"] * 2),
    "through few features": (nn.Sequential(nn.Linear(9, 2), nn.Linear(2, 9)), torch.randn(2, 9), ["Linear"] * 2),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPOSED)
def test_linear_maps_in_a_row(case):
    model, x, expected = COMPOSED[case]
    found = optimized(randomized(model), x, cost="kernels")
    assert_same(model, found, x)
    assert called(found) == expected


def test_the_linear_bottleneck_of_an_inverted_residual_stays():
    stage = randomized(timm_model("mobilenetv2_050").blocks[1])
    x = image(2, 8, 8, 8)
    found = optimized(stage, x, cost="flops")
    assert_same(stage, found, x)
    assert called(found).count("Conv2d") == 3 * len(stage)
