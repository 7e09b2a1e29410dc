"""Averages over a map are means, and go before the linear maps that they follow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.models import image, randomized, timm_model, torchvision_model
from tests.support.stages import assert_same, called, optimized


class Head(nn.Module):
    """A 1x1 convolution, then the mean over the map in one of the ways that it is written."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.conv = way, nn.Conv2d(4, 6, 1)
        self.pool = {"adaptive": nn.AdaptiveAvgPool2d(1), "window": nn.AvgPool2d(5)}.get(way, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x))
        return x.mean((2, 3)) if self.way == "mean" else torch.flatten(x, 1)


@pytest.mark.parametrize("way", ["adaptive", "window", "mean"])
def test_the_mean_of_a_1x1_convolution_is_computed_from_the_mean(way):
    head, x = randomized(Head(way)), image(2, 4, 5, 5)
    found = optimized(head, x, cost="flops")
    assert_same(head, found, x)
    (conv,) = [n for n in found.graph.nodes if n.op == "call_module"]
    producer = conv.args[0]
    while producer.op != "placeholder" and "reshape" in producer.name:
        producer = producer.args[0]
    assert producer.op != "placeholder", "averaged first"


def test_a_mean_pooled_transformer_computes_its_last_linear_once():
    model = randomized(timm_model("vit_tiny_patch16_224", global_pool="avg", img_size=32, depth=1, fc_norm=True,
                                         class_token=False))  # fmt: skip
    x = image(2, 3, 32, 32)
    found = optimized(model, x, cost="flops")
    assert_same(model, found, x)
    assert "mean-of-linear" in {u.name for u in found.report.rules if u.used}


def test_a_convnext_that_is_averaged_computes_its_last_linear_once():
    block = torchvision_model("convnext_tiny").features[7][2]
    model, x = randomized(nn.Sequential(block, nn.AdaptiveAvgPool2d(1))), image(2, 768, 3, 3)
    found = optimized(model, x, cost="flops")
    assert_same(model, found, x)
    assert {"mean-of-sum"} <= {u.name for u in found.report.rules if u.used}
    assert called(found).count("Linear") + called(found).count("Conv2d") == 3


class MeanByProduct(nn.Module):
    """Tokens averaged by a product with ones, as pooling under a mask writes it, then a Linear."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.left, self.last, self.head = left, nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(x)
        pooled = torch.ones(1, 5) @ x * (1 / 5) if self.left else (x.mT @ torch.ones(5, 1) / 5).mT
        return self.head(pooled[:, 0])


@pytest.mark.parametrize("left", [True, False])
def test_a_mean_written_as_a_product_is_taken_before_the_linear_that_it_follows(left):
    model, x = randomized(MeanByProduct(left)), torch.randn(2, 5, 6)
    found = optimized(model, x, cost="flops")
    assert_same(model, found, x)
    assert "matmul" not in found.code
    (mean,) = [n for n in found.graph.nodes if "mean" in n.name]
    assert mean.args[0].op == "placeholder", "averaged first"
