"""Recipes and settings from YAML and from ``key=value`` overrides."""

from __future__ import annotations

import difflib
import json
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from repq.errors import RecipeError, reason
from repq.printable import printable
from repq.reading import expanded, parse_yaml, read_yaml
from repq.recipe.ablation import Ablation, merged
from repq.recipe.base import C, Config, settings_in
from repq.recipe.whole import Recipe, recipe_class

SHIPPED = Path(__file__).parents[1] / "recipes"
"""The recipes that come with repq, ``NAME.yaml``, and in ``ablations`` the ablations."""


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply ``key.path=value`` overrides (values are YAML).

    Paths inside the recipe are relative to the recipe's folder, those of a shipped one and of overrides to the working
    folder; environment variables and ``~`` are expanded.

    Args:
        path: a file, or the bare name of a recipe that repq ships, such as ``ptq``.

    Raises:
        RecipeError: the file is missing or no mapping, a key is unknown, or a value is invalid.
    """
    path, base = _found(path, SHIPPED)
    values = read_yaml(path, error=RecipeError)
    given = [set_value(values, override) for override in overrides]
    return parse_recipe(values, source=str(path), base=base, given=given)


def _found(path: Path, shipped: Path) -> tuple[Path, Path]:
    """The file that a path or a bare name means, and the folder that its own paths are relative to."""
    bare = path.name == str(path) and not path.suffix
    if not bare or path.is_file():
        return path, path.resolve().parent
    names = sorted(entry.stem for entry in shipped.glob("*.yaml"))
    if path.name not in names:
        raise RecipeError(
            f"there is no recipe {printable(path)}", found="neither a file nor a recipe that repq ships",
            fix=f"give a YAML file, or one of {', '.join(names)}",
        )  # fmt: skip
    return shipped / f"{path.name}.yaml", Path.cwd()


def as_overrides(weights: str | Path | None = None, data: str | Path | None = None, **others: Any) -> list[str]:
    """Values that take the place of a recipe's own, as overrides; None leaves the recipe's. Paths become absolute."""
    paths = {"weights": weights, "data.path": data}
    values = {**{key: path and str(Path(path).resolve()) for key, path in paths.items()}, **others}
    return [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]


@dataclass(frozen=True)
class Trial:
    """One run of an ablation."""

    variant: str
    seed: int
    recipe: Recipe


def load_ablation(path: Path, overrides: Iterable[str] = (), seeds: Sequence[int] = ()) -> tuple[Ablation, list[Trial]]:
    """Read an ablation and make the recipe of each variant and seed; ``overrides`` go into all of them.

    Args:
        path: as for `load_recipe`.
        seeds: instead of the file's.

    Raises:
        RecipeError: the file is missing or no mapping, a key is unknown, or a value is invalid, in any of the recipes.
    """
    path, base = _found(path, SHIPPED / "ablations")
    values = read_yaml(path, error=RecipeError)
    if seeds:
        values["seeds"] = list(seeds)
    ablation = _validate(Ablation, values, f"{path} is no valid ablation")
    trials = []
    for variant, changes in ablation.variants.items():
        for seed in ablation.seeds:
            recipe = merged(merged({"name": ablation.name, **ablation.base}, changes), {"seed": seed})
            given = [set_value(recipe, override) for override in overrides]
            source = f"variant {variant!r} of {path}"
            trials.append(Trial(variant, seed, parse_recipe(recipe, source=source, base=base, given=given)))
    return ablation, trials


def set_value(values: dict[str, Any], override: str) -> str:
    """Set one ``a.b=value`` in a nested mapping, in place, and return ``a.b``; the value is YAML.

    Raises:
        RecipeError: the override has no ``=``, is no YAML, or walks through a value that is no mapping.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"cannot read the override {override[:200]!r}", fix="write --set stage.key=value")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"the override {override[:200]!r} goes through {parent!r}, which is a plain value")
        node = child
    node[last] = parse_yaml(text, f"the override of {key[:200]}", error=RecipeError)
    return key


def parse_recipe(values: Mapping[str, Any], *, source: str, base: Path, given: Collection[str] = ()) -> Recipe:
    """Validate a mapping as a recipe; relative paths are taken from ``base``.

    Args:
        given: keys such as ``train.weights`` that were set beside the recipe: paths at and below them are taken from
            the working folder.

    Raises:
        RecipeError: an unknown key (with the closest valid one) or an invalid value.
    """
    return _resolve_paths(_validate(recipe_class(), values, f"{source} is no valid recipe"), base, given)


def parse_settings(model: type[C], values: Mapping[str, Any], *, what: str) -> C:
    """Validate the settings of a command.

    Args:
        what: what an error calls the command.

    Raises:
        RecipeError: an unknown key (with the closest valid one) or an invalid value.
    """
    return _validate(model, values, f"the settings of {what} are not valid")


def _validate(model: type[C], values: Mapping[str, Any], problem: str) -> C:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(problem, found=_explain(error, model), fix="correct the keys named") from None


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    for problem in error.errors()[:20]:
        where = ".".join(printable(part, 60) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            valid = _valid_keys(model, problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1])[:60], valid, n=1, cutoff=0.0)
            hint = f"; the closest valid key is {close[0]!r}" if close else ""
            lines.append(f"{where}: unknown key{hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            got = "" if isinstance(problem["input"], Mapping) else f" (got {printable(repr(problem['input']), 100)})"
            lines.append(f"{where or 'settings'}: {message}{got}")
    return "; ".join(lines)


def _valid_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        nested = settings_in(field) if field else None
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)


def _resolve_paths(config: C, base: Path, given: Collection[str], prefix: str = "") -> C:
    """The settings with whole paths, of files that are there or can be made; see `parse_recipe`."""
    updates: dict[str, Any] = {}
    for name in type(config).model_fields:
        value, key = getattr(config, name), f"{prefix}{name}"
        own = Path.cwd() if key in given else base
        if isinstance(value, Path):
            updates[name] = path = (own / expanded(str(value))).resolve()
            demand_plain(path, f"of {name!r} in the recipe")
        elif isinstance(value, Config):
            updates[name] = _resolve_paths(value, own, given, f"{key}.")
    return config.model_copy(update=updates)


def demand_plain(path: Path, what: str) -> None:
    """Refuse a path of something else than a file or a folder, which could be read for ever; it may be missing.

    Raises:
        RecipeError: a device, a pipe or a socket, or a path that cannot be one.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read {printable(path)} {what}", found=reason(error), fix="check the path") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise RecipeError(f"{printable(path)} {what} is neither a file nor a folder", fix="check the path")
