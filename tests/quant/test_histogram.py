"""The streaming histogram is a function of the values alone, exact, and of constant size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repq.errors import QuantizationError
from repq.quant.calibration.histogram import Histogram


def histogram(*batches: torch.Tensor, bins: int = 128) -> Histogram:
    result = Histogram("the input of conv", bins)
    for batch in batches:
        result.add(batch)
    return result


def heavy_tailed(seed: int, size: int = 20_000) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(2, size).astype(np.float32)
    values[rng.random(size) < 0.3] = 0
    return torch.from_numpy(values)


@pytest.mark.parametrize("bins", [128, 129, 1000, 2048, 20_000])
def test_order_and_batching_do_not_matter(bins: int) -> None:
    values = heavy_tailed(bins)
    whole = histogram(values, bins=bins)
    ascending = values[values.abs().argsort()]  # the range grows as often as it can
    for order in (ascending, ascending.flip(0)):
        parts = histogram(*order.split(777), bins=bins)
        assert torch.equal(parts.counts, whole.counts)
        assert (parts.exponent, parts.minimum, parts.maximum) == (whole.exponent, whole.minimum, whole.maximum)


@pytest.mark.parametrize("seed", range(5))
def test_counts_equal_the_definition(seed: int) -> None:
    values = heavy_tailed(seed)
    found = histogram(*values.split(999))
    exact = values.double().numpy()
    index = np.sign(exact) * np.ceil(np.abs(exact) / found.bin_width)
    expected = np.bincount((index + found.bins).astype(int), minlength=2 * found.bins + 1)
    np.testing.assert_array_equal(found.counts.numpy(), expected)
    assert found.zeros == int((values == 0).sum())
    assert found.total == len(values)


def test_at_least_half_of_the_bins_are_in_reach() -> None:
    for largest in (1.0, 1.0001, 1.9999, 0.5, 3e-5, 6e4):
        found = histogram(torch.tensor([largest]))
        used = int(np.flatnonzero(found.above())[0]) + 1
        assert found.bins // 2 <= used <= found.bins
        assert (used - 1) * found.bin_width < largest <= used * found.bin_width * (1 + 1e-6)


def test_zeros_alone_and_then_values() -> None:
    found = histogram(torch.zeros(10), torch.tensor([-1.0, 0.0, 2.0]), torch.zeros(3))
    assert (found.zeros, found.total, found.minimum, found.maximum) == (14, 16, -1.0, 2.0)
    assert histogram(torch.zeros(10)).bin_width == 0
    assert histogram(torch.zeros(10)).total == 10
    assert histogram(torch.zeros(0)).total == 0


def test_points_have_the_mean_and_spread_of_the_values() -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0)) + 0.5
    points, counts = histogram(values, bins=2048).points()
    assert counts.sum() == pytest.approx(50_000)
    # A value is moved by at most one bin, 8 / 2048; over many values that averages out.
    assert np.average(points, weights=counts) == pytest.approx(float(values.mean()), abs=1e-4)
    assert np.average(points**2, weights=counts) == pytest.approx(float((values**2).mean()), rel=1e-4)
    assert points.min() >= float(values.min())
    assert points.max() <= float(values.max())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(QuantizationError, match=r"the input of conv is not finite(.|\n)*1 of 3 values"):
        histogram(torch.tensor([1.0, bad, 2.0]))


def test_size_is_constant() -> None:
    one, many = histogram(heavy_tailed(0)), histogram(*(heavy_tailed(seed) * 10**seed for seed in range(8)))
    assert one.nbytes == many.nbytes == 8 * (2 * 128 + 1)


def test_half_precision_and_non_contiguous_inputs() -> None:
    values = heavy_tailed(1).reshape(4, -1)
    assert torch.equal(histogram(values.t()).counts, histogram(values).counts)
    assert histogram(values.half()).total == values.numel()
