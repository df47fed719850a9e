"""One format per quantity."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repq import amounts
from repq.report import numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.fraction(0.30441), "0.3044"),
        (numbers.change(-0.0102), "−0.0102"),
        (numbers.change(0.00001), "±0.0000"),
        (numbers.change(-0.00001), "±0.0000"),
        (numbers.change(0.0051), "+0.0051"),
        (numbers.significant(69.14), "69.1"),
        (numbers.significant(2.076), "2.08"),
        (numbers.significant(1329.4), "1329"),
        (numbers.significant(0.04567), "0.0457"),
        (numbers.significant(9.999), "10.0"),
        (numbers.significant(0), "0.00"),
        (numbers.compact(3.2e-6), "3.2e-06"),
        (numbers.compact(-1.5), "−1.5"),
        (numbers.compact(math.inf), "∞"),
        (numbers.decibels(-math.inf), "−∞"),
        (numbers.decibels(36.64), "36.6"),
        (numbers.times(2.4624), "2.46 ×"),
        (numbers.percent(0.9214), "92.1 %"),
        (amounts.percent(0.011), "1.1 %"),
        (amounts.percent_asked(0.05), "5 %"),
        (amounts.percent_asked(0.07), "7 %"),
        (amounts.percent_asked(0.0025), "0.25 %"),
        (amounts.counted(1, "image"), "1 image"),
        (amounts.counted(0, "image"), "0 images"),
        (numbers.mebibytes(5 * 2**20), "5.00 MiB"),
        (numbers.count(12345), "12\u202f345"),
        (numbers.plural(1, "image"), "1 image"),
        (numbers.plural(2, "image"), "2 images"),
    ],
)
def test_formats(text: str, expected: str) -> None:
    assert text == expected


def test_what_was_not_measured_is_a_dash() -> None:
    formats = (numbers.fraction, numbers.change, numbers.percent, numbers.significant, numbers.compact, numbers.times)
    for write in (*formats, numbers.mebibytes, numbers.milliseconds, numbers.decibels, numbers.count):
        assert write(None) == numbers.ABSENT


@given(st.floats(1e-6, 1e9))
def test_three_significant_digits_are_kept(value: float) -> None:
    assert float(numbers.significant(value)) == pytest.approx(value, rel=0.0051)


@given(st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-30))
def test_compact_keeps_four_digits(value: float) -> None:
    assert float(numbers.compact(value).replace("−", "-")) == pytest.approx(value, rel=5.1e-4)
