"""How near tensors are to what they should be: signal-to-noise ratios in decibels, and classes that changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite, log10

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


@dataclass(frozen=True)
class Fidelity:
    """How near the outputs of a quantized module are to those in float, on `samples` samples.

    `sqnr` is that of the output that has lost most, in dB. `changed` is in how many samples the greatest value of an
    output `[samples, scores]` is another one, and beaten by more than nothing; None without such an output.
    """

    sqnr: float
    changed: int | None
    samples: int

    EXPECTED_SQNR = 20.0
    EXPECTED_CHANGED = 0.01

    @classmethod
    def of(cls, pairs: Iterable[tuple[Tensor, Tensor]]) -> Fidelity:
        """From every output in float and in INT8."""
        pairs = list(pairs)
        scores = [
            (e, f) for e, f in pairs if e.dim() == f.dim() == 2 and e.shape == f.shape and e.shape[1] > 1
        ]
        changed = [
            int((e.gather(1, f.argmax(1, keepdim=True)) < e.amax(1, keepdim=True)).sum()) for e, f in scores
        ]
        return cls(
            min((decibels(e, f) for e, f in pairs), default=inf),
            max(changed, default=None),
            max((len(e) for e, _ in scores), default=0),
        )

    @property
    def doubts(self) -> list[str]:
        """What has been lost beyond what is expected, in words."""
        found = []
        if isfinite(self.sqnr) and self.sqnr < self.EXPECTED_SQNR:
            found.append(
                f"the outputs are {self.sqnr:.1f} dB above their error, {self.EXPECTED_SQNR:g} are expected"
            )
        if self.changed is not None and self.changed > self.EXPECTED_CHANGED * self.samples:
            found.append(
                f"the greatest score is another one in {self.changed} of {self.samples} samples, which matters where "
                "it is the answer"
            )
        return found
