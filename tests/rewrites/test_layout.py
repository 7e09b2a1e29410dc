"""Regions stand on the side of a permute where they are cheapest, and patches are convolutions or Linears."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from tests.support.models import image, randomized, timm_model, torchvision_model
from tests.support.stages import assert_same, called, optimized, space


def functions(module: nn.Module) -> Counter[str]:
    return Counter(n.target.__name__ for n in module.graph.nodes if n.op == "call_function")


def operators(model: nn.Module, x: Tensor) -> Counter[str]:
    """Operators of the e-graph, by name."""
    return Counter(node.operator.name for _, node in space(model, x).nodes)


def test_patch_merging_moves_its_neighbours_at_once():
    merging, x = randomized(torchvision_model("swin_t").features[2]), torch.randn(2, 6, 4, 96)
    found = optimized(merging, x, cost="kernels")
    assert_same(merging, found, x)
    assert functions(found)["cat"] == functions(found)["narrow"] == functions(found)["slice.Tensor"] == 0
    assert functions(found)["permute"] == 1


class LinearPatches(nn.Module):
    """A patch embedding written as reshape, permute and Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(3 * 4 * 4, 8)

    def forward(self, x: Tensor) -> Tensor:
        tiles = x.reshape(-1, 3, x.shape[2] // 4, 4, x.shape[3] // 4, 4).permute(0, 2, 4, 1, 3, 5)
        return self.embedding(tiles.reshape(x.shape[0], -1, 3 * 4 * 4))


def test_linear_patches_are_a_convolution():
    model, x = randomized(LinearPatches()), image(2, 3, 8, 12)
    assert operators(model, x)["conv2d"] >= 1
    found = optimized(model, x, cost="trt_fp16")
    assert_same(model, found, x)
    assert called(found) in (["Conv2d"], ["Linear"])


def test_the_patch_embedding_of_a_vision_transformer_is_a_linear_as_well():
    model = randomized(timm_model("vit_tiny_patch16_224", img_size=32).patch_embed)
    x = image(2, 3, 32, 32)
    assert operators(model, x)["linear"] >= 1
    found = optimized(model, x, cost="kernels")
    assert_same(model, found, x)


class Mixed(nn.Module):
    """The channel mixing of a PVT v2 block: two Linears on tokens around a depthwise convolution on their map."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = timm_model("pvt_v2_b0").stages[1].blocks[0].mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x, [14, 14])


def test_a_linear_of_tokens_is_a_convolution_of_their_map():
    block, x = randomized(Mixed()), torch.randn(2, 14 * 14, 64)
    found = optimized(block, x, cost="openvino_fp32")
    assert_same(block, found, x)
    assert called(found) == ["Linear", "Conv2d", "Conv2d"], "back to tokens with 64 features, not with 512"
    assert {"linear-of-reshape", "tokens-of-map", "map-of-tokens"} <= {
        u.name for u in found.report.rules if u.used
    }
