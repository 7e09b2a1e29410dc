"""What extraction decided, in names of the rebuilt graph: its inputs, its kernels, and where tensors become INT8.

`optimize` puts these into the rebuilt module's `meta`; quantization and the engines read them from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class InputSpec:
    """One input of a rebuilt module. `shape` has None where the batch stands; `dtype` is torch's."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Quantizer:
    """One tensor that is stored as INT8, and the nodes that read its INT8 form.

    A reader that is a view or another operator commuting with quantization (reshape, permute, max-pool)
    hands INT8 on: what reads *its* result needs no quantizer. Other readers are INT8 kernels.
    """

    tensor: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class PlacedKernel:
    """One launch that the cost model predicts: the nodes it covers, anchor first, and its precision.

    `precision` is `int8` when it computes in integers, otherwise the target's float type. `output` is the
    dtype it writes. `cost` is in the cost model's unit.
    """

    anchor: str
    nodes: tuple[str, ...]
    precision: str
    output: str
    cost: float


@dataclass(frozen=True)
class Placement:
    """Every quantizer and every kernel of the chosen form, in graph order."""

    quantizers: tuple[Quantizer, ...] = ()
    kernels: tuple[PlacedKernel, ...] = ()
