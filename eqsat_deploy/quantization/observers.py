"""Which range of real values the 256 codes of a tensor should cover, from the batches that pass through.

Observers see float activations one batch at a time, keep a bounded summary, and are deterministic. All but
`MinMax` clip rare outliers, which spends the codes on the bulk of the values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]

BINS = 8192  # over [-limit, limit]; a non-negative tensor with the worst limit still has 8 bins a code
SAMPLES = 1 << 18  # elements counted per batch; the extremes are always exact
RATIOS = np.linspace(0.25, 1.0, 76)  # clipping candidates, as fractions of the observed range


@dataclass(frozen=True)
class Grid:
    """The 256 codes of a tensor and what they stand for: `value = (code - zero_point) * scale`."""

    scale: float
    zero_point: int
    low: int
    high: int

    @property
    def asymmetric(self) -> bool:
        """Whether it has a zero point other than 0."""
        return self.zero_point != 0

    @classmethod
    def covering(cls, minimum: float, maximum: float, *, symmetric: bool, unsigned: bool) -> Grid:
        """The grid for values from `minimum` to `maximum`.

        Symmetric grids have zero point 0: uint8 where nothing is negative and `unsigned` allows it, otherwise
        int8 with |maximum| on code 127, as TensorRT wants it. Asymmetric ones are uint8 and contain 0.
        """
        minimum, maximum = min(minimum, 0.0), max(maximum, 0.0)
        if symmetric and unsigned and minimum == 0.0:
            return cls(_step(maximum / 255), 0, 0, 255)
        if symmetric:
            return cls(_step(max(maximum, -minimum) / 127), 0, -128, 127)
        scale = _step((maximum - minimum) / 255)
        return cls(scale, round(-minimum / scale), 0, 255)

    def codes(self, values: Floats) -> Floats:
        """The code of each value, as floats."""
        codes: Floats = np.clip(np.rint(values / self.scale) + self.zero_point, self.low, self.high)
        return codes

    def values(self, codes: Floats) -> Floats:
        """What each code stands for."""
        return (codes - self.zero_point) * self.scale


class Observer(ABC):
    """Accumulates batches of one tensor (or of tensors that share a grid), then chooses the grid.

    `minimum` and `maximum` are the exact extremes so far; NaN in any batch makes them NaN.
    """

    def __init__(self) -> None:
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def update(self, values: Tensor) -> None:
        """Take one batch, of any shape."""
        if values.numel() == 0:
            return
        low, high = (extreme.item() for extreme in torch.aminmax(values))
        # Unlike min() and max(), these keep NaN.
        self.minimum = float(np.minimum(self.minimum, low))
        self.maximum = float(np.maximum(self.maximum, high))

    @abstractmethod
    def grid(self, *, symmetric: bool, unsigned: bool) -> Grid:
        """The chosen grid, `Grid.covering` of the observed or a narrower range."""


class MinMax(Observer):
    """The whole observed range."""

    def grid(self, *, symmetric: bool, unsigned: bool) -> Grid:
        """The grid from the least to the greatest value seen."""
        return Grid.covering(self.minimum, self.maximum, symmetric=symmetric, unsigned=unsigned)


class Extremes(MinMax):
    """The whole observed range, that of each channel, and the means of the least and of the greatest value of each
    sample along axis 0.

    Attributes:
        axis: the channels'; None where they do not matter.
        lows, highs: the range of each channel, (channels,); empty without an axis.
        sums: over samples, of the least and the greatest value of the tensor.
        channel_sums: likewise of each channel, float64.
        vectors: whether no sample has more than one value of a channel.
    """

    def __init__(self, axis: int | None = None) -> None:
        super().__init__()
        self.axis = axis
        self.lows = self.highs = torch.empty(0)
        self.channel_sums = (torch.zeros((), dtype=torch.double), torch.zeros((), dtype=torch.double))
        self.samples = 0
        self.sums = (0.0, 0.0)
        self.vectors = axis is not None

    def update(self, values: Tensor) -> None:
        """Take one batch, of any shape that has the axis."""
        if values.numel() == 0:
            return
        if self.axis is None:
            samples = values if values.dim() > 1 else values.reshape(-1, 1)
            inner = tuple(range(1, samples.dim()))  # twice as fast as `aminmax`, which takes one axis
            least, greatest = samples.amin(inner), samples.amax(inner)
        else:
            channels = values.movedim(self.axis, 1) if values.dim() > 2 else values[..., None]
            inner = tuple(range(2, channels.dim()))
            self.vectors = self.vectors and channels[0, 0].numel() == 1
            least, greatest = channels.amin(inner).float(), channels.amax(inner).float()
            self.lows = torch.minimum(least.amin(0), self.lows) if self.samples else least.amin(0)
            self.highs = torch.maximum(greatest.amax(0), self.highs) if self.samples else greatest.amax(0)
            below, above = self.channel_sums
            self.channel_sums = (below + least.double().sum(0), above + greatest.double().sum(0))
            least, greatest = least.amin(1), greatest.amax(1)
        super().update(torch.stack([least.min(), greatest.max()]))
        self.samples += len(least)
        self.sums = (
            self.sums[0] + float(least.double().sum()),
            self.sums[1] + float(greatest.double().sum()),
        )

    def grid(self, *, symmetric: bool, unsigned: bool) -> Grid:
        """The range that it may reach."""
        return Grid.covering(*self.whole, symmetric=symmetric, unsigned=unsigned)

    @property
    def channels(self) -> tuple[Tensor, Tensor]:
        """The range that each channel may reach, (channels,): beyond what was seen of it by as much as its extremes lie
        beyond their mean over samples, and within the tensor's."""
        below, above = ((total / self.samples).to(self.lows.dtype) for total in self.channel_sums)
        lows, highs = 2 * self.lows - below, 2 * self.highs - above
        low, high = self.whole
        return lows.clamp_min(low), highs.clamp_max(high)

    @property
    def whole(self) -> tuple[float, float]:
        """The range that the tensor may reach: the observed one, but of vectors, of which a sample shows one value a
        channel where a map shows thousands, beyond it by as much as its extremes lie beyond their mean."""
        if not self.vectors:
            return self.minimum, self.maximum
        low, high = 2 * self.minimum - self.mean_minimum, 2 * self.maximum - self.mean_maximum
        return max(low, 0.0) if self.minimum >= 0 else low, min(high, 0.0) if self.maximum <= 0 else high

    @property
    def mean_minimum(self) -> float:
        """The mean over samples of the least value."""
        return self.sums[0] / self.samples

    @property
    def mean_maximum(self) -> float:
        """The mean over samples of the greatest value."""
        return self.sums[1] / self.samples


class Histogram(Observer):
    """A histogram over [-limit, limit], where `limit` is a power of two that doubles as values grow.

    Doubling merges pairs of bins, so the result does not depend on how values are split into batches except
    through sampling: of a batch larger than `SAMPLES`, every n-th element is counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = np.zeros(BINS)
        self.limit = 0.0

    def update(self, values: Tensor) -> None:
        """Take one batch, of any shape."""
        super().update(values)
        peak = max(-self.minimum, self.maximum)
        if values.numel() == 0 or not 0 < peak < float("inf"):
            return
        self._grow(peak)
        # An odd stride visits every channel of the power-of-two layouts that networks have.
        stride = values.numel() // SAMPLES | 1
        sample = values.detach().reshape(-1)[::stride].float()
        self.counts += torch.histc(sample, BINS, -self.limit, self.limit).double().cpu().numpy() * stride

    def _grow(self, peak: float) -> None:
        if self.limit == 0.0:
            self.limit = float(2.0 ** np.ceil(np.log2(peak)))
        while self.limit < peak:
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), BINS // 4)
            self.limit *= 2

    @property
    def centers(self) -> Floats:
        """The value in the middle of each bin."""
        centers: Floats = (np.arange(BINS, dtype=np.float64) + 0.5) * (2 * self.limit / BINS) - self.limit
        return centers

    def grid(self, *, symmetric: bool, unsigned: bool) -> Grid:
        """The candidate of least `loss`; the wider of two that tie."""

        def covering(ratio: float) -> Grid:
            return Grid.covering(
                ratio * self.minimum, ratio * self.maximum, symmetric=symmetric, unsigned=unsigned
            )

        if not self.counts.any():
            return covering(1.0)
        occupied = self.counts > 0
        counts, centers = self.counts[occupied], self.centers[occupied]
        return min(
            (covering(ratio) for ratio in RATIOS[::-1]), key=lambda grid: self.loss(grid, centers, counts)
        )

    def loss(self, grid: Grid, centers: Floats, counts: Floats) -> float:
        """How badly `grid` represents the histogram, given by its occupied bins."""
        raise NotImplementedError(f"{type(self).__name__} defines neither loss nor grid")


class Mse(Histogram):
    """The range of least mean squared error, clipping and rounding together."""

    def loss(self, grid: Grid, centers: Floats, counts: Floats) -> float:
        """Squared error summed over the counted values."""
        return float(counts @ (grid.values(grid.codes(centers)) - centers) ** 2)


class Entropy(Histogram):
    """The range whose quantized distribution loses least information (Kullback-Leibler divergence).

    The criterion of TensorRT's entropy calibrator (S. Migacz, "8-bit inference with TensorRT", GTC 2017):
    the reference distribution counts clipped values in its outermost bins, the quantized one does not see
    them, and a code's mass is spread evenly over its occupied bins.
    """

    def loss(self, grid: Grid, centers: Floats, counts: Floats) -> float:
        """Divergence in nats of the quantized from the observed distribution."""
        low, high = grid.values(np.array([grid.low - 0.5, grid.high + 0.5]))
        inside = (centers >= low) & (centers <= high)
        if not inside.any():
            return float("inf")
        kept = counts[inside]
        reference = kept.copy()
        reference[0] += counts[centers < low].sum()
        reference[-1] += counts[centers > high].sum()
        codes = (grid.codes(centers[inside]) - grid.low).astype(np.int64)
        mass, bins = np.bincount(codes, kept), np.bincount(codes)
        quantized = (mass / np.maximum(bins, 1))[codes]
        p, q = reference / reference.sum(), quantized / quantized.sum()
        return float(p @ np.log(p / q))


class Percentile(Histogram):
    """The range that leaves out `1 - percentile / 100` of the values, half on either side if signed."""

    def __init__(self, percentile: float = 99.99) -> None:
        super().__init__()
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile={percentile}: choose a number in (50, 100]")
        self.percentile = percentile

    def grid(self, *, symmetric: bool, unsigned: bool) -> Grid:
        """The grid over the central `percentile` of the counted values."""
        low, high = self.minimum, self.maximum
        if self.counts.any():
            tail = 1 - self.percentile / 100
            below = np.cumsum(self.counts) / self.counts.sum()
            edge = self.centers + self.limit / BINS
            tails = (0.0, 1 - tail) if low >= 0 else (tail / 2, 1 - tail / 2)
            high = min(high, float(edge[np.searchsorted(below, tails[1])]))
            if low < 0:
                low = max(low, float(edge[np.searchsorted(below, tails[0])] - 2 * self.limit / BINS))
        return Grid.covering(low, high, symmetric=symmetric, unsigned=unsigned)


OBSERVERS: dict[str, Callable[[], Observer]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": Mse,
}


def _step(scale: float) -> float:
    # Zero when every value was zero: any scale represents that, and 1 keeps later values sane.
    return max(scale, 1e-12) if scale > 0 else 1.0
