"""An ablation: one recipe in several variants and with several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repq.recipe.base import Config, Name, Seed, setting


class Ablation(Config):
    """What is compared."""

    name: Name = setting(help="Name of the run folder.")
    seeds: tuple[Seed, ...] = setting((0,), min_length=1, help="Every variant is run with each of them.")
    base: dict[str, Any] = setting({}, help="Settings of a recipe that all variants share.")
    variants: dict[str, dict[str, Any]] = setting(
        min_length=1, help="By name, what each adds to `base` or changes in it."
    )


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, which go into nested mappings; neither is altered."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
