"""How the report writes numbers: one format per quantity, the unit in the name; a dash where nothing was measured.

Every format takes None and what is not a number as "not measured", and writes infinities as a sign.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from repq import amounts

ABSENT = "–"
P = ParamSpec("P")


def _format(write: Callable[Concatenate[float, P], str]) -> Callable[Concatenate[float | None, P], str]:
    @functools.wraps(write)
    def written(value: float | None, /, *args: P.args, **kwargs: P.kwargs) -> str:
        if value is None or math.isnan(value):
            return ABSENT
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        return write(value, *args, **kwargs).replace("-", "−", 1 if value < 0 else 0)

    return written


@_format
def correlation(value: float) -> str:
    """From −1.00 to 1.00."""
    return f"{value:.2f}"


@_format
def fraction(value: float) -> str:
    """AP and its like, as fractions: 0.3044."""
    return f"{value:.4f}"


@_format
def change(value: float) -> str:
    """A signed difference of two fractions: −0.0102."""
    return "±0.0000" if round(value, 4) == 0 else f"{value:+.4f}"


percent = _format(amounts.percent)


@_format
def significant(value: float) -> str:
    """At least three significant digits, never an exponent: 2.08, 69.1, 1329."""
    magnitude = int(f"{value:.2e}".partition("e")[2])  # after rounding: 9.999 counts as 10.0
    return f"{value:.{max(0, 2 - magnitude)}f}"


@_format
def compact(value: float) -> str:
    """Four significant digits, with an exponent where needed: errors, ranges, scales."""
    return f"{value:.4g}"


@_format
def times(ratio: float) -> str:
    """A speed against another: 2.46 ×."""
    return f"{ratio:.2f} ×"


@_format
def mebibytes(size_bytes: float) -> str:
    return f"{significant(size_bytes / 2**20)} MiB"


@_format
def milliseconds(value: float) -> str:
    return f"{significant(value)} ms"


@_format
def decibels(value: float) -> str:
    return f"{value:.1f}"


@_format
def gain(value: float) -> str:
    """A signed difference in decibels: +13.40."""
    return f"{value:+.2f}"


@_format
def count(value: float) -> str:
    """Whole numbers with thin thousands: 12 345."""
    return f"{value:,}".replace(",", "\u202f")


def release(version: str) -> str:
    """A version without what a builder appended: 2026.4.1 of 2026.4.1-22982-e213a147257-releases/2026/4."""
    return version.partition("-")[0]


def difference(before: float | None, after: float | None) -> float | None:
    """What was gained; None where one of both was not measured."""
    return None if before is None or after is None else after - before


def plural(value: int, noun: str) -> str:
    return f"{count(value)} {amounts.noun_of(value, noun)}"


def interval(changes: tuple[float, float]) -> str:
    """A range of differences of fractions: −0.0102 … +0.0031."""
    return " … ".join(map(change, changes))


def span(bounds: tuple[float, float]) -> str:
    """A range of values: −0.5 … 0.75."""
    return " … ".join(map(compact, bounds))


def largest(bounds: tuple[float, float]) -> float:
    """Largest |value| of a range."""
    return max(abs(bounds[0]), abs(bounds[1]))
