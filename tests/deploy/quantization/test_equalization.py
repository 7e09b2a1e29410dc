from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import FreeScale, deployment, fingerprint
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization import QuantizedConv2d, QuantizedConvTranspose2d, QuantizedLinear, quantize
from eqsat_deploy.quantization.absorption import taken_in
from eqsat_deploy.quantization.equalization import ChannelScale, Layer, divisor
from tests.deploy.placing import ADDS, WEIGHTED, int8, traced

EQUALIZED = IntegerGrid(unsigned=True, equalized=True)
LAYERS = {
    "linear": (nn.Linear(8, 5), QuantizedLinear, (3, 7, 8)),
    "dense": (nn.Conv2d(8, 6, 3, padding=1), QuantizedConv2d, (2, 8, 5, 5)),
    "grouped": (nn.Conv2d(8, 12, 3, groups=2), QuantizedConv2d, (2, 8, 5, 5)),
    "depthwise": (nn.Conv2d(8, 16, 3, groups=8), QuantizedConv2d, (2, 8, 5, 5)),
    "transposed": (nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), QuantizedConvTranspose2d, (2, 8, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_in_what_its_input_was_divided_by(name: str) -> None:
    original, kind, shape = LAYERS[name]
    layer: Layer = kind.from_float(original)  # type: ignore[arg-type]
    x, weight = torch.randn(shape), original.weight.detach().clone()
    (free,) = placed(nn.Sequential(original), *shape[1:])
    divided = divisor(torch.rand(8) * 10, [layer]).reshape(free.shape)
    assert float(divided.max()) == 1.0
    assert float(divided.min()) > 0.0
    (reader,) = free.readers
    taking = taken_in(layer, reader, divided)
    taking.weight_quantizer = nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(taking(x / divided), original(x))
    assert torch.equal(original.weight, weight)
    assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize("name", [*LAYERS, "normalization"])
def test_a_layer_takes_in_what_its_output_is_multiplied_by(name: str) -> None:
    original, shape = (nn.LayerNorm(8), (3, 7, 8)) if name == "normalization" else LAYERS[name][::2]
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x, expected = torch.randn(shape), original(torch.zeros(shape))
    last = expected.dim() == 3
    after = nn.Linear(expected.shape[-1], 4) if last else nn.Conv2d(expected.shape[1], 4, 1)
    free = next(f for f in placed(nn.Sequential(original, after), *shape[1:]) if f.writers)
    scale = (torch.rand(expected.shape[-1 if last else 1]) + 0.1).reshape(free.shape)
    (writer,) = free.writers
    before = original.weight.detach().clone()
    torch.testing.assert_close(taken_in(original, writer, scale)(x), original(x) * scale)
    assert torch.equal(original.weight, before)


def placed(model: nn.Module, *shape: int) -> tuple[FreeScale, ...]:
    return deployment(int8(traced(model, torch.zeros(1, *shape)), WEIGHTED)).placement.scales


class Depthwise(nn.Module):
    """One channel of the depthwise convolution's input is 100 times the others."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Conv2d(16, 8, 1)
        with torch.no_grad():
            self.spread.weight[5] *= 100
            self.head.weight[:, 5] /= 100
            self.depthwise.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.depthwise(F.relu(self.spread(x))))
        return result


class Shared(nn.Module):
    """What a convolution reads is added to its result, in INT8 as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.second = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return y + self.second(y)


class Normalized(nn.Module):
    """LayerNorm with outlying channels before a product."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.product = nn.Linear(32, 32)
        with torch.no_grad():
            self.norm.weight[::9] *= 60
            self.product.weight[:, ::9] /= 60

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.product(self.norm(x))
        return result


def batches(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, *shape, generator=generator) for _ in range(4)]


def sqnr(module: nn.Module, quantized: nn.Module, *shape: int) -> float:
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = module(x), quantized(x)
    return float(10 * torch.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


def scales(module: fx.GraphModule) -> list[str]:
    return [name for name, child in module.named_modules() if isinstance(child, ChannelScale)]


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Depthwise, (3, 12, 12)), (Normalized, (10, 32))],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_outlying_channels_are_repaired(model: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = int8(traced(model(), torch.zeros(1, *shape)), WEIGHTED)
    uneven = quantize(module, batches(*shape), grid=IntegerGrid(unsigned=True), effort="fast")
    evened = quantize(module, batches(*shape), grid=EQUALIZED)
    moved = quantize(module, batches(*shape), grid=IntegerGrid(unsigned=True))
    assert not scales(moved), "the layer that writes the tensor divides it"
    assert fingerprint(evened) == fingerprint(moved), "whether the target could or not"
    assert sqnr(module, moved, *shape) > sqnr(module, uneven, *shape) + 6


def test_other_readers_get_the_tensor_back() -> None:
    torch.manual_seed(0)
    model = Shared()
    with torch.no_grad():
        model.first.weight[::4] *= 30
        model.second.weight[:, ::4] /= 30
    module = int8(traced(model, torch.zeros(1, 3, 8, 8)), WEIGHTED + ADDS)
    quantized = quantize(module, batches(3, 8, 8), grid=EQUALIZED)
    assert {"relu_divided", "relu_quantizer_restored"} <= set(scales(quantized))
    assert sqnr(module, quantized, 3, 8, 8) > 30
    quantized.graph.lint()
