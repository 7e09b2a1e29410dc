"""Outliers planted where trained networks have them: what the quickest quantization loses to them, the default repairs,
and the ranking names the kernel that they reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import eqsat_deploy as eqd
from eqsat_deploy.deployment import deployment
from eqsat_deploy.noise import decibels
from eqsat_deploy.quantization import quantize, sensitivity
from eqsat_deploy.targets.openvino import OPENVINO
from tests.deploy.placing import ADDS, WEIGHTED, Attention, images, int8, traced

OUTLIER = 100.0


class Separable(nn.Module):
    """Channel 5 of the depthwise convolution is `outlier` times the others, and what reads it undoes that."""

    def __init__(self, activation: Callable[[Tensor], Tensor], outlier: float) -> None:
        super().__init__()
        self.activation = activation
        self.expand = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 8, 1)
        with torch.no_grad():
            self.depthwise.weight[5] *= outlier
            self.depthwise.bias[5] *= outlier  # type: ignore[index]
            self.project.weight[:, 5] /= outlier

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.expand(x))
        result: Tensor = self.project(self.activation(self.depthwise(x)))
        return result


def with_massive_activation(outlier: float) -> Attention:
    """The first token, whatever the image, turns on a unit of the first MLP that no other turns on."""
    torch.manual_seed(0)
    model = Attention()
    block, width = model.blocks[0], model.head.in_features
    direction = F.normalize(F.layer_norm(torch.randn(width), (width,)), dim=0)
    with torch.no_grad():
        model.position.copy_(0.3 * torch.randn_like(model.position))
        model.position[:, 0] = 10 * direction
        block.up.weight[7] = 1.5 * outlier / width**0.5 * direction
        block.up.bias[7] = -outlier / 2
        block.down.weight[:, 7] /= outlier / 3
    return model.eval()


def with_large_token(outlier: float, **size: int) -> Attention:
    """The first token's position is `outlier` times the others'."""
    torch.manual_seed(0)
    model = Attention(**size)
    with torch.no_grad():
        model.position.copy_(0.3 * torch.randn_like(model.position))
        model.position[:, 0] *= outlier
    return model.eval()


def placed(model: nn.Module, readers: Sequence[object] = WEIGHTED) -> fx.GraphModule:
    return int8(traced(model, torch.zeros(1, 3, 32, 32)), readers)


def judged(module: nn.Module, quantized: nn.Module) -> float:
    x = torch.cat(list(images(8, seed=9)))
    with torch.no_grad():
        return decibels(module(x), quantized(x))


def ranked(quantized: fx.GraphModule) -> list[tuple[str, float]]:
    return [(found.kernel, found.sqnr) for found in sensitivity(quantized).kernels]


def quantized(module: fx.GraphModule, **options: object) -> fx.GraphModule:
    return quantize(module, images(4), grid=OPENVINO.grid, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", [F.relu, F.hardswish])
def test_one_channel_of_a_depthwise_convolution(activation: Callable[[Tensor], Tensor]) -> None:
    def made(outlier: float) -> fx.GraphModule:
        torch.manual_seed(0)
        return placed(Separable(activation, outlier))

    module = made(OUTLIER)
    fast, repaired = quantized(module, effort="fast"), quantized(module)
    assert judged(module, fast) < 20
    assert judged(module, repaired) > judged(made(1.0), quantized(made(1.0))) - 3
    (worst, noise), (_, others), *_ = ranked(fast)
    assert worst == "project"
    assert noise < others - 15
    assert dict(ranked(repaired))["project"] > noise + 15
    evened = {scaled.readers: scaled for scaled in deployment(repaired).scaled}[("project",)]
    assert evened.least < 0.2, "channels beside the outlier are divided by little"
    assert evened.rules[-1] == "scale-before-convolution"
    assert evened.writers == (("depthwise",) if activation is F.relu else ())
    assert ("scale-after-relu" in evened.rules) == (activation is F.relu)
    assert not deployment(fast).scaled


def test_one_token_that_turns_a_unit_on() -> None:
    module = placed(with_massive_activation(OUTLIER))
    fast, repaired = quantized(module, effort="fast"), quantized(module)
    assert judged(module, fast) < 20
    assert judged(module, repaired) > judged(module, fast) + 12
    (worst, noise), (_, others), *_ = ranked(fast)
    assert worst == "blocks_0_down"
    assert noise < others - 15
    assert dict(ranked(repaired))["blocks_0_down"] > noise + 15


def test_one_large_token_stays_out_of_int8() -> None:
    """The stream is added in float, and LayerNorm evens the token before anything rounds."""

    def loss(outlier: float) -> float:
        model = with_large_token(outlier, width=128, size=64)
        batches, x = images(4, size=64), torch.cat(list(images(8, size=64, seed=9)))
        module = eqd.optimize(model, (x[:2],), cost="openvino_int8").quantize(batches)
        assert ranked(module)
        with torch.no_grad():
            return decibels(model(x), module(x))

    assert loss(OUTLIER) > loss(1.0) - 3


def test_one_large_token_in_an_int8_stream_is_named_and_a_budget_repairs_it() -> None:
    """No scale of a channel evens what is large in all of them, so a placement that adds in INT8 loses the rest."""
    module = placed(with_large_token(OUTLIER), WEIGHTED + ADDS)
    with pytest.warns(UserWarning, match="keeps some in float"):
        lost = quantized(module)
    assert judged(module, lost) < 15
    assert {name for name, _ in ranked(lost)[:2]} == {"add_1", "add_2"}
    repaired = quantized(module, accuracy_budget=30.0)
    assert judged(module, repaired) > 28
    assert not {"add_1", "add_2"} & {name for name, _ in ranked(repaired)}
