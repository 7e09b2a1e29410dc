"""Training and scoring of a small classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from demo.data import Digits

BATCH = 128


def train(model: nn.Module, data: Digits, *, epochs: int, rate: float = 3e-3, seed: int = 0) -> None:
    """Train `model` in place with AdamW under a one-cycle schedule; leaves it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps = -(-len(data.train_labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # kernels this small lose more to waiting for each other than they gain from a second core
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train_labels), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(model(data.train_images[rows]), data.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    torch.set_num_threads(threads)


@torch.no_grad()
def accuracy(predict: Callable[[Tensor], Tensor], data: Digits) -> float:
    """Share of test images that `predict` (images to logits) puts into their class."""
    logits = torch.cat([predict(images) for images in data.test_images.split(BATCH)])
    return float((logits.argmax(dim=1) == data.test_labels).double().mean())
