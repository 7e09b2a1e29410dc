from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eqsat_deploy.quantization.observers import (
    OBSERVERS,
    Entropy,
    Grid,
    Histogram,
    MinMax,
    Mse,
    Observer,
    Percentile,
)

ranges = st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)).map(sorted)


def observed(observer: Observer, *batches: torch.Tensor) -> Observer:
    for batch in batches:
        observer.update(batch)
    return observer


@given(ranges, st.booleans(), st.booleans())
def test_a_grid_covers_its_range_within_half_a_step(
    bounds: list[float], symmetric: bool, unsigned: bool
) -> None:
    grid = Grid.covering(*bounds, symmetric=symmetric, unsigned=unsigned)
    assert grid.scale > 0
    assert grid.low <= grid.zero_point <= grid.high
    assert (grid.low, grid.high) in {(-128, 127), (0, 255)}
    values = np.linspace(*bounds, 1000)
    error = np.abs(grid.values(grid.codes(values)) - values).max()
    # An asymmetric zero point is rounded too, which shifts the ends by up to another half step.
    assert error <= grid.scale * (0.5 if symmetric else 1.0) * (1 + 1e-6)


def test_zero_is_exact_on_every_grid() -> None:
    for symmetric in (True, False):
        grid = Grid.covering(-0.3, 1.7, symmetric=symmetric, unsigned=True)
        assert grid.values(grid.codes(np.zeros(1))) == 0


def test_never_negative_becomes_uint8_only_where_allowed() -> None:
    assert Grid.covering(0.0, 2.0, symmetric=True, unsigned=True) == Grid(2.0 / 255, 0, 0, 255)
    assert Grid.covering(0.0, 2.0, symmetric=True, unsigned=False) == Grid(2.0 / 127, 0, -128, 127)
    assert Grid.covering(-1e-3, 2.0, symmetric=True, unsigned=True).low == -128


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
@pytest.mark.parametrize("name", OBSERVERS)
def test_a_tensor_that_never_varies_has_a_grid_that_represents_it(name: str, value: float) -> None:
    grid = observed(OBSERVERS[name](), torch.full((4, 5), value)).grid(symmetric=True, unsigned=True)
    assert grid.scale > 0
    assert grid.values(grid.codes(np.array([value])))[0] == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize("name", OBSERVERS)
def test_nan_in_any_batch_sticks(name: str) -> None:
    bad = torch.tensor([1.0, float("nan")])
    for batches in ([bad, torch.ones(3)], [torch.ones(3), bad]):
        observer = observed(OBSERVERS[name](), *batches)
        assert observer.maximum != observer.maximum


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=6), st.integers(0, 2**31))
def test_histograms_do_not_depend_on_how_values_are_batched(peaks: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(500, generator=generator) * peak for peak in peaks]
    apart, together = observed(Mse(), *batches), observed(Mse(), torch.cat(batches))
    assert isinstance(apart, Histogram)
    assert isinstance(together, Histogram)
    assert apart.limit == together.limit
    assert apart.counts.sum() == together.counts.sum() == 500 * len(peaks)
    # Rounding may put a value near a bin's edge on either side of it, never further.
    below, counted = np.cumsum(apart.counts), np.cumsum(together.counts)
    assert (counted[1:-1] >= below[:-2]).all()
    assert (counted[1:-1] <= below[2:]).all()


def test_of_a_large_batch_a_sample_is_counted_and_extremes_are_exact() -> None:
    values = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    values[7] = 100.0
    observer = Mse()
    observer.update(values)
    assert observer.maximum == 100.0
    assert observer.counts.sum() == pytest.approx(1 << 20, rel=1e-4)


def brute_mse(values: np.ndarray) -> float:
    """The least mean squared error over a fine search of symmetric ranges, on the values themselves."""
    peak = np.abs(values).max()
    grids = (
        Grid.covering(-peak * r, peak * r, symmetric=True, unsigned=True) for r in np.linspace(0.05, 1, 400)
    )
    return min(float(((grid.values(grid.codes(values)) - values) ** 2).mean()) for grid in grids)


def test_mse_is_near_the_best_range_and_beats_min_max_with_outliers() -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    values[:3] = torch.tensor([9.0, -8.0, 8.5])
    array = values.double().numpy()

    def error(observer: Observer) -> float:
        grid = observed(observer, values).grid(symmetric=True, unsigned=True)
        return float(((grid.values(grid.codes(array)) - array) ** 2).mean())

    assert error(Mse()) <= 1.02 * brute_mse(array)
    assert error(Mse()) < error(MinMax())


def test_entropy_clips_a_lone_outlier_and_keeps_a_uniform_range() -> None:
    generator = torch.Generator().manual_seed(0)
    bulk = torch.randn(100_000, generator=generator)
    clipped = observed(Entropy(), torch.cat([bulk, torch.tensor([40.0])])).grid(symmetric=True, unsigned=True)
    assert clipped.scale * 127 < 20
    flat = torch.rand(100_000, generator=generator)
    kept = observed(Entropy(), flat).grid(symmetric=True, unsigned=True)
    assert kept.scale * 255 > 0.9


def test_percentile_is_the_quantile() -> None:
    values = torch.arange(10001, dtype=torch.float32)
    grid = observed(Percentile(99.0), values).grid(symmetric=True, unsigned=True)
    assert grid.scale * 255 == pytest.approx(9900, rel=0.002)
    both = observed(Percentile(99.0), values - 5000).grid(symmetric=False, unsigned=True)
    assert both.scale * 255 == pytest.approx(9900, rel=0.002)


def test_percentile_refuses_what_is_none() -> None:
    with pytest.raises(ValueError, match=r"percentile=100\.5"):
        Percentile(100.5)
