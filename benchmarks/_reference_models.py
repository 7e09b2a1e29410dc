"""The kinds of models that TENSAT and the MCTS study optimize, as real PyTorch modules with their own activations,
normalizations and softmax; theirs are drawn in TASO's operators, without most of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._models import load


class NasCell(nn.Module):
    """The recurrent cell of Zoph and Le (2017, arXiv:1611.01578, figure 8): eight gates of the input and of the state,
    a matrix product each, as TENSAT's model has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(8))
        self.states = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(8))

    def forward(self, x: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        a = [gate(x) for gate in self.inputs]
        b = [gate(state) for gate in self.states]
        first = torch.tanh(torch.sigmoid(a[0] + b[0]) * torch.relu(a[1] + b[1]))
        second = torch.tanh(torch.sigmoid(a[2] + b[2]) + torch.relu(a[3] * b[3]))
        third = torch.tanh(torch.tanh(a[4] + b[4]) * torch.sigmoid(a[5] + b[5]))
        fourth = torch.sigmoid(torch.tanh(a[6] + b[6]) + torch.sigmoid(a[7] + b[7]))
        left, right = torch.tanh(first + cell) * second, torch.tanh(third + fourth)
        return torch.tanh(left * right), left


class NasRnn(nn.Module):
    """Five steps of one cell: (n, 5, width) to (n, width)."""

    def __init__(self, width: int = 512, length: int = 5) -> None:
        super().__init__()
        self.cell, self.length, self.width = NasCell(width), length, width

    def forward(self, x: Tensor) -> Tensor:
        state = cell = x[:, 0] * 0.0
        for step in range(self.length):
            state, cell = self.cell(x[:, step], state, cell)
        return state


def bert() -> tuple[nn.Module, Any]:
    """Eight layers of width 1024 on 64 tokens, as TENSAT's, with everything that a BERT has."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=1024, num_hidden_layers=8, num_attention_heads=16, intermediate_size=4096,
                        vocab_size=1000, attn_implementation="sdpa")  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    return model.eval(), {"input_ids": torch.arange(128).reshape(2, 64)}


def images(spec: str, side: int = 224) -> Callable[[], tuple[nn.Module, Any]]:
    """A network for images by its name."""
    return lambda: (load(spec), torch.rand(2, 3, side, side))


REFERENCE: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "SqueezeNet": images("torchvision:squeezenet1_1"),
    "BERT": bert,
    "ResNeXt-50": images("torchvision:resnext50_32x4d"),
    "MobileNet-v2": images("torchvision:mobilenet_v2"),
    "Inception-v3": images("torchvision:inception_v3", 299),
    "ResNet-50": images("torchvision:resnet50"),
    "NASRNN": lambda: (NasRnn().eval(), torch.rand(2, 5, 512)),
    "VGG-19": images("torchvision:vgg19"),
    "NASNet-A": images("timm:nasnetalarge", 331),
}
"""By the names of the MCTS study's table 2."""

PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "BERT": {"MCTS": (33.71, 1171), "MCTS greedy": (14.03, 61), "TENSAT": (22.35, 2.05)},
    "Inception-v3": {"MCTS": (17.06, 7.4), "MCTS greedy": (18.94, 6.2), "TENSAT": (18.34, 2.8)},
    "MobileNet-v2": {"MCTS": (0.12, 2106), "MCTS greedy": (0.96, 358), "TENSAT": (-0.68, 3.4)},
    "NASNet-A": {"MCTS": (23.38, 403), "MCTS greedy": (23.14, 466), "TENSAT": (17.83, 1.5)},
    "NASRNN": {"MCTS": (18.74, 1218), "MCTS greedy": (18.93, 174), "TENSAT": (10.22, 12.8)},
    "ResNet-50": {"MCTS": (0.66, 16), "MCTS greedy": (0.78, 17), "TENSAT": (0.31, 4.7)},
    "ResNeXt-50": {"MCTS": (28.86, 296), "MCTS greedy": (28.43, 145), "TENSAT": (27.11, 4.8)},
    "SqueezeNet": {"MCTS": (32.67, 5544), "MCTS greedy": (33.17, 365), "TENSAT": (29.74, 7.5)},
    "VGG-19": {"MCTS": (11.96, 2.2), "MCTS greedy": (13.03, 1), "TENSAT": (12.48, 0.3)},
}
"""Table 2 of the MCTS study (PACT 2024): measured speedup in percent, and seconds of optimization. `MCTS` extracts by
ILP in the loop, `MCTS greedy` by its own greedy extractor and by ILP at the end."""
