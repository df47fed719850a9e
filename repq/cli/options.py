"""What the commands share: how errors become messages, how results are shown, and the options that recur."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from repq.errors import RepqError

F = TypeVar("F", bound=Callable[..., Any])
CPU_ENGINES = ("onnxruntime", "openvino")
ENGINES = (*CPU_ENGINES, "tensorrt")
RUNTIMES = ("torch", *ENGINES)


class Commands(click.Group):
    """Lists commands in the order of the work, and turns errors into messages instead of tracebacks."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RepqError as error:
            click.secho(f"error: {error}", fg="red", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.secho("interrupted; the same command goes on where it stopped", fg="yellow", err=True)
            ctx.exit(130)


class Size(click.ParamType):
    """``640`` or ``HEIGHTxWIDTH``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().replace(",", "x").split("x")
        if len(parts) not in (1, 2) or not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is no image size; write 640 or 480x640 (height x width)", param, ctx)
        return int(parts[0]), int(parts[-1])


class Shell:
    """What a command shows: results on standard output, everything else on standard error."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def log(self, line: str) -> None:
        click.echo(line, err=True)

    @property
    def progress(self) -> Any:
        from repq.progress import on_terminal, silent

        return on_terminal if sys.stderr.isatty() else silent

    def finish(self, values: dict[str, Any], text: Callable[[], str] | str) -> None:
        """Print one JSON object, or the text; under ``torchrun`` the first process does."""
        if os.environ.get("RANK", "0") != "0":
            return
        if self.as_json:
            click.echo(json.dumps(values, indent=1, allow_nan=False))
        else:
            click.echo(text if isinstance(text, str) else text())


def shared_options(command: F) -> F:
    """Add the options that every command has; a command gets the values of those that its signature names.

    A command with ``devices`` gives --device a meaning of its own.
    """
    wanted = inspect.signature(command).parameters
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output."),
        click.option("--seed", default=0, show_default=True, help="Seed of everything that is random.",
                     expose_value="seed" in wanted),
        click.option("--device", default="cpu", show_default=True, help="Where torch runs: cpu, cuda, cuda:1 …",
                     expose_value="device" in wanted),
    )[: 2 if "devices" in wanted else 3]:  # fmt: skip
        command = option(command)
    return command


def data_options(required: bool) -> Callable[[F], F]:
    """Add --data and --split."""

    def add(command: F) -> F:
        command = click.option("--split", default="val", show_default=True, help="Split of the data set.")(command)
        return click.option("--data", type=Path, required=required, help="data.yaml (YOLO) or a COCO .json.")(command)

    return add


imgsz_option = click.option("--imgsz", type=Size(), default="640", show_default=True, help="640 or HEIGHTxWIDTH.")
out_option = click.option("-o", "--out", type=Path, required=True, help="Where the result is written.")
engine_option = click.option("--engine", type=click.Choice(RUNTIMES), help="Runtime; default: what fits the file.")
threads_option = click.option("--threads", type=click.IntRange(1), help="CPU threads; default: the runtime's own.")
