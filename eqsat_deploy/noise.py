"""Signal-to-noise ratios in decibels."""

from __future__ import annotations

from math import inf, log10

import torch
from torch import Tensor


def decibels(expected: Tensor, found: Tensor) -> float:
    """Signal-to-noise ratio of `found`: infinite where equal, minus that where shapes or non-finite values differ."""
    if expected.shape != found.shape:
        return -inf
    a, b = expected.double(), found.double()
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)) or not torch.equal(
        a[~finite].nan_to_num(), b[~finite].nan_to_num()
    ):
        return -inf
    return ratio(float((a[finite] ** 2).sum()), float(((a - b)[finite] ** 2).sum()))


def ratio(signal: float, noise: float) -> float:
    """Of two powers: infinite without noise, minus that where there is nothing else."""
    if noise == 0:
        return inf
    return 10 * log10(signal / noise) if signal else -inf
