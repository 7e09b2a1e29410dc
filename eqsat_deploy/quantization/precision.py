"""Which kernels stay in float: those whose rounding costs the outputs more than float costs time."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf, log10

import torch.nn.functional as F
from torch import Tensor, fx

from eqsat_deploy.deployment import Placement
from eqsat_deploy.errors import InputError, UnknownNameError
from eqsat_deploy.noise import Fidelity, decibels
from eqsat_deploy.quantization.sensitivity import Sensitivities, Sensitivity
from eqsat_extraction.arguments import finite

ENOUGH = 28.0
"""dB of the outputs on calibration data above which no kernel is put in float."""

WORTH = 0.3
"""How many dB of the outputs a hundredth of the predicted time has to buy."""

MOST, MOST_FOR_BEST = 0.055, 0.08
"""The part of the predicted time that may be spent where no accuracy is asked for, and with the most effort."""

LEADING = 0.03
"""How much of the time may go to the first kernels, whatever is expected of them: what is lost there goes through
everything, and first order sees too little of it (MobileNetV2, five sets of data: KL 0.043 in the median without them,
0.033 with the first two convolutions)."""

LEAST = 0.5
"""dB that kernels in float have to bring however little time is predicted for them."""

CONSIDERED = 12
"""Kernels that are chosen among: those of the most noise for their time, and of a hundredth of all noise at least."""


class Spending:
    """What part of the predicted time kernels add in float, any of them together: where all that reads a tensor's codes
    is in float, nothing rounds it, and what computes it writes floats.

    In engines of MobileNetV2 on AVX2 the first convolution adds 4.1 % and the next 2.8 %, both 4.1 %, with the third
    6.0 %; predicted are 2.5, 1.6, 3.0 and 4.0 %."""

    def __init__(self, placement: Placement, nodes: Mapping[str, fx.Node]) -> None:
        self.total = sum(kernel.cost for kernel in placement.kernels)
        self.alone = {
            kernel.anchor: kernel.float_cost - kernel.cost
            for kernel in placement.kernels
            if kernel.precision == "int8" and kernel.float_cost is not None
        }
        owners = {name: kernel for kernel in placement.kernels for name in kernel.nodes}

        def readers(name: str) -> Iterator[str | None]:
            """The INT8 kernel that `name` is of, or those that it hands codes to; None for anything else."""
            if (kernel := owners.get(name)) is not None:
                yield kernel.anchor if kernel.precision == "int8" else None
            else:
                users = nodes[name].users
                yield from (found for user in users for found in readers(user.name)) if users else (None,)

        self.roundings = []
        for quantizer in placement.quantizers:
            reading = frozenset(found for name in quantizer.readers for found in readers(name))
            writer, saved, saved_in_float = owners.get(quantizer.tensor), quantizer.cost, quantizer.cost
            if writer is not None:
                saved += _more(writer.cost, writer.wide_cost)
                saved_in_float += _more(writer.float_cost, writer.float_wide_cost)
            self.roundings.append((reading, writer and writer.anchor, saved, saved_in_float))

    def __call__(self, kept: frozenset[str]) -> float:
        """Of the kernels with these anchors."""
        spent = sum(self.alone[anchor] for anchor in kept)
        for reading, writer, saved, saved_in_float in self.roundings:
            if reading <= kept:
                spent -= saved_in_float if writer in kept else saved
        return max(spent, 0.0) / (self.total or inf)


def _more(cost: float | None, other: float | None) -> float:
    """How much more one costs than another; nothing where that is not known."""
    return 0.0 if cost is None or other is None else cost - other


def economical(
    found: Sensitivities, spending: Callable[[frozenset[str]], float], most: float, always: Sequence[str] = ()
) -> list[str]:
    """The kernels to keep in float where no accuracy is asked for: of all sets with `always` in them that take no more
    than `most` of the time, as `spending` says of their anchors, the one that is expected to bring most beyond its
    `worth`. None where no set is expected to bring that."""
    noise = max(10 ** (-found.sqnr / 10), sum(one.noise for one in found.kernels))
    first = tuple(one for one in found.kernels if one.kernel in always)

    def gain(kept: Sequence[Sensitivity]) -> float:
        left = noise - sum(one.noise for one in kept)
        return 10 * log10(noise / left) if left > 0 else inf

    def spent(kept: Sequence[Sensitivity]) -> float:
        return spending(frozenset(one.kernel for one in kept))

    great = [one for one in found.by_worth() if one.time is not None and one.noise > noise / 100]
    others = [one for one in great if one not in first][:CONSIDERED]
    sets = ((*first, *kept) for count in range(len(others) + 1) for kept in combinations(others, count))
    worthy = (kept for kept in sets if spent(kept) <= most and gain(kept) >= worth(spent(kept)))
    best = max(worthy, key=lambda kept: gain(kept) - WORTH * 100 * spent(kept), default=())
    return [one.kernel for one in best]


def affordable(sqnr: float, most: float) -> float:
    """The part of the time that may be spent where the outputs have `sqnr` dB: `most` where an engine is warned of,
    less and less up to `ENOUGH` (EfficientNet-Lite0, 24 dB: the first two convolutions bring its divergence from 0.055
    to 0.008 for 1.3 % of time, two more leave it there for 2 %)."""
    return most * min(max(ENOUGH - sqnr, 0.0) / (ENOUGH - Fidelity.EXPECTED_SQNR), 1.0)


def leading(spending: Spending, most: float) -> list[str]:
    """The first INT8 kernels, as many of the first `CONSIDERED` as take no more than `LEADING` and `most` of the time
    in float: of the next one, too, where that saves conversions."""
    anchors = [*spending.alone][:CONSIDERED]
    counts, most = range(len(anchors), 0, -1), min(LEADING, most)
    count = next((count for count in counts if spending(frozenset(anchors[:count])) <= most), 0)
    return anchors[:count]


def worth(spent: float) -> float:
    """How many dB of the outputs kernels in float have to bring for a part of the time."""
    return max(WORTH * 100 * spent, LEAST)


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
