"""Each method against its definition, computed by brute force on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repq.quant.calibration import calibrator
from repq.quant.calibration.entropy import entropy_range
from repq.quant.calibration.histogram import Histogram
from repq.quant.calibration.ranges import mse_range, percentile_range
from repq.quant.scaling import Scheme, range_scale
from repq.recipe import CalibrationConfig
from repq.results import Range

SCHEMES: tuple[Scheme, ...] = ("symmetric", "asymmetric")
METHODS = ("max", "percentile", "mse", "entropy")


def sample(kind: str, size: int = 40_000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, size)
    match kind:
        case "normal":
            pass
        case "relu":
            x = np.maximum(x, 0)
        case "silu":
            x = 3 * x / (1 + np.exp(-3 * x))
        case "outliers":
            x[:20] *= 60
        case "heavy":
            x = rng.standard_t(2.5, size)
        case "negative":
            x = -np.abs(x) - 0.1
    return x.astype(np.float32)


KINDS = ("normal", "relu", "silu", "outliers", "heavy", "negative")


def histogram(x: np.ndarray, bins: int = 2048) -> Histogram:
    result = Histogram("the input of conv", bins)
    result.add(torch.from_numpy(x))
    return result


def activation_range(seen: Histogram, scheme: Scheme, config: CalibrationConfig) -> Range:
    return calibrator(config.method).range(seen, scheme, config)


def error(x: np.ndarray, low: float, high: float, scheme: Scheme) -> float:
    scale = range_scale(low, high, scheme)
    exact = x.astype(np.float64)
    q = np.clip(np.rint(exact / scale.scale) + scale.zero_point, scale.q_min, scale.q_max)
    return float(np.square(exact - (q - scale.zero_point.astype(np.float64)) * scale.scale).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_max_is_exact(kind: str) -> None:
    x = sample(kind)
    assert activation_range(histogram(x), "symmetric", CalibrationConfig(method="max")) == (
        float(x.min()),
        float(x.max()),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentile_equals_numpys(kind: str, percentile: float) -> None:
    x = sample(kind)
    found = histogram(x)
    low, high = percentile_range(found, "symmetric", percentile)
    # Within two bins, and the gap between two neighbouring values in a thin tail.
    edges = np.percentile(np.abs(x), [percentile - 0.01, min(percentile + 0.01, 100)])
    assert edges[0] - 2 * found.bin_width <= high <= edges[1] + 2 * found.bin_width
    assert low == -high
    low, high = percentile_range(found, "asymmetric", percentile)
    tail = (100 - percentile) / 2
    for edge, at in ((low, tail), (high, 100 - tail)):
        around = np.percentile(x, [max(at - 0.01, 0), min(at + 0.01, 100)])
        around = np.clip(around, *((-np.inf, 0) if at == tail else (0, np.inf)))
        assert around[0] - 2 * found.bin_width <= edge <= around[1] + 2 * found.bin_width


@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_mse_equals_brute_force(kind: str) -> None:
    x = sample(kind)
    low, high = mse_range(histogram(x), "symmetric")
    largest = float(np.abs(x).max())
    least = min(error(x, -t, t, "symmetric") for t in np.linspace(largest / 256, largest, 1500))
    # The search is over the histogram and on a grid; the error near its minimum is flat.
    assert low == -high
    assert error(x, low, high, "symmetric") <= 1.01 * least


@pytest.mark.parametrize("kind", KINDS)
def test_asymmetric_mse_is_near_brute_force_and_no_worse_than_symmetric(kind: str) -> None:
    x = sample(kind, size=10_000)
    found = histogram(x)
    low, high = mse_range(found, "asymmetric")
    lows = np.linspace(min(x.min(), 0), 0, 60) if x.min() < 0 else [0.0]
    highs = np.linspace(0, max(x.max(), 0), 60) if x.max() > 0 else [0.0]
    least = min(error(x, a, b, "asymmetric") for a in lows for b in highs if b > a)
    mine = error(x, low, high, "asymmetric")
    assert mine <= 1.05 * least
    assert mine <= 1.02 * error(x, *mse_range(found, "symmetric"), "symmetric")


def divergence(counts: np.ndarray, length: int, levels: int) -> float:
    """KL(P || Q) as the slides describe it, bin by bin."""
    p = counts[:length].astype(np.float64)
    kept = p.copy()
    filled = np.flatnonzero(kept)
    if not filled.size:
        return np.inf
    p[filled[-1]] += counts[length:].sum()
    q = np.zeros(length)
    for level in range(levels):
        members = slice(level * length // levels, (level + 1) * length // levels)
        nonzero = kept[members] > 0
        if nonzero.any():
            q[members][nonzero] = kept[members].sum() / nonzero.sum()
    p, q = p / p.sum(), q / q.sum()
    mask = p > 0
    return float((p[mask] * np.log(p[mask] / q[mask])).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_entropy_equals_the_slow_definition(kind: str) -> None:
    found = histogram(sample(kind), bins=512)
    folded = found.above() + found.below()
    last = int(np.flatnonzero(folded)[-1]) + 1
    slow = {length: divergence(folded, length, 128) for length in range(min(128, last), last + 1)}
    low, high = entropy_range(found, "symmetric")
    chosen = round(high / found.bin_width)
    if high < found.largest_magnitude:
        assert high == pytest.approx(chosen * found.bin_width)
    else:
        chosen = last
    assert low == -high
    assert slow[chosen] <= min(slow.values()) + 1e-9


def test_unsigned_entropy_uses_all_256_levels_on_one_side() -> None:
    found = histogram(sample("relu"), bins=512)
    above = found.above()
    last = int(np.flatnonzero(above)[-1]) + 1
    slow = {length: divergence(above, length, 256) for length in range(min(256, last), last + 1)}
    low, high = entropy_range(found, "asymmetric")
    chosen = last if high >= found.maximum else round(high / found.bin_width)
    assert low == 0
    assert slow[chosen] <= min(slow.values()) + 1e-9


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_how_many_candidates_are_looked_at_together_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str, scheme: Scheme
) -> None:
    found = histogram(sample(kind, 4000), 512)
    whole = entropy_range(found, scheme)
    monkeypatch.setattr("repq.quant.calibration.entropy._AT_ONCE", 1000)
    assert entropy_range(found, scheme) == whole


def test_signed_entropy_shrinks_both_ends_in_proportion() -> None:
    x = sample("silu")
    low, high = entropy_range(histogram(x), "asymmetric")
    assert low / high == pytest.approx(float(x.min()) / float(x.max()))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_outliers_are_clipped(method: str, scheme: Scheme) -> None:
    x = sample("outliers")
    config = CalibrationConfig(method=method, **({"percentile": 99.9} if method == "percentile" else {}))
    assert activation_range(histogram(x), scheme, config)[1] < 0.6 * float(x.max())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_ranges_lie_within_what_was_seen_and_scale_with_it(method: str, scheme: Scheme, kind: str) -> None:
    x = sample(kind, size=5000)
    config = CalibrationConfig(method=method)  # type: ignore[arg-type]
    low, high = activation_range(histogram(x), scheme, config)
    largest = float(np.abs(x).max())
    assert -largest <= low < high <= largest
    # A power of two moves every bin exactly.
    assert activation_range(histogram(x * 8), scheme, config) == pytest.approx((8 * low, 8 * high), rel=1e-6)
    if scheme == "symmetric" and method in ("percentile", "entropy"):  # -128 makes mse see signs
        assert activation_range(histogram(-x), scheme, config) == (low, high)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x", [np.zeros(50), np.full(50, 2.5), np.full(50, -2.5), np.array([1e-30, 1.0])])
def test_degenerate_tensors_get_a_usable_scale(method: str, scheme: Scheme, x: np.ndarray) -> None:
    config = CalibrationConfig(method=method)  # type: ignore[arg-type]
    low, high = activation_range(histogram(x.astype(np.float32)), scheme, config)
    scale = range_scale(low, high, scheme)
    assert np.isfinite(scale.scale)
    assert scale.scale > 0


@pytest.mark.parametrize("scheme", SCHEMES)
@given(st.integers(0, 240), st.integers(4, 255), st.integers(0, 2**32 - 1))
def test_entropy_clips_at_most_half_of_the_values(scheme: Scheme, first: int, count: int, seed: int) -> None:
    """Pixels of bright images: 255 places, none near zero, and few values at the first of them."""
    rng = np.random.default_rng(seed)
    last = min(first + count, 255)
    places = first + (last - first) * rng.beta(rng.uniform(0.5, 6), rng.uniform(0.5, 6), 4000)
    x = (np.rint(places) / 255).astype(np.float32)
    low, high = entropy_range(histogram(x), scheme)
    inside = (x >= low - 1e-6) & (x <= high + 1e-6) & (x != 0)
    assert inside.sum() >= 0.5 * np.count_nonzero(x)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pixels_keep_their_range(scheme: Scheme) -> None:
    """Those of microscopy, from a fifth of the range on: their first bins alone were once taken for all of them."""
    counts = np.concatenate([np.zeros(50), np.geomspace(1, 4000, 150), np.full(56, 4000.0)]).astype(int)
    x = (np.repeat(np.arange(256), counts) / 255).astype(np.float32)
    low, high = entropy_range(histogram(x), scheme)
    assert 10 * np.log10(np.square(x).mean() / error(x, low, high, scheme)) > 20
