"""Functions written out in pieces come back as the one kernel that engines have for them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqsat_deploy.deployment import deployment
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
    "log_softmax": [lambda x: F.log_softmax(x, -1), lambda x: torch.log(torch.softmax(x, -1))],
    "softmax": [
        lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
        lambda x: torch.exp(x) * (1.0 / torch.exp(x).sum(-1, keepdim=True)),
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
            case 2:
                return x * torch.rsqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-6) * self.weight
            case 3:
                return F.rms_norm(x, (8,), 1.0 + self.weight, 1e-6)
            case _:
                return x * (torch.square(x).mean(-1, keepdim=True) + 1e-6).pow(-0.5)


@pytest.mark.parametrize("spelling", range(5))
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


def squares_outside(x):
    return x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + 1e-6)


def unit_length(x):
    return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5


def centered_without_a_center(x):
    """timm's SimpleNorm: the variance is that of a sample, and the mean stays."""
    return x * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("function", [squares_outside, unit_length, centered_without_a_center])
def test_what_is_only_nearly_an_rms_norm_stays_as_it_is(function):
    model = randomized(Between(function))
    module = optimized(model, image(*HIDDEN))
    assert not {"RMSNorm", "LayerNorm", "Standardize"} & set(called(module))
    assert not module.report.opaque
    assert_same(model, module, image(3, 5, 8, seed=1))


def test_the_gelu_of_clip_is_one_step_of_the_linear_before_it():
    transformers = pytest.importorskip("transformers")
    from benchmarks._models import TRANSFORMERS, inputs

    config, kind, options, _ = TRANSFORMERS["clip_vision"]
    model = randomized(getattr(transformers, kind)(getattr(transformers, config)(**options)))
    pixels = inputs("transformers:clip_vision")
    module = optimized(model, pixels, cost="openvino_fp32")
    assert "quick-gelu-from-sigmoid" in module.report.used_rules()
    steps = [k.nodes[1:] for k in deployment(module).placement.kernels if k.anchor.endswith("fc1")]
    assert [[name.split("_")[0] for name in names] for names in steps] == [["mul", "sigmoid", "mul"]] * 3
    assert_same(model, module, **pixels)


@pytest.mark.parametrize("spelling", ["flattened", "squares", "deviation"])
def test_a_layer_norm_of_pixels_needs_no_permute(spelling):
    """Patch embeddings normalize tokens; ConvNeXt's LayerNorm is written out over channels."""
    weight, bias = torch.rand(8, 1, 1) + 0.5, torch.rand(8, 1, 1)

    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            match spelling:
                case "flattened":
                    tokens = F.layer_norm(
                        x.flatten(2).transpose(1, 2), (8,), weight.flatten(), bias.flatten()
                    )
                    return tokens.transpose(1, 2).unflatten(2, x.shape[2:])
                case "squares":
                    mean = x.mean(1, keepdim=True)
                    return (
                        weight * ((x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()) + bias
                    )
                case _:
                    variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
                    return torch.addcmul(bias, (x - mean) * torch.rsqrt(variance + 1e-6), weight)

    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), Norm(), nn.Conv2d(8, 4, 3)))
    module = optimized(model, image(2, 3, 8, 8), cost="kernels")
    assert functions(module) == ["Conv2d", "ChannelNorm", "Conv2d"], module.code
    assert_same(model, module, image(3, 3, 8, 8))


def test_activations_of_transformers():
    activations = pytest.importorskip("transformers.activations")
    wanted = {"NewGELUActivation": "gelu", "FastGELUActivation": "gelu", "MishActivation": "mish"}
    for kind, name in wanted.items():
        model = randomized(Between(getattr(activations, kind)()))
        x = image(*HIDDEN)
        module = optimized(model, x)
        assert functions(module) == ["Linear", name, "Linear"], (kind, module.code)
        assert_same(model, module, x)
