"""Functions written out in pieces come back as the one kernel that engines have for them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.models import image, randomized
from tests.support.stages import assert_same, called, optimized

HIDDEN = (2, 5, 8)


def functions(module: torch.fx.GraphModule) -> list[str]:
    """What the graph calls, modules by type."""
    modules = dict(module.named_modules())
    return [
        type(modules[str(n.target)]).__name__
        if n.op == "call_module"
        else getattr(n.target, "__name__", str(n.target))
        for n in module.graph.nodes
        if n.op.startswith("call_")
    ]


class Between(nn.Module):
    """A function between two Linears."""

    def __init__(self, function, width: int = 8) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(width, width), nn.Linear(width, width), function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


def new_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def fast_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def stable_softmax(x):
    exponentials = torch.exp(x - x.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


WRITTEN = {
    "gelu": [
        lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
        lambda x: 0.5 * (x * (torch.erf(x * 0.7071067811865476) + 1)),
        lambda x: (1.0 + torch.erf(x / 2**0.5)) * (0.5 * x),
        new_gelu,
        fast_gelu,
    ],
    "silu": [lambda x: x * torch.sigmoid(x), lambda x: torch.sigmoid(x) * x, lambda x: x / (1 + torch.exp(-x))],
    "hardswish": [
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x * (F.relu6(x + 3) / 6),
        lambda x: x * F.hardsigmoid(x),
        lambda x: x * torch.clamp(x + 3, 0, 6) * (1 / 6),
    ],
    "hardsigmoid": [lambda x: F.relu6(x + 3) / 6, lambda x: torch.clamp(x / 6 + 0.5, 0, 1)],
    "mish": [lambda x: x * torch.tanh(F.softplus(x)), lambda x: x * torch.tanh(torch.log1p(torch.exp(x)))],
    "relu": [lambda x: x.clamp(min=0)],
    "softplus": [lambda x: torch.log(1 + torch.exp(x))],
    "softmax": [
        lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
        stable_softmax,
        lambda x: F.softmax(x - x.max(-1, keepdim=True)[0], -1),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "index"), [(n, i) for n, v in WRITTEN.items() for i in range(len(v))])
def test_a_function_written_out_is_one_kernel(name, index):
    model = randomized(Between(WRITTEN[name][index]))
    x = image(*HIDDEN)
    module = optimized(model, x)
    assert functions(module) == ["Linear", name, "Linear"], module.code
    assert_same(model, module, x)


class RootMeanSquare(nn.Module):
    def __init__(self, spelling: int) -> None:
        super().__init__()
        self.weight, self.spelling = nn.Parameter(torch.ones(8)), spelling

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        match self.spelling:
            case 0:
                return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
            case 1:
                return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.weight
            case _:
                return x * (torch.square(x).mean(-1, keepdim=True) + 1e-6).pow(-0.5)


@pytest.mark.parametrize("spelling", range(3))
def test_a_hand_written_rms_norm_is_one_module(spelling):
    model = randomized(Between(RootMeanSquare(spelling)))
    x = image(*HIDDEN)
    module = optimized(model, x)
    assert called(module) == ["Linear", "RMSNorm", "Linear"]
    assert len(functions(module)) == 3, module.code
    assert_same(model, module, x)


class Moments(nn.Module):
    """LayerNorm from mean and variance, over the last axis or over the channels of a map."""

    def __init__(self, spelling: str, axis: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.spelling, self.axis = spelling, axis

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(self.axis, keepdim=True)
        match self.spelling:
            case "pow":
                variance = (x - mean).pow(2).mean(self.axis, keepdim=True)
            case "mul":
                variance = ((x - mean) * (x - mean)).mean(self.axis, keepdim=True)
            case "moments":
                variance = (x * x).mean(self.axis, keepdim=True) - mean * mean
            case "var":
                variance = x.var(self.axis, unbiased=False, keepdim=True)
            case _:
                variance, mean = torch.var_mean(x, self.axis, correction=0, keepdim=True)
        parts = (
            (self.weight, self.bias)
            if self.axis == -1
            else (self.weight[:, None, None], self.bias[:, None, None])
        )
        if self.spelling in ("pow", "var"):
            return parts[0] * ((x - mean) / torch.sqrt(variance + 1e-6)) + parts[1]
        return (x - mean) * torch.rsqrt(variance + 1e-6) * parts[0] + parts[1]


SPELLINGS = ("pow", "mul", "moments", "var", "var_mean")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_layer_norm_from_moments_is_one_module(spelling):
    model = randomized(Between(Moments(spelling, -1)))
    x = image(*HIDDEN)
    module = optimized(model, x)
    assert functions(module) == ["Linear", "Standardize", "Linear"], (
        module.code
    )  # its scale and shift in the next
    assert_same(model, module, x)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_layer_norm_over_channels_is_one_module(spelling):
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), Moments(spelling, 1), nn.Conv2d(8, 4, 3)))
    x = image(2, 3, 12, 12)
    module = optimized(model, x, cost="kernels")
    assert functions(module) == ["Conv2d", "ChannelNorm", "Conv2d"], module.code
    assert_same(model, module, x)


def test_a_sample_variance_is_not_a_layer_norm():
    model = randomized(
        Between(lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6))
    )
    x = image(*HIDDEN)
    module = optimized(model, x)
    assert "LayerNorm" not in functions(module)
    assert_same(model, module, x)


def test_activations_of_transformers():
    activations = pytest.importorskip("transformers.activations")
    wanted = {"NewGELUActivation": "gelu", "FastGELUActivation": "gelu", "MishActivation": "mish"}
    for kind, name in wanted.items():
        model = randomized(Between(getattr(activations, kind)()))
        x = image(*HIDDEN)
        module = optimized(model, x)
        assert functions(module) == ["Linear", name, "Linear"], (kind, module.code)
        assert_same(model, module, x)
