"""How long work shows that it moves: the core takes a ``Progress`` and stays silent by default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable, yields its items unchanged and shows how far it is."""

    def __call__(self, items: Iterable[T], /, *, total: int | None = None, label: str = "") -> Iterator[T]: ...


def silent(items: Iterable[T], /, *, total: int | None = None, label: str = "") -> Iterator[T]:
    """Show nothing."""
    yield from items


def on_terminal(items: Iterable[T], /, *, total: int | None = None, label: str = "") -> Iterator[T]:
    """Draw a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    yield from track(items, total=total, description=label, console=Console(stderr=True), transient=True)
