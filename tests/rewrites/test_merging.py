"""Siblings and branches become one kernel where that is cheaper, in blocks of real networks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqsat_deploy.language import linear
from eqsat_deploy.saturate import saturate
from eqsat_deploy.selection import registered_rules
from tests.support.models import image, randomized, timm_model, torchvision_model
from tests.support.stages import assert_same, called, lowered, optimized, space


def functions(module: nn.Module) -> Counter[str]:
    """What the graph calls besides modules, by name."""
    return Counter(n.target.__name__ for n in module.graph.nodes if n.op == "call_function")


class Attention(nn.Module):
    """Query, key and value as three Linears."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """Two Linears on one input, one of them a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(8, 12), nn.Linear(8, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.gate(x)) * self.up(x)


@pytest.mark.parametrize("cost", ["kernels", "openvino_fp32"])
def test_the_three_1x1_convolutions_of_an_inception_block_are_one(cost):
    block, x = randomized(torchvision_model("googlenet").inception3a), image(2, 192, 7, 7)
    merged = optimized(block, x, cost=cost)
    assert_same(block, merged, x)
    widths = sorted(m.out_channels for m in merged.modules() if isinstance(m, nn.Conv2d))
    assert widths == [32, 32, 128, 64 + 96 + 16], "one convolution where there were three"
    assert functions(merged)["narrow"] == 3
    assert {"two-sibling-convolutions", "three-sibling-convolutions"} & {
        u.name for u in merged.report.rules if u.used
    }


def test_a_fire_module_is_two_convolutions_and_no_concatenation():
    block, x = randomized(torchvision_model("squeezenet1_1").features[3]), image(2, 64, 6, 6)
    merged = optimized(block, x, cost="kernels")
    assert_same(block, merged, x)
    assert called(merged) == ["Conv2d", "Conv2d"]
    assert functions(merged) == {"relu": 2}


@pytest.mark.parametrize("cost", ["kernels", "trt_int8", "openvino_int8"])
def test_query_key_and_value_are_one_projection(cost):
    block, x = randomized(Attention()), torch.randn(2, 5, 16)
    merged = optimized(block, x, cost=cost)
    assert_same(block, merged, x)
    assert called(merged).count("Linear") == 2, "one for query, key and value, one for the result"
    assert functions(merged)["permute"] <= 2


def test_two_linears_on_one_input_are_one_where_the_slices_are_free():
    block, x = randomized(Gated()), torch.randn(2, 8)
    merged = optimized(block, x, cost="kernels")
    assert_same(block, merged, x)
    assert called(merged) == ["Linear"]


def test_siblings_are_merged_in_one_order_and_not_again():
    x = torch.randn(2, 8)
    model = nn.ModuleList(nn.Linear(8, 3) for _ in range(3))

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(p(x) for p in self.parts)

    weights = {
        node.operands[1] for _, node in space(Three().eval(), x).nodes
        if node.operator is linear
    }  # fmt: skip
    assert len(weights) == 3 + 3 + 1, "each alone, each pair, and all three"


BRANCHES = {
    "repvgg_a0": (lambda m: m.stages[0], image(2, 48, 8, 8), ["Conv2d"] * 2),
    "mobileone_s0": (lambda m: m.stages[0], image(2, 48, 8, 8), ["Conv2d"] * 4),
    "fastvit_t8": (lambda m: m.stages[0].blocks[0], image(2, 48, 8, 8), ["Conv2d"] * 4),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_blocks_in_training_form_are_one_convolution_each(name):
    part, x, modules = BRANCHES[name]
    block = randomized(part(timm_model(name)))
    merged = optimized(block, x, cost="kernels")
    assert_same(block, merged, x)
    assert called(merged) == modules
    assert merged.report.kernels == len(modules), "activations and residuals are part of their launches"


class Averaged(nn.Module):
    """An average pool and the input itself beside a convolution."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, stride, 1)
        self.pool = nn.AvgPool2d(3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(x) + self.conv(x)
        return y + x if self.conv.stride == (1, 1) else y


@pytest.mark.parametrize("stride", [1, 2])
def test_average_pool_and_identity_branches_are_taps(stride):
    block, x = randomized(Averaged(stride)), image(2, 4, 6, 6)
    merged = optimized(block, x, cost="kernels")
    assert_same(block, merged, x)
    assert called(merged) == ["Conv2d"]
    assert functions(merged) <= Counter({"add": 1}), "the input may be a residual of the same launch"


@pytest.mark.parametrize("block", [(2, 0, 24), (5, 1, 200)])
def test_slices_of_one_convolution_are_no_siblings(block):
    stage, number, channels = block
    model, x = randomized(timm_model("mixnet_s").blocks[stage][number]), image(2, channels, 7, 7)
    low = lowered(model, x)
    saturation = saturate(low, registered_rules())
    assert saturation.stopped == "saturated"
    assert not any("sibling" in name for name in saturation.matches), (
        "MixNet's groups of channels are parts already"
    )
    assert_same(model, optimized(model, x, cost="kernels"), x)


@pytest.mark.parametrize(
    ("cost", "widths"), [("kernels", {256 + 256 + 1024}), ("openvino_fp32", {256 + 256, 1024})]
)
def test_query_key_and_value_of_a_map_are_one_convolution(cost, widths):
    mixer = timm_model("efficientformerv2_s0").stages[3].blocks[2].token_mixer
    block, x = randomized(nn.Sequential(mixer)), image(2, 176, 7, 7)
    merged = optimized(block, x, cost=cost)
    assert_same(block, merged, x)
    reads_input = {
        m.out_channels for m in merged.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 176
    }
    assert reads_input == widths, "slices of a merged result are free, or so small that a launch costs more"
