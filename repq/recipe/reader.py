"""Recipes and settings from YAML and from ``key=value`` overrides."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from repq import reading
from repq.errors import RecipeError
from repq.recipe.ablation import Ablation, merged
from repq.recipe.base import C, Config
from repq.recipe.whole import Recipe, recipe_class


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.path=value`` overrides (values are YAML).

    Paths inside the recipe are relative to the recipe's folder; environment variables and ``~`` are expanded.

    Raises:
        RecipeError: the file is missing or no mapping, a key is unknown, or a value is invalid.
    """
    values = read_yaml(path)
    for override in overrides:
        set_value(values, override)
    return parse_recipe(values, source=str(path), base=path.resolve().parent)


@dataclass(frozen=True)
class Trial:
    """One run of an ablation."""

    variant: str
    seed: int
    recipe: Recipe


def load_ablation(path: Path, overrides: Iterable[str] = (), seeds: Sequence[int] = ()) -> tuple[Ablation, list[Trial]]:
    """Read an ablation and make the recipe of each variant and seed; ``overrides`` go into all of them.

    Args:
        seeds: instead of the file's.

    Raises:
        RecipeError: the file is missing or no mapping, a key is unknown, or a value is invalid, in any of the recipes.
    """
    values = read_yaml(path)
    if seeds:
        values["seeds"] = list(seeds)
    try:
        ablation = Ablation.model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            f"{path} is no valid ablation", found=_explain(error, Ablation), fix="mend the keys named"
        ) from None
    trials = []
    for variant, changes in ablation.variants.items():
        for seed in ablation.seeds:
            recipe = merged(merged({"name": ablation.name, **ablation.base}, changes), {"seed": seed})
            for override in overrides:
                set_value(recipe, override)
            source = f"variant {variant!r} of {path}"
            trials.append(Trial(variant, seed, parse_recipe(recipe, source=source, base=path.resolve().parent)))
    return ablation, trials


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of plain types; see `repq.reading.read_yaml` for the bounds.

    Raises:
        RecipeError: the file cannot be read or holds no mapping.
    """
    return reading.read_yaml(path, error=RecipeError)


def set_value(values: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in a nested mapping, in place.

    Raises:
        RecipeError: the override has no ``=``, or walks through a value that is no mapping.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"cannot read the override {override!r}", fix="write --set stage.key=value")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"the override {override!r} goes through {parent!r}, which is a plain value")
        node = child
    node[last] = reading.parse_yaml(text, f"the override {override}", error=RecipeError)


def parse_recipe(values: Mapping[str, Any], *, source: str, base: Path) -> Recipe:
    """Validate a mapping as a recipe; relative paths are taken from ``base``.

    Raises:
        RecipeError: an unknown key (with the closest valid one) or an invalid value.
    """
    try:
        recipe = recipe_class().model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(
            f"{source} is no valid recipe", found=_explain(error, recipe_class()), fix="mend the keys named"
        ) from None
    return _resolve_paths(recipe, base)


def parse_settings(model: type[C], values: Mapping[str, Any], overrides: Iterable[str] = (), *, what: str) -> C:
    """Validate the settings of one stage; values of None take the default, ``key=value`` overrides win.

    Args:
        what: what an error calls the settings.

    Raises:
        RecipeError: an unknown key (with the closest valid one) or an invalid value.
    """
    merged = {key: value for key, value in values.items() if value is not None}
    for override in overrides:
        set_value(merged, override)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"the {what} settings are not valid", found=_explain(error, model)) from None


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            valid = _valid_keys(model, problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1]), valid, n=1, cutoff=0.0)
            hint = f"; the closest valid key is {close[0]!r}" if close else ""
            lines.append(f"{where}: unknown key{hint}")
        else:
            lines.append(f"{where or 'recipe'}: {problem['msg']} (got {problem['input']!r})"[:300])
    return "; ".join(lines)


def _valid_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        nested = _model_in(field.annotation) if field else None
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _resolve_paths(config: Any, base: Path) -> Any:
    updates: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Path):
            expanded = Path(os.path.expandvars(value.expanduser()))
            updates[name] = expanded if expanded.is_absolute() else (base / expanded).resolve()
        elif isinstance(value, Config):
            updates[name] = _resolve_paths(value, base)
    return config.model_copy(update=updates)
