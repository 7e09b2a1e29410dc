"""Which ranges a tensor's codes might cover."""

from __future__ import annotations

from collections.abc import Iterator

from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.quantization.observers import Extremes, Grid

RATIOS = (1.0, 0.9, 0.8)


def candidates(extremes: Extremes, grid: IntegerGrid) -> Iterator[Grid]:
    """Grids over the whole observed range and ever narrower ones, and over the mean of the samples' ranges; symmetric
    ones first, with zero points as well for what has both signs where the target reads them."""
    ranges = [(ratio * extremes.minimum, ratio * extremes.maximum) for ratio in RATIOS]
    ranges.append((extremes.mean_minimum, extremes.mean_maximum))
    for symmetric in (True, False) if grid.asymmetric and extremes.minimum < 0 else (True,):
        for low, high in ranges:
            yield Grid.covering(low, high, symmetric=symmetric, unsigned=grid.unsigned)
