"""What an engine takes and how far it is from a module, measured: what its methods of these names return."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from eqsat_deploy import arguments as checked
from eqsat_deploy.calling import Arguments, arguments
from eqsat_deploy.errors import InputError
from eqsat_deploy.noise import decibels

if TYPE_CHECKING:
    from eqsat_deploy.engines.base import Engine, Layer

WARMUP = 3
LEAST = 5  # calls, however long they take


@dataclass(frozen=True)
class Benchmark:
    """Calls of an engine one after another, in microseconds a call: the median, percentiles, and the fastest."""

    batch: int
    calls: int
    median: float
    p90: float
    p99: float
    fastest: float
    throughput: float
    """Samples a second over all calls."""

    def __str__(self) -> str:
        times = f"{self.median / 1e3:.3f} ms a call (90 %: {self.p90 / 1e3:.3f}, 99 %: {self.p99 / 1e3:.3f})"
        return f"batch {self.batch}: {times}, {self.throughput:,.0f} samples/s; {self.calls} calls"


@dataclass(frozen=True)
class Agreement:
    """One output beside the module's: the lowest signal-to-noise ratio of a batch (dB), and the largest difference."""

    name: str
    decibels: float
    largest: float


@dataclass(frozen=True)
class Comparison:
    """An engine beside a module, output by output, over a number of batches."""

    outputs: tuple[Agreement, ...]
    batches: int

    @property
    def _agreement(name: str, expected: Tensor, found: Tensor) -> Agreement:
    if expected.shape != found.shape:
        raise InputError(
            f"{name}: the module returns shape {list(expected.shape)} and the engine {list(found.shape)}"
        )
    off = (expected.double() - found.double()).abs()
    return Agreement(name, decibels(expected, found), float(off.max()) if off.numel() else 0.0)
