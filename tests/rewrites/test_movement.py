"""Movement cancels, composes, and stands where it costs least."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._models import rerandomize
from eqsat_deploy.saturate import saturate
from eqsat_deploy.selection import registered_rules
from eqsat_deploy.soundness import check_egraph
from tests.support.models import image, randomized
from tests.support.stages import assert_same, called, lowered, optimized

MOVES = ("permute", "transpose", "narrow", "slice", "cat", "roll", "expand", "pad")


def moves(module: torch.fx.GraphModule) -> list[str]:
    """What moves data in the graph; views are free."""
    names = [getattr(n.target, "__name__", "") for n in module.graph.nodes if n.op == "call_function"]
    return [name for name in names if name.partition(".")[0] in MOVES]


class Around(nn.Module):
    """A convolution, something done to a map of 4 channels that only moves data, and a convolution."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


def windows(x: Tensor, size: int = 4) -> Tensor:
    """Channels-last maps in windows, as Swin has them (Liu et al. 2021, section 3.2)."""
    n, h, w, c = x.shape
    return x.view(n, h // size, size, w // size, size, c).transpose(2, 3).reshape(-1, size * size, c)


def whole(x: Tensor, h: int, w: int, size: int = 4) -> Tensor:
    """Windows back in place."""
    x = x.view(-1, h // size, w // size, size, size, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, h, w, x.shape[-1])


def in_windows(function):
    """`function` of the windows of a channels-last map, between two permutes and two rolls."""

    def apply(x: Tensor) -> Tensor:
        x = torch.roll(x.permute(0, 2, 3, 1), (-2, -2), (1, 2))
        x = whole(function(windows(x)), 8, 8)
        return torch.roll(x, (2, 2), (1, 2)).permute(0, 3, 1, 2)

    return apply


def halves_of_sums(x: Tensor) -> Tensor:
    y = torch.cat([x, F.relu(x)], 1)
    return y[:, :4] + y[:, 4:]


NOTHING = {
    "chunk and cat": lambda x: torch.cat(torch.chunk(x, 2, 1), 1),
    "split and cat": lambda x: torch.cat(x.split([1, 2, 1], 1), 1),
    "unbind and stack": lambda x: torch.stack(x.unbind(1), 1),
    "activation between permutes": lambda x: F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "softmax between permutes": lambda x: F.softmax(x.permute(0, 2, 3, 1), 1).permute(0, 3, 1, 2),
    "cat of permuted": lambda x: torch.cat([x.mT, F.relu(x).mT], 2).mT[..., :8],
    "parts of a cat": halves_of_sums,
    "rolls": lambda x: torch.roll(F.relu(torch.roll(x, (1, 2), (2, 3))), (-1, -2), (2, 3)),
    "expands": lambda x: x + x.mean(1, keepdim=True).expand(-1, 4, -1, -1),
    "windows": in_windows(F.gelu),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTHING)
def test_movement_cancels(case):
    model = randomized(Around(NOTHING[case]))
    x = image(2, 3, 8, 8)
    module = optimized(model, x)
    assert not moves(module), module.code
    assert_same(model, module, x)


class Windows(nn.Module):
    """What Swin does around its attention, with a Linear in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.apply_in_windows = in_windows(self.inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_in_windows(x)


def test_windows_cancel_around_linear_layers():
    model = randomized(Windows())
    x = image(2, 4, 8, 8)
    module = optimized(model, x)
    assert not moves(module), module.code
    assert_same(model, module, x)


def test_a_swin_block_joins_heads_and_windows_in_one_permute():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.swin_transformer.SwinTransformer([4, 4], 8, [2], [2], [4, 4], num_classes=5)
    model, x = rerandomize(model, 0).eval(), image(2, 3, 32, 32)
    module = optimized(model, x)
    written = 1 + 2 * 4  # channels last; per block windows, heads, joined heads, windows put together
    assert moves(module).count("permute") < written, module.code
    assert_same(model, module, x)


def test_a_convnext_block_needs_no_permute():
    torchvision = pytest.importorskip("torchvision")
    settings = [
        torchvision.models.convnext.CNBlockConfig(16, 24, 2),
        torchvision.models.convnext.CNBlockConfig(24, None, 1),
    ]
    model = rerandomize(torchvision.models.convnext.ConvNeXt(settings, num_classes=5), 0).eval()
    x = image(2, 3, 32, 32)
    module = optimized(model, x)
    assert not moves(module), module.code
    assert "ChannelNorm" in called(module)
    assert "LayerNorm" not in called(module)
    assert_same(model, module, x)


class Reads(nn.Module):
    """Two heads, one of which may not be read, and an operator without rules whose second result is not."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.both = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4), both

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        left, right = torch.sort(self.left(x))[0], torch.cumprod(self.right(x), 1)
        return (left, right) if self.both else left


@pytest.mark.parametrize("both", [False, True])
def test_what_is_not_read_is_not_computed(both):
    model = randomized(Reads(both))
    x = image(2, 6)
    module = optimized(model, x)
    assert called(module).count("Linear") == 2 + both
    assert ("cumprod" in module.code) == both
    assert_same(model, module, x)


class GatedBlocks(nn.Module):
    """MambaOut's block (Yu and Wang 2025): every value of a block has a channels-first and a channels-last form."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.norms = nn.Conv2d(3, 4, 3), nn.ModuleList(nn.LayerNorm(4) for _ in range(depth))
        self.wider = nn.ModuleList(nn.Linear(4, 12) for _ in range(depth))
        self.mixers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(depth))
        self.narrower = nn.ModuleList(nn.Linear(6, 4) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        for norm, wider, mixer, narrower in zip(
            self.norms, self.wider, self.mixers, self.narrower, strict=True
        ):
            gate, kept, mixed = wider(norm(x)).split((6, 2, 4), -1)
            mixed = mixer(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = x + narrower(F.gelu(gate) * torch.cat((kept, mixed), -1))
        return x


def test_forms_of_a_block_do_not_multiply_from_block_to_block():
    phases = [r for r in registered_rules() if r.phase in ("demand", "rewrites")]

    def size(depth: int) -> int:
        result = saturate(lowered(randomized(GatedBlocks(depth)), image(2, 3, 8, 8)), phases)
        assert result.stopped == "saturated"
        assert result.matches["injective-permute"]
        return result.frozen.size()

    two, three, four = size(2), size(3), size(4)
    assert four - three == three - two


def test_gated_blocks_agree_class_by_class():
    assert check_egraph(randomized(GatedBlocks(2)), image(2, 3, 8, 8)).ok
