"""Which kernels stay in float: those whose rounding costs the outputs more than float costs time."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf, log10

import torch.nn.functional as F
from torch import Tensor, fx

from eqsat_deploy.deployment import Placement
from eqsat_deploy.errors import InputError, UnknownNameError
from eqsat_deploy.noise import decibels
from eqsat_deploy.quantization.sensitivity import Sensitivities, Sensitivity
from eqsat_extraction.arguments import finite

ENOUGH = 30.0
"""dB of the outputs on calibration data above which no kernel is put in float."""

WORTH = 0.3
"""How many dB of the outputs a hundredth of the predicted time has to buy."""

MOST = 0.055
"""The part of the predicted time that may be spent where no accuracy is asked for (EfficientNet-Lite: the first
convolutions take 4 to 5 % of it and make 80 % of the divergence on other photographs)."""

LEAST = 0.5
"""dB that kernels in float have to bring however little time is predicted for them."""

CONSIDERED = 12
"""Kernels that are chosen among: those of the most noise for their time, and of a hundredth of all noise at least."""


def economical(found: Sensitivities) -> tuple[list[str], float]:
    """The kernels to keep in float where no accuracy is asked for, and the least dB of the outputs that are worth their
    time: of all sets that take no more than `MOST` of it, the one that is expected to bring most beyond its worth.
    None where no set is expected to bring enough."""
    noise = max(10 ** (-found.sqnr / 10), sum(one.noise for one in found.kernels))

    def gain(kept: Sequence[Sensitivity]) -> float:
        left = noise - sum(one.noise for one in kept)
        return 10 * log10(noise / left) if left > 0 else inf

    def spent(kept: Sequence[Sensitivity]) -> float:
        return sum(one.time or 0.0 for one in kept) / (found.total or inf)

    def worth(kept: Sequence[Sensitivity]) -> float:
        return WORTH * 100 * spent(kept)

    def least(kept: Sequence[Sensitivity]) -> float:
        return max(worth(kept), LEAST)

    great = [one for one in found.by_worth() if one.time is not None and one.noise > noise / 100][:CONSIDERED]
    sets = (kept for count in range(1, len(great) + 1) for kept in combinations(great, count))
    affordable = (kept for kept in sets if spent(kept) <= MOST and gain(kept) >= least(kept))
    best = max(affordable, key=lambda kept: gain(kept) - worth(kept), default=())
    return [one.kernel for one in best], least(best)


def leaving(found: Sensitivities, part: float) -> list[str]:
    """The kernels to put in float for a `part` of the noise to be left, at least one, in the same order."""
    left = total = sum(one.noise for one in found.kernels)
    kept: list[str] = []
    for one in found.by_worth():
        if kept and left <= part * total:
            break
        kept.append(one.kernel)
        left -= one.noise
    return kept


def patterns_of(placement: Placement, precision: Mapping[str, str]) -> tuple[str, ...]:
    """The patterns of kernels to keep in float, each of which names at least one."""
    names = [name for kernel in placement.kernels for name in kernel.nodes]
    for pattern, wanted in precision.items():
        if wanted != "float":
            raise UnknownNameError(f"precision of {pattern!r}", str(wanted), ["float"])
        if not fnmatch.filter(names, pattern):
            raise UnknownNameError("kernel", pattern, names)
    return tuple(precision)


def with_floats(placement: Placement, patterns: Sequence[str], nodes: Mapping[str, fx.Node]) -> Placement:
    """`placement` with the kernels that match in float; what hands them codes alone reads no codes either."""
    if not patterns:
        return placement
    kept = {
        kernel.anchor
        for kernel in placement.kernels
        if any(fnmatch.filter(kernel.nodes, pattern) for pattern in patterns)
    }
    kernels = tuple(
        replace(
            kernel,
            precision="float32",
            output="float32",
            cost=kernel.float_cost or kernel.cost,
            float_cost=None,
        )
        if kernel.anchor in kept
        else kernel
        for kernel in placement.kernels
    )
    floats = {name for kernel in kernels if kernel.anchor in kept for name in kernel.nodes}
    integers = {name for kernel in kernels if kernel.anchor not in kept for name in kernel.nodes}

    def in_float(name: str) -> bool:
        users = [user.name for user in nodes[name].users]
        return name in floats or (name not in integers and bool(users) and all(map(in_float, users)))

    left = (
        replace(quantizer, readers=tuple(name for name in quantizer.readers if not in_float(name)))
        for quantizer in placement.quantizers
    )
    return replace(
        placement, kernels=kernels, quantizers=tuple(quantizer for quantizer in left if quantizer.readers)
    )


def without_float_operands(placement: Placement) -> Placement:
    """What the epilogue of a kernel reads that writes float stays float: an INT8 residual saves it nothing, and costs
    the accuracy of the stream."""
    floats = {
        name
        for kernel in placement.kernels
        if kernel.precision == "int8" and kernel.output != "int8"
        for name in kernel.nodes
        if name != kernel.anchor
    }
    kept = (
        replace(quantizer, readers=tuple(name for name in quantizer.readers if name not in floats))
        for quantizer in placement.quantizers
    )
    return replace(placement, quantizers=tuple(quantizer for quantizer in kept if quantizer.readers))


Metric = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
"""From the outputs in float and those in INT8, in the order that the model returns them, to a number."""


def sqnr(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The signal-to-noise ratio in dB of the output that has lost most."""
    return min(decibels(e, f) for e, f in zip(expected, found, strict=True))


def cosine(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The mean cosine between rows along the last axis, of the output where it is least."""
    return min(float(F.cosine_similarity(e.float(), f.float(), dim=-1).mean())
               for e, f in zip(expected, found, strict=True))  # fmt: skip


def kl(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The mean Kullback-Leibler divergence in nats of the distributions whose logits lie along the last axis, of the
    output where it is greatest."""

    def one(e: Tensor, f: Tensor) -> float:
        p, q = (F.log_softmax(values.float(), -1).flatten(0, -2) for values in (e, f))
        return float(F.kl_div(q, p, log_target=True, reduction="batchmean"))

    return max(one(e, f) for e, f in zip(expected, found, strict=True))


METRICS: dict[str, Metric] = {"sqnr": sqnr, "cosine": cosine, "kl": kl}


@dataclass(frozen=True)
class AccuracyBudget:
    """A bound on what INT8 does to the outputs on calibration data.

    Attributes:
        limit: least `sqnr` in dB or `cosine`, greatest `kl` or error.
        metric: a name of `METRICS`, or a function that returns an error.

    Raises:
        UnknownNameError: no metric of that name.
        InputError: the limit is no number, or the metric is neither a name nor a function.
    """

    limit: float
    metric: str | Metric = "sqnr"

    def __post_init__(self) -> None:
        finite("limit", self.limit)
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise UnknownNameError("metric", self.metric, METRICS)
        if not isinstance(self.metric, str) and not callable(self.metric):
            raise InputError(f"metric={self.metric!r}: a name or a function is expected")

    @property
    def name(self) -> str:
        """What the metric is called."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "error")

    def measure(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
        """The metric of the outputs `found`."""
        metric = METRICS[self.metric] if isinstance(self.metric, str) else self.metric
        return float(metric(expected, found))

    def excess(self, value: float) -> float:
        """By which factor the power of the noise is too great for a value of the metric; at most 1 where it is not."""
        match self.metric:
            case "sqnr":
                return float(10 ** ((self.limit - value) / 10))
            case "cosine":
                return (1 - value) / max(1 - self.limit, 1e-12)
            case _:
                return value / max(self.limit, 1e-12)
