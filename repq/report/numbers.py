"""How the report writes numbers: one format per quantity, the unit in the name; a dash where nothing was measured."""

from __future__ import annotations

import math

ABSENT = "–"


def fraction(value: float | None) -> str:
    """AP and its like, as fractions: 0.3044."""
    return ABSENT if value is None else f"{value:.4f}"


def change(value: float | None) -> str:
    """A signed difference of two fractions: −0.0102."""
    if value is None:
        return ABSENT
    return "±0.0000" if round(value, 4) == 0 else f"{value:+.4f}".replace("-", "−")


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f} %"


def significant(value: float | None, digits: int = 3) -> str:
    """At least ``digits`` significant digits, never an exponent: 2.08, 69.1, 1329."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return _not_finite(value)
    magnitude = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 9.999 counts as 10.0
    return f"{value:.{max(0, digits - 1 - magnitude)}f}".replace("-", "−")


def compact(value: float | None) -> str:
    """Four significant digits, with an exponent where needed: errors, ranges, scales."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return _not_finite(value)
    return f"{'−' if value < 0 else ''}{abs(value):.4g}"


def times(ratio: float | None) -> str:
    """A speed against another: 2.46 ×."""
    return ABSENT if ratio is None else f"{ratio:.2f} ×"


def mebibytes(size_bytes: int | None) -> str:
    return ABSENT if size_bytes is None else f"{significant(size_bytes / 2**20)} MiB"


def milliseconds(value: float | None) -> str:
    return ABSENT if value is None else f"{significant(value)} ms"


def decibels(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.1f}".replace("-", "−") if math.isfinite(value) else _not_finite(value)


def count(value: int | None) -> str:
    """Whole numbers with thin thousands: 12 345."""
    return ABSENT if value is None else f"{value:,}".replace(",", "\u202f")


def plural(value: int, noun: str) -> str:
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    return "∞" if value > 0 else "−∞"
