"""Small networks of five families, trained here on real data: scikit-learn's digits, 1,797 scans, at 32x32.

Images are (n, 3, 32, 32) float32 from -1 to 1, the grey repeated over the channels, since the architectures are
torchvision's. 30% is held out: no network is trained, calibrated or finetuned on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

import benchmarks._models  # noqa: F401  (makes torchvision importable)
from demo.data import Digits, digits

SIDE = 32
BATCH = 64
ACCURATE = 0.98  # what a network has to reach on what is held out
DRAWS = 5  # of the augmentation, for every held-out image
SHIFT, TURN, SCALE, NOISE = 0.12, math.radians(12), 0.15, 0.1


class Images(NamedTuple):
    """Images and labels to train on, and the held-out ones: as they are, then `DRAWS` times augmented."""

    train: Tensor
    train_labels: Tensor
    held: Tensor
    held_labels: Tensor

    @property
    def plain(self) -> int:
        """How many of the held-out images are as they are."""
        return len(self.held) // (1 + DRAWS)


def images() -> Images:
    """The digits, the same in every run."""
    data: Digits = digits()
    held, labels = upscaled(data.test_images), data.test_labels
    generator = torch.Generator().manual_seed(1000)
    drawn = [augmented(held, generator) for _ in range(DRAWS)]
    return Images(
        upscaled(data.train_images), data.train_labels, torch.cat([held, *drawn]), labels.repeat(1 + DRAWS)
    )


def upscaled(scans: Tensor) -> Tensor:
    """(n, 1, 8, 8) to (n, 3, 32, 32)."""
    large = F.interpolate(scans, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return large.expand(-1, 3, -1, -1).contiguous()


def augmented(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted, turned and scaled about its middle by its own amounts, then noise added."""

    def drawn(most: float) -> Tensor:
        return most * (2 * torch.rand(len(batch), generator=generator) - 1)

    angle, scale = drawn(TURN), 1 + drawn(SCALE)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rows = ((cosine, -sine, drawn(2 * SHIFT)), (sine, cosine, drawn(2 * SHIFT)))  # the image is 2 wide
    moves = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = F.affine_grid(moves, list(batch.shape), align_corners=False)
    moved = F.grid_sample(batch + 1, grid, align_corners=False) - 1  # what comes in from outside is black
    return moved + NOISE * torch.randn(moved.shape, generator=generator)


def resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)


def mobilenet_v3() -> nn.Module:
    """Squeeze-excite and Hardswish."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    block = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    blocks = [
        block(16, 3, 32, 16, True, "RE", 1),
        block(16, 3, 72, 24, False, "RE", 2),
        block(24, 5, 96, 40, True, "HS", 2),
        block(40, 5, 160, 40, True, "HS", 1),
        block(40, 5, 160, 48, True, "HS", 1),
    ]
    return MobileNetV3(blocks, last_channel=256, num_classes=10)


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    stages = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 1)]
    return ConvNeXt(stages, layer_scale=0.1, num_classes=10)


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=SIDE,
        patch_size=4,
        num_layers=4,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=192,
        num_classes=10,
    )


def swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer(
        patch_size=[4, 4],
        embed_dim=48,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        mlp_ratio=2.0,
        stochastic_depth_prob=0.0,
        num_classes=10,
    )


class Recipe(NamedTuple):
    """How a network is made and trained: AdamW's largest rate, and how often each image is seen."""

    make: Callable[[], nn.Module]
    rate: float
    epochs: int


NETWORKS = {
    "resnet": Recipe(resnet, 3e-3, 25),
    "mobilenet_v3": Recipe(mobilenet_v3, 5e-3, 50),
    "convnext": Recipe(convnext, 2e-3, 50),
    "vit": Recipe(vit, 2e-3, 100),
    "swin": Recipe(swin, 2e-3, 200),
}


def trained(name: str, data: Images, cache: Path | None = None) -> nn.Module:
    """One of `NETWORKS` in eval mode, its weights from `cache` where they are there, else trained and put there.

    Raises:
        ValueError: it does not reach 98% on the held-out images.
    """
    torch.manual_seed(0)
    recipe, path = NETWORKS[name], cache / f"{name}.safetensors" if cache else None
    model = recipe.make()
    if path and path.exists():
        load_model(model, path)
    else:
        train(model, data, recipe)
    reached = accuracy(model.eval(), data.held, data.held_labels)
    if reached < ACCURATE:
        raise ValueError(f"{name} is right about {reached:.2%} of the held-out images, not {ACCURATE:.0%}")
    if path and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, str(path))
    return model


def train(model: nn.Module, data: Images, recipe: Recipe, seed: int = 0) -> None:
    """In place: cross entropy of augmented images, AdamW under a one-cycle schedule."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.05)
    steps = recipe.epochs * -(-len(data.train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    model.train()
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(data.train), generator=generator).split(BATCH):
            logits = model(augmented(data.train[rows], generator))
            loss = F.cross_entropy(logits, data.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def outputs(run: Callable[[Tensor], Tensor], batch: Tensor, at_once: int = BATCH) -> Tensor:
    """The logits of `run`, some images at a time."""
    with torch.no_grad():
        return torch.cat([run(part) for part in batch.split(at_once)])


def accuracy(run: Callable[[Tensor], Tensor], batch: Tensor, labels: Tensor) -> float:
    """Share of images that `run` puts into their class."""
    return float((outputs(run, batch).argmax(1) == labels).double().mean())
