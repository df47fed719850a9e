"""Options that would do nothing: without what they need, or beside what they exclude."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repq.files import in_utf8

if TYPE_CHECKING:
    from repq.cli.generated import Option

_ON_CPU = "engine on the CPU"


def demand_relations(options: list[Option], given: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Check the conditions (`repq.recipe.base.Conditions`) of every option that is given.

    Raises:
        click.UsageError: an option would do nothing.
    """
    by_name = {name: option for option in options for text in option.names for name in text.split("/")}
    for option in options:
        if option.name not in given or (option.default is False and given[option.name] is False):
            continue
        shown = _spelled(option, given)
        for need in several(option.marks["needs"]):
            named = [one for one in need.split(" or ") if one.partition(" ")[0] in by_name]
            if not any(_holds(one, by_name, given) for one in named):
                raise click.UsageError(f"{shown} has no effect without {' or '.join(map(_readable, named))}")
        for other in _excluded(option, options) if given[option.name] is not False else ():
            if (other == "--json" and as_json) or (other != "--json" and _holds(other, by_name, given)):
                raise click.UsageError(f"{shown} has no effect beside {_readable(other)}: give one of them")


def _excluded(option: Option, options: list[Option]) -> Iterator[str]:
    """The conditions that it excludes; a name without a dash stands for the settings of that name beside it."""
    for entry in several(option.marks["excludes"]):
        if entry.startswith("-"):
            yield entry
            continue
        beside = f"{next(iter(option.targets)).rpartition('.')[0]}.{entry}."
        yield from (other.name for other in options if any(path.startswith(beside) for path in other.targets))


def several(conditions: str | tuple[str, ...]) -> tuple[str, ...]:
    """Conditions that each have to hold."""
    return (conditions,) if isinstance(conditions, str) else conditions


def _holds(condition: str, by_name: Mapping[str, Option], given: Mapping[str, Any]) -> bool:
    name, _, wanted = condition.partition(" ")
    option = by_name.get(name)
    if option is None:
        return False
    if not name.startswith("-"):
        return bool(kinds_of(given.get(name)) & set(wanted.split("|")))
    if not wanted:
        off = any(name in text.split("/")[1:] for text in option.names)
        return option.name in given and (given[option.name] is False) == off
    if option.name not in given and "" in wanted.split("|"):
        return True
    value = given.get(option.name, option.default)
    return any(str(one) in wanted.split("|") for one in (value if isinstance(value, tuple) else (value,)))


def _spelled(option: Option, given: Mapping[str, Any]) -> str:
    names = option.names[-1].split("/")
    return names[-1] if given[option.name] is False else names[0]


def _readable(condition: str) -> str:
    name, _, wanted = condition.partition(" ")
    values = " or ".join(value for value in wanted.split("|") if value)
    if wanted and not values:
        return f"leaving out {name}"
    return f"{name} {values}".strip() if name.startswith("-") else f"a {name} of the kind {values}"


def kinds_of(value: Any) -> set[str]:
    """What models are, by path: ``checkpoint`` (``float``, ``quantized`` where it can be read), ``onnx``, ``engine``
    (``engine on the CPU`` unless it is one of a GPU's); ``alone`` where only one is given.
    """
    paths = value if isinstance(value, tuple) else () if value is None else (value,)
    found = {kind for path in paths for kind in _kinds(path)}
    return {*found, "alone"} if len(paths) == 1 else found


def _kinds(path: Path) -> set[str]:
    with suppress(OSError, ValueError):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return {"engine"} if _on_gpu(path) else {"engine", _ON_CPU}
        if path.suffix == ".onnx":
            return {"onnx", "float"}  # a quantized one is refused where it cannot be used
        if path.suffix != ".safetensors":
            return {"checkpoint", "float"}
        if stat.S_ISREG(mode):
            return {"checkpoint", *_scheme_of(path)}
    return {"checkpoint", "float", "quantized", "onnx", "engine", _ON_CPU}  # the command will say what is wrong with it


def _on_gpu(folder: Path) -> bool:
    """Whether a folder is an engine of a runtime that runs on a GPU; the command will say if it is none."""
    from repq.engine import ENGINES
    from repq.engine.storage import MANIFEST

    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        name = json.loads((folder / MANIFEST).read_bytes())["manifest"]["engine"]
        return any(entry.on_gpu for entry in ENGINES if entry.name == name)
    return False


def _scheme_of(path: Path) -> set[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with in_utf8(path) as there, safe_open(there, framework="numpy") as file:
            return {"quantized" if "quantization" in (file.metadata() or {}) else "float"}
    except (SafetensorError, OSError):
        return {"float", "quantized"}
