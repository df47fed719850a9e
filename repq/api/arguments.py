"""Plain arguments of the API: they have the limits that options of the same names have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from repq.recipe import parse_settings
from repq.recipe.base import Batch, Config, ImageSize, Seed

Size = int | tuple[int, int]


class Arguments(Config):
    """What steps take beside their settings."""

    imgsz: ImageSize | None = None
    batch: Batch = 1
    seed: Seed = 0
    num_classes: Annotated[int, Field(ge=1, le=100_000)] = 1
    names: tuple[str, ...] | None = None


def arguments(what: str, **values: object) -> Arguments:
    """Arguments as values of their types.

    Args:
        what: what an error says of whose they are.

    Raises:
        RecipeError: one is outside its limits, or is no such value.
    """
    return parse_settings(Arguments, values, what=what)


def several(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names of which a single one may be given alone."""
    return (names,) if isinstance(names, str) else tuple(names)
