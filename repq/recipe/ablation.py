"""An ablation: one recipe in several variants and with several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from repq.recipe.base import Config, Name, Seed, setting


class Effects(Config):
    """Which variants make one change alone, and which one makes all of them."""

    baseline: str = setting(help="The variant that the others are compared with.")
    together: str = setting(help="The variant with all changes; every other one makes one of them.")
    int8: tuple[str, ...] = setting((), help="Variants that ship the INT8 engine; the others ship that in FP32.")


class Ablation(Config):
    """What is compared."""

    name: Name = setting(help="Name of the run folder.")
    seeds: tuple[Seed, ...] = setting((0,), min_length=1, help="Every variant is run with each of them.")
    base: dict[str, Any] = setting({}, help="Settings of a recipe that all variants share.")
    variants: dict[str, dict[str, Any]] = setting(
        min_length=1, help="By name, what each adds to `base` or changes in it."
    )
    effects: Effects | None = setting(
        None, help="Also say of each change what it does alone, and whether all together do what they add up to."
    )

    @model_validator(mode="after")
    def _seeds_that_differ(self) -> Ablation:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is given twice: its figures would count twice, and make the spread smaller")
        return self

    @model_validator(mode="after")
    def _effects_of_variants(self) -> Ablation:
        named = () if self.effects is None else (self.effects.baseline, self.effects.together, *self.effects.int8)
        if missing := [name for name in named if name not in self.variants]:
            raise ValueError(f"effects names {missing[0]!r}, which is none of the variants")
        return self


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, which go into nested mappings; neither is altered."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
