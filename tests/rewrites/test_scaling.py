"""Scales and shifts around linear operators go into their weights."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from tests.support.models import image, randomized, timm_model, torchvision_model
from tests.support.stages import assert_same, called, optimized


def functions(module: nn.Module) -> Counter[str]:
    return Counter(n.target.__name__ for n in module.graph.nodes if n.op == "call_function")


def folded(model: nn.Module, x: Tensor, cost: str = "kernels") -> nn.Module:
    model = randomized(model)
    found = optimized(model, x, cost=cost)
    assert_same(model, found, x)
    return found


AROUND = {
    "before an unpadded convolution": (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, 2)), image(2, 4, 7, 7)),
    "before a grouped convolution": (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, groups=2)), image(2, 4, 5, 5)),
    "after a transposed convolution": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(6)), image(2, 4, 5, 5)),
    "around a Linear": (nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 6), nn.BatchNorm1d(6)), torch.randn(3, 5)),
    "after an average pool": (
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d(5), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)), image(2, 4, 7, 7)),
}  # fmt: skip


@pytest.mark.parametrize("where", AROUND)
def test_no_batch_norm_is_left(where):
    model, x = AROUND[where]
    found = folded(model, x)
    assert set(called(found)) <= {"Conv2d", "ConvTranspose2d", "Linear"}
    assert not {"add", "mul"} & set(functions(found))


def test_a_batch_norm_before_a_padded_convolution_is_a_scale_and_a_constant_map():
    found = folded(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)), image(2, 4, 5, 5))
    assert called(found) == ["Conv2d"]
    assert functions(found) == {"add": 1}
    (shift,) = [p for p in found.parameters() if p.shape[-2:] == (5, 5)]
    assert not torch.allclose(shift[..., 0, 0], shift[..., 2, 2]), "smaller at the border"


def test_numbers_fold_too():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x / 255.0)) * 2.0 + 0.0
            return self.last(x.mean((2, 3)) * 0.5) * 3.0

    found = folded(Scaled(), image(2, 3, 6, 6))
    assert called(found) == ["Conv2d", "Linear"]
    assert not {"add", "mul", "div", "truediv"} & set(functions(found))


def test_the_affine_part_of_layer_norm_goes_into_the_linears_that_read_it():
    found = folded(timm_model("vit_tiny_patch16_224").blocks[0], torch.randn(2, 5, 192), cost="trt_fp16")
    assert called(found).count("LayerNorm") == 0
    assert called(found).count("Standardize") == 2
    affine = folded(nn.LayerNorm(6), torch.randn(2, 6))
    assert called(affine) == ["LayerNorm"], "with nothing behind it, it stays"


def test_the_affine_part_of_a_norm_over_channels_goes_into_the_convolution_that_reads_it():
    stage = torchvision_model("convnext_tiny").features[2]
    found = folded(stage, image(2, 96, 4, 4), cost="openvino_fp32")
    assert called(found) == ["Standardize", "Conv2d"]


def test_densely_connected_layers_keep_only_the_norms_that_nothing_absorbs():
    block = torchvision_model("densenet121").features.denseblock1.denselayer2
    found = folded(nn.Sequential(nn.Conv2d(3, 96, 1), block), image(2, 3, 6, 6))
    assert called(found).count("Conv2d") == 3
    assert called(found).count("BatchNorm") <= 1, "the one before an activation"


def test_a_number_less_a_tensor_is_not_the_tensor_less_the_number():
    model = randomized(nn.Sequential(nn.Linear(4, 4), _Complement()))
    result = optimized(model, image(2, 4), cost="kernels")
    assert_same(model, result, image(3, 4))


class _Complement(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 - x.sigmoid()


class _SingleChannel(nn.Module):
    """A number that scales a map of one channel, channels last."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        return (y * torch.rsqrt(y.var(-1, keepdim=True) + 1e-6)).permute(0, 3, 1, 2)


def test_a_number_has_no_precision_of_its_own():
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), _SingleChannel(), nn.Conv2d(8, 4, 3)))
    result = optimized(model, image(2, 3, 8, 8), cost="kernels")
    assert_same(model, result, image(3, 3, 8, 8))


def test_a_batch_norm_after_relu_scales_the_convolution_before_it_where_no_factor_is_negative():
    model = randomized(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2))
    )
    x = image(2, 3, 8, 8)
    for factors, kept in (([0.5, 1.0, 2.0, 0.0], []), ([0.5, 1.0, -2.0, 0.1], ["BatchNorm"])):
        model[2].weight.data = torch.tensor(factors)
        found = optimized(model, x, cost="flops")
        assert called(found) == ["Conv2d", *kept]
        assert not functions(found)["mul"]
        assert_same(model, found, x)
