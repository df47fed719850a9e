"""Command lines made from the declarations of the commands: every option of every command, with values that fit."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from pydantic_core import PydanticUndefined

from repq.cli import COMMANDS, main
from repq.cli.generated import Option, bare, choices_of, items_of, options_of, parameters_of
from repq.cli.relations import several

SIZE = 64


@functools.cache
def options(name: str) -> tuple[Option, ...]:
    """The options and arguments of a command."""
    module, _ = COMMANDS[name]
    return tuple(options_of(parameters_of(getattr(importlib.import_module(f"repq.cli.{module}"), f"{name}_command"))))


def every_option() -> Iterator[tuple[str, Option]]:
    for name in COMMANDS:
        for option in options(name):
            yield name, option


def is_path(option: Option) -> bool:
    return bare(items_of(option.annotation)[0])[0] is Path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [os.fspath(one) if isinstance(one, Path) else str(one) for one in arguments])


def refused(result: Result) -> str:
    """Check that a command ended with exit code 2 and a message, and return the message."""
    assert result.exit_code == 2, f"{result.exit_code}: {result.output[-2000:]}\n{result.exception!r}"
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "error:" in result.output.lower()
    assert "Traceback" not in result.output
    return result.output


@dataclass
class Material:
    """Files that the commands take, by the option that takes them."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)

    def value(self, command: str, option: Option) -> list[str]:
        """Values for an option that fit it."""
        item, count = items_of(option.annotation)
        plain, _ = bare(item)
        if plain is Path or option.name in self.files:
            return [str(self.path(command, option))]
        choices = choices_of(item)
        if choices:
            return [choices[0]]
        text = {int: "100" if option.name == "--opset" else "1", float: "0.5", str: "cpu"}.get(plain, str(SIZE))
        text = {"--percentile": "99", "--opset": "19", "--set": "a=1", "--measure": "local.snr"}.get(option.name, text)
        return [text] * max(count, 1)

    def path(self, command: str, option: Option) -> Path:
        writes = option.marks["writes"]
        if writes is not None:
            suffix = writes.split("|")[0] if isinstance(writes, str) else ""
            return self.folder / "out" / f"{command}{suffix}"
        for key in (f"{command} {option.name}", option.name):
            if key in self.files:
                return self.files[key]
        raise AssertionError(f"no file for {option.name} of {command}")

    def needed(self, command: str, option: Option, replaced: Any) -> list[str]:
        """What an option needs beside it to have an effect."""
        words = []
        for need in several(option.marks["needs"]):
            own = {name: one for one in options(command) for name in (one.name, *one.names)}
            name, _, value = next(one for one in need.split(" or ") if one.partition(" ")[0] in own).partition(" ")
            other = own[name]
            if name.startswith("--") and "" not in value.split("|")[1:] and name.strip("-") not in replaced:
                flag = bare(other.annotation)[0] is bool
                words += [name, *([] if flag else [value.split("|")[0]] if value else self.value(command, other))]
        return words

    def line(self, command: str, **replaced: Any) -> list[str]:
        """The shortest whole command line; ``replaced`` gives values by the options' names without dashes."""
        words = [command]
        for option in options(command):
            key = option.name.strip("-").replace("-", "_")
            if key in replaced or option.default is PydanticUndefined:
                values = replaced.get(key) or self.value(command, option)
                values = [values] if isinstance(values, (str, Path)) else values
                words += [*([option.name] if option.name.startswith("-") else []), *map(str, values)]
            if key in replaced:
                words += self.needed(command, option, replaced)
        sized = any(option.name == "--imgsz" for option in options(command)) and command != "describe"
        if sized and "imgsz" not in replaced:
            words += ["--imgsz", str(SIZE)]
        return words
