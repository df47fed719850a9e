"""Where stages say what the user should know beside the result."""

from __future__ import annotations

from collections.abc import Callable

Log = Callable[[str], None]


def quiet(line: str) -> None:
    """Say nothing."""
