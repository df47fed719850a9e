"""What a command shows: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from repq.printable import printable_lines


class Shell:
    """Results as a text or as one JSON object."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def log(self, line: str) -> None:
        click.echo(printable_lines(line), err=True)

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
            click.echo(printable_lines(text if isinstance(text, str) else text()))
