"""Tiny models, each with one thing that an optimizer gets wrong easily."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._models import load, rerandomize


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    return rerandomize(model, seed).eval()


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def timm_model(name: str, **options: Any) -> Any:
    """A timm model with random weights; torchvision, which timm imports, needs `benchmarks._models` first."""
    import timm

    return timm.create_model(name, **options)


def torchvision_model(name: str) -> Any:
    """A torchvision model with random weights."""
    return load(f"torchvision:{name}")


class Fire(nn.Module):
    """Parts with and without negative elements, joined, pooled with sizes rounded up, and read by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.one, self.two = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(64, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        joined = torch.cat([F.relu(self.one(x)), self.two(x)], 1)
        return self.last(F.max_pool2d(joined, 3, 2, ceil_mode=True))


class Residual(nn.Module):
    """Convolutions with BatchNorm, a residual, in-place activations, dropout, a pool and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.norm(self.conv(x)) + x, inplace=True)
        return self.head(self.dropout(torch.flatten(self.pool(x), 1)))


class Aliasing(nn.Module):
    """In-place operators on views and on what views see."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        z = y.view(-1, 2, 3)
        z.mul_(2.0)
        before = y + 0
        y[:, 0].relu_()
        y.add_(1.0)
        return before + y + z.reshape(-1, 6)


class PartsInPlace(nn.Module):
    """One of several parts of a tensor changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.convolution(x)
        rows = y.unbind(2)
        rows[1].mul_(2.0)
        left, right = y.split([1, 3], 3)
        right.relu_()
        first, second = y.chunk(2, 1)
        second.add_(1.0)
        return y * rows[0].unsqueeze(2), left, right, first


class Tied(nn.Module):
    """One parameter under two names, and a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.shared = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = F.gelu(self.shared(x))
        return self.head(self.norm(self.shared(x) + x))


class Several(nn.Module):
    """Two inputs, one by keyword, a buffer, and a dict with a nested tuple as the result."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)
        self.register_buffer("offset", torch.arange(6.0))

    def forward(self, a: Tensor, *, b: Tensor, scale: float = 1.0) -> dict[str, Any]:
        joined = F.relu(self.left(a)) + self.right(b) * scale
        return {"sum": joined + self.offset, "parts": (joined.mean(1), joined[:, :2])}


class Transformer(nn.Module):
    """Patches, a class token that is expanded to the batch, self-attention, and a head on the token."""

    def __init__(self, width: int = 16, heads: int = 4, depth: int = 2, **options: Any) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.ModuleList(Block(width, heads, **options) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Block(nn.Module):
    def __init__(self, width: int, heads: int, **options: Any) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, **{"batch_first": True, **options})
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.after(x))


class Attends(nn.Module):
    """One `nn.MultiheadAttention`, called as told."""

    def __init__(self, call: str = "self", width: int = 8, heads: int = 2, **options: Any) -> None:
        super().__init__()
        self.call = call
        self.attention = nn.MultiheadAttention(width, heads, **{"batch_first": True, **options})
        self.register_buffer("mask", torch.triu(torch.full((5, 5), float("-inf")), 1))

    def forward(self, x: Tensor) -> Any:
        y = x * 2
        match self.call:
            case "self":
                return self.attention(x, x, x, need_weights=False)[0]
            case "cross":
                return self.attention(x, y, y, need_weights=False)[0]
            case "mask":
                return self.attention(x, x, x, need_weights=False, attn_mask=self.mask)[0]
            case "padding":
                padding = torch.zeros(x.shape[:2], dtype=torch.bool) | (x[:, :, 0] > 1e9)
                return self.attention(x, x, x, need_weights=False, key_padding_mask=padding)[0]
            case "weights":
                return self.attention(x, x, x, need_weights=True)
            case "widths":
                return self.attention(x, x[..., :4], x[..., 2:5], need_weights=False)[0]
            case "unknown":
                kept = x.index_select(0, torch.nonzero(x[:, 0, 0] > 0)[:, 0])
                return self.attention(kept, kept, kept, need_weights=False)[0]
            case "unread":
                return self.attention(x, x, x)[0]
        raise ValueError(self.call)


class Opaque(nn.Module):
    """Operators that the language does not have, between those that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.logcumsumexp(F.relu(self.first(x)), 1)
        values, _ = torch.sort(x, 1)
        return self.second(values)


class Unexportable(nn.Module):
    """Branches on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if x.sum() > 0:  # the line that stops the export
            return x + 1
        return x - 1


class Counting(nn.Module):
    """Changes a buffer whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls
