"""Scikit-learn's digits: 1,797 scanned digits of 8x8 pixels, which come with the package."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor


class Digits(NamedTuple):
    """Images (n, 1, 8, 8) float32 from -1 to 1, and labels (n,) int64; the test part is never trained on."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(seed: int = 0) -> Digits:
    """Digits split 70 to 30 with every class in both parts alike."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.3, stratify=labels, random_state=seed
    )

    def image(values: object) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1

    return Digits(image(train_x), torch.as_tensor(train_y), image(test_x), torch.as_tensor(test_y))
