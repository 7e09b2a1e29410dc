"""Scales that move into the layer that writes a tensor, where the target cannot divide channels itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import deployment
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.language.attention import PackedAttention
from eqsat_deploy.language.normalization import Standardize
from eqsat_deploy.noise import decibels
from eqsat_deploy.quantization import FakeQuantize, quantize
from eqsat_deploy.quantization.absorption import scalable, taken_in
from eqsat_deploy.quantization.biases import unrounded
from eqsat_deploy.quantization.equalization import ChannelScale
from eqsat_deploy.quantization.fake_quantize import Layer, with_exact_weight
from eqsat_deploy.targets.tensorrt import TENSORRT
from tests.deploy.placing import WEIGHTED, int8, traced
from tests.support.models import randomized
from tests.support.stages import outputs

pytestmark = pytest.mark.filterwarnings("ignore:the calibration data", "ignore:in INT8, on calibration data")
SPREAD = 10 ** torch.linspace(-1.5, 1.5, 32)


class Convs(nn.Module):
    """A convolution that writes channels of very different sizes, something, and what takes that back."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.last = nn.Conv2d(32, 16, 1)
        self.between = between
        with torch.no_grad():
            self.first.weight.mul_(SPREAD[:, None, None, None])
            self.second.weight.div_(SPREAD[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(self.between(self.first(x)))))  # type: ignore[no-any-return]


class Normed(nn.Module):
    """Two products that read a normalization with outlying channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 16)
        with torch.no_grad():
            self.norm.weight.mul_(SPREAD)
            self.one.weight.div_(SPREAD)
            self.two.weight.div_(SPREAD)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(x)
        return self.one(y), self.two(y)


def images(count: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 12, 12, generator=generator) for _ in range(count)]


def rows(count: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 10, 32, generator=generator) for _ in range(count)]


def gained(
    model: nn.Module, batches: Callable[..., list[Tensor]], grid: IntegerGrid
) -> tuple[float, fx.GraphModule]:
    """By how many dB the worst output of the default is better than that of observed ranges, on other data."""
    torch.manual_seed(0)
    module = int8(traced(model.eval(), batches(1)[0]), WEIGHTED)
    data = torch.cat(batches(4, seed=1))
    expected = outputs(module, data)
    fast, balanced = (
        quantize(module, batches(), effort=effort, grid=grid) for effort in ("fast", "balanced")
    )
    worst = [min(map(decibels, expected, outputs(form, data))) for form in (fast, balanced)]
    return worst[1] - worst[0], balanced


@pytest.mark.parametrize("grid", [TENSORRT.grid, IntegerGrid(unsigned=True)])
@pytest.mark.parametrize("between", [F.relu, lambda x: x, lambda x: F.max_pool2d(F.leaky_relu(x, 0.1), 2)])
def test_channels_are_scaled_in_the_convolution_that_writes_them(
    grid: IntegerGrid, between: Callable[[Tensor], Tensor]
) -> None:
    better, quantized = gained(Convs(between), images, grid)
    assert better > 6
    assert not any(isinstance(child, ChannelScale) for child in quantized.modules())


def outlying(count: int = 4, seed: int = 0) -> list[Tensor]:
    return [x * torch.where(torch.arange(32) % 11 == 3, 40.0, 1.0) for x in rows(count, seed)]


def test_a_normalization_without_weights_gets_those_that_even_its_channels() -> None:
    torch.manual_seed(0)
    module = encoder()
    fast, balanced = (
        quantize(module, outlying(), effort=effort, grid=TENSORRT.grid) for effort in ("fast", "balanced")
    )
    assert isinstance(fast.first, Standardize)
    assert isinstance(balanced.first, nn.LayerNorm)
    assert float(balanced.first.weight.max()) > 2 * float(balanced.first.weight.min()) > 0
    data = torch.cat(outlying(4, seed=1))
    fast, balanced = (decibels(*outputs(module, data), *outputs(form, data)) for form in (fast, balanced))
    assert balanced > fast + 3


def test_channels_are_scaled_in_the_normalization_that_writes_them() -> None:
    better, quantized = gained(Normed(), rows, TENSORRT.grid)
    assert better > 6
    assert not any(isinstance(child, ChannelScale) for child in quantized.modules())


@pytest.mark.parametrize("grid", [TENSORRT.grid, IntegerGrid(unsigned=True)])
@pytest.mark.parametrize("clipped", [F.relu6, nn.ReLU6(), lambda x: torch.clamp(x, 0.0, 3.0)])
def test_clipping_is_left_to_the_rounding_where_channels_are_scaled_in_front_of_it(
    grid: IntegerGrid, clipped: Callable[[Tensor], Tensor]
) -> None:
    better, quantized = gained(Convs(clipped), images, grid)
    assert better > 3
    assert not any(isinstance(child, ChannelScale) for child in quantized.modules())
    (quantizer,) = [q for q in quantized.modules() if isinstance(q, FakeQuantize) and q.ceiling is not None]
    assert bool((quantizer.ceiling >= quantizer.amax * (1 - 1e-6)).all()), (
        "no code stands for what was clipped"
    )
    (node,) = [
        n
        for n in quantized.graph.nodes
        if n.op == "call_module" and quantized.get_submodule(n.target) is quantizer
    ]
    assert node.all_input_nodes[0].target is torch.relu
    torch.manual_seed(0)
    module = int8(traced(Convs(clipped).eval(), images(1)[0]), WEIGHTED)
    far = 4 * images(1, seed=7)[0]
    torch.testing.assert_close(outputs(unrounded(quantized), far), outputs(module, far), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: torch.clamp(x, -1.0, 6.0),
        lambda x: torch.clamp(x, min=0.0),
        lambda x: F.avg_pool2d(F.relu6(x), 2),
    ],
)
def test_other_clips_and_what_follows_them_stay(other: Callable[[Tensor], Tensor]) -> None:
    _, quantized = gained(Convs(other), images, TENSORRT.grid)
    assert all(q.ceiling is None for q in quantized.modules() if isinstance(q, FakeQuantize))


def test_nothing_moves_through_what_is_not_homogeneous() -> None:
    _, quantized = gained(Convs(F.hardswish), images, TENSORRT.grid)
    assert float(quantized.first.weight.abs().amax((1, 2, 3)).max()) > 1, "as it was"


def test_what_something_else_reads_is_not_scaled() -> None:
    class Both(Normed):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.norm(x)
            return self.one(y) + y, self.two(y)

    _, quantized = gained(Both(), rows, TENSORRT.grid)
    assert torch.equal(quantized.norm.weight, SPREAD)


class Squeezed(nn.Module):
    """A depthwise block with an excitation, ReLU6 and a residual sum, and convolutions with pools between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.depthwise, self.project = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.mix, self.grouped, self.head = (
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 12, 3, groups=4),
            nn.Conv2d(12, 10, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = F.leaky_relu(self.mix(x + self.project(y)), 0.1)
        return self.head(F.avg_pool2d(F.relu(self.grouped(y)), 2))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A layer of a transformer as it comes out: packed attention, and a normalization without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.packed, self.out = Standardize(-1, 1e-5), nn.Linear(32, 96), nn.Linear(32, 32)
        self.attention = PackedAttention(4, 0.35)
        self.second, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.attention(self.packed(self.first(x))))
        return x + self.down(F.relu(self.up(self.second(x))))  # type: ignore[no-any-return]


class Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, Encoder)


def convolutions() -> fx.GraphModule:
    return int8(traced(randomized(Squeezed()), images(1)[0]), WEIGHTED)


def encoder() -> fx.GraphModule:
    model = randomized(Encoder())
    return int8(traced(fx.GraphModule(model, Leaves().trace(model)), rows(1)[0], fold=False), WEIGHTED)


def divided(quantized: fx.GraphModule, node: fx.Node) -> bool:
    """Divide what a node rounds by numbers of chance, if that costs no time."""
    frees = {free.tensor: free for free in deployment(quantized).placement.scales}
    child, tensor = quantized.get_submodule(str(node.target)), node.all_input_nodes[0]
    if not isinstance(child, FakeQuantize) or tensor.name not in frees:
        return False
    layers = {str(user.target): quantized.get_submodule(str(user.target)) for user in node.users
              if user.op == "call_module"}  # fmt: skip
    readers = {name: layer for name, layer in layers.items() if isinstance(layer, Layer)}
    calls = Counter(str(n.target) for n in quantized.graph.nodes if n.op == "call_module")
    found = scalable(frees[tensor.name], quantized, node, readers, calls)
    if found is None or not found.writers:
        return False
    by = torch.rand(found.free.shape) + 0.2
    found.divide(quantized, tensor, by)
    for name, taking in found.readers.items():
        quantized.set_submodule(name, taken_in(readers[name], taking, by))
    child.ceiling = None if found.ceiling is None else found.ceiling / by
    return True


@pytest.mark.parametrize(("made", "batches", "least"), [(convolutions, images, 4), (encoder, rows, 4)])
def test_whatever_channels_are_divided_by_the_function_is_the_same(
    made: Callable[[], fx.GraphModule], batches: Callable[..., list[Tensor]], least: int
) -> None:
    torch.manual_seed(0)
    module = made()
    quantized = quantize(module, batches(), effort="fast", grid=TENSORRT.grid)
    calls = [node for node in quantized.graph.nodes if node.op == "call_module"]
    assert sum([divided(quantized, node) for node in calls]) >= least
    quantized.recompile()
    exact = unrounded(quantized)
    for name, layer in list(exact.named_modules()):
        if isinstance(layer, Layer):
            exact.set_submodule(name, with_exact_weight(layer))
    x = 2 * batches(1, seed=1)[0]
    torch.testing.assert_close(outputs(exact, x), outputs(module, x), rtol=1e-4, atol=1e-5)


def test_a_target_that_divides_itself_does_so_only_where_the_writer_cannot() -> None:
    divides = replace(TENSORRT.grid, equalized=True)
    for activation, itself in ((F.relu, False), (F.hardswish, True)):
        better, quantized = gained(Convs(activation), images, divides)
        assert better > 6
        assert any(isinstance(child, ChannelScale) for child in quantized.modules()) == itself


def test_without_rounding_the_function_is_the_same() -> None:
    torch.manual_seed(0)
    module = int8(traced(Convs(F.relu).eval(), images(1)[0]), WEIGHTED)
    quantized = quantize(module, images(), grid=TENSORRT.grid)
    moved = [name for name in ("first", "second") if not torch.equal(
        module.get_submodule(name).weight, quantized.get_submodule(name).weight)]  # fmt: skip
    assert moved
    for name, child in list(quantized.named_modules()):
        if isinstance(child, FakeQuantize):
            quantized.set_submodule(name, nn.Identity())
    for name in ("first", "second", "last"):
        layer = quantized.get_submodule(name)
        layer.bias = nn.Parameter(layer.bias - layer.correction)
    x = images(1, seed=1)[0]
    torch.testing.assert_close(outputs(quantized, x)[0], outputs(module, x)[0], rtol=1e-4, atol=1e-5)
