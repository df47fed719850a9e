"""The front of AP against latency."""

from __future__ import annotations

import numpy as np
import pytest

from repq.api.plan_latency import marked
from repq.results import FrontPoint


@pytest.mark.parametrize("seed", range(10))
def test_points_on_the_front_are_those_that_no_other_beats_in_both(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = [
        FrontPoint(float_layers=index, int8_macs_share=0.5, drop=round(drop, 1), drop_interval=(0, 0),
                   latency_ms=round(latency, 1), latency_ms_range=(0, 0))
        for index, (drop, latency) in enumerate(rng.uniform(0, 2, (20, 2)))
    ]  # fmt: skip
    found = marked(points)
    assert [point.latency_ms for point in found] == sorted(point.latency_ms for point in points)
    for point in found:
        beaten = any(
            other.latency_ms <= point.latency_ms and other.drop <= point.drop
            and (other.latency_ms, other.drop) != (point.latency_ms, point.drop)
            for other in points
        )  # fmt: skip
        twin = any(
            other.efficient for other in found if (other.latency_ms, other.drop) == (point.latency_ms, point.drop)
        )
        assert twin != beaten
