"""An ablation: one recipe in several variants and with several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from repq.recipe.base import Config


class Ablation(Config):
    """What is compared.

    Attributes:
        seeds: every variant is run with each of them.
        base: settings of a recipe that all variants share.
        variants: by name, what each adds to ``base`` or changes in it.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    base: dict[str, Any] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(min_length=1)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, which go into nested mappings; neither is altered."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
