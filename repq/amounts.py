"""How amounts are written in sentences, on the terminal and in reports: shares in percent, and what is counted."""

from __future__ import annotations


def percent(share: float) -> str:
    """A share that was measured: 12.3 %."""
    return f"{100 * share:.1f} %"


def percent_asked(share: float) -> str:
    """A share that was asked for, as exactly as it was: 5 %, 0.25 %."""
    return f"{100 * share:.4g} %"


def counted(number: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{number} {noun_of(number, noun)}"


def noun_of(number: int, noun: str) -> str:
    """What is counted, in the singular or the plural."""
    return noun if number == 1 else f"{noun}s"
