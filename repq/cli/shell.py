"""What a command shows: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repq.cli.frame import FORMAT
from repq.errors import RepqError
from repq.printable import printable_lines
from repq.torchrun import place_in_group

if TYPE_CHECKING:
    from repq.stages import Context


class Shell:
    """Results as a text or as one JSON object; of torchrun's processes the first alone shows and writes anything.

    Args:
        everything: long tables are shown whole.
        quiet: nothing but results and errors is shown.
        verbose: lines say when they were written.
        log_file: gets every line with its time, whatever is shown.
    """

    def __init__(
        self, as_json: bool = False, *, everything: bool = False, quiet: bool = False, verbose: bool = False,
        log_file: Path | None = None,
    ) -> None:  # fmt: skip
        self.as_json, self.everything, self.quiet, self.verbose = as_json, everything, quiet, verbose
        self._result: dict[str, Any] | None = None
        self._log, self._is_first = None, place_in_group()[0] == 0
        if log_file is not None and self._is_first:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            self._log = log_file.open("a", encoding="utf-8")

    def log(self, line: str) -> None:
        if not self._is_first:
            return
        line, moment = printable_lines(line), time.strftime("%Y-%m-%d %H:%M:%S")
        if self._log is not None:
            self._log.write(f"{moment} {line}\n")
            self._log.flush()
        if not self.quiet:
            click.echo(f"{moment[-8:]} {line}" if self.verbose else line, err=True)

    @property
    def progress(self) -> Any:
        from repq.progress import on_terminal, silent

        return on_terminal if sys.stderr.isatty() and not self.quiet and self._is_first else silent

    def context(
        self, model: Path | Sequence[Path], imgsz: tuple[int, int] | None, *args: Any, **kwargs: Any
    ) -> Context:
        """The `Context` of these arguments, at the model's own size where ``imgsz`` is None."""
        from repq.api.sizes import size_for
        from repq.stages import Context

        size = size_for(model, imgsz, self.log)
        return replace(Context(size, *args, **kwargs), progress=self.progress, log=self.log)

    def print_json(self, values: dict[str, Any]) -> None:
        """Print one JSON object that has a form of its own."""
        click.echo(json.dumps(values, indent=1, allow_nan=False))

    @contextmanager
    def one_result(self) -> Iterator[None]:
        """A command: under ``--json`` its result, or what it had found and why it failed, is one object."""
        try:
            yield
        except RepqError as error:
            error.result = self._result or {}
            raise
        except SystemExit:  # the command chose an exit code
            self._print_result()
            raise
        self._print_result()

    def _print_result(self) -> None:
        if self._result is not None:
            self.print_json({"format": FORMAT, **self._result})

    def finish(self, values: dict[str, Any], text: Callable[[], str] | str, *, next: str = "") -> None:
        """Print the text, or keep the values for one JSON object.

        Args:
            values: with ``out`` where something was written.
            next: the command that one gives now.
        """
        if not self._is_first:
            return
        if self.as_json:
            self._result = values
        else:
            from repq.report.text import shown_on

            with shown_on(shutil.get_terminal_size((120, 24)).columns, everything=self.everything):
                click.echo(printable_lines(text if isinstance(text, str) else text()))
            ends = {"written": str(values.get("out", "")), "next": next}
            for name, line in ends.items():
                if line:
                    click.echo(printable_lines(f"{name}: {line}"))
