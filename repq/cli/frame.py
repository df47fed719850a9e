"""What surrounds every command: failures become messages and exit codes, and a closed pipe ends it quietly."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

import click

from repq.errors import RepqError
from repq.printable import SPELLED, printable, printable_lines
from repq.stopping import ending_on_signals, stopped

FAULT, CLOSED_PIPE = 70, 128 + 13
EXIT_CODES = {
    0: "done",
    1: "a result is outside a bound; the message says what to try next",
    2: "what was given cannot be used; the message says what was found and what to do",
    FAULT: "a fault of repq, with a traceback",
    130: "stopped by Ctrl-C; the same command goes on where it stopped",
    CLOSED_PIPE: "the output was closed",
    143: "stopped by SIGTERM; the same command goes on where it stopped",
}
FORMAT = 1
"""Of JSON output: it grows where a field goes or changes its meaning, not where one is added."""

_FIXES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EFBIG: "allow larger files (ulimit -f), or write to another disk",
    errno.EROFS: "write to a disk that is not read-only",
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may read and write there",
    errno.EMFILE: "allow more open files (ulimit -n)",
}
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def run_framed(run: Callable[[], int], *, as_json: bool = False, verbose: bool = False) -> int:
    """Run a command and return its exit code; what a user can correct is a message, our own faults a traceback.

    A failure after a signal is left to `ending_on_signals`.

    Args:
        as_json: what went wrong is a JSON object on standard output as well.
        verbose: what a user can correct has its traceback too.
    """
    try:
        code = run()
        sys.stdout.flush()
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        if context is not None:
            click.echo(printable_lines(context.get_usage()), err=True)
        _complain(RepqError(error.format_message()), error.exit_code, as_json, color=None)
        return error.exit_code
    except BrokenPipeError:
        return CLOSED_PIPE
    except Exception as error:
        if stopped():  # an import or a library met the signal and made its own error of it
            raise
        expected = explained(error)
        if expected is None:
            traceback.print_exc()
            fault = RepqError("this is a fault of repq, not of what it was given: please report it", found=repr(error))
            _complain(fault, FAULT, as_json)
            return FAULT
        if verbose:
            traceback.print_exc()
        _complain(expected, expected.exit_code, as_json)
        return expected.exit_code
    finally:
        _forget_unwritten()
    return code


def _forget_unwritten() -> None:
    """Drop what standard output could not take: the interpreter would try once more when it ends, and say 120."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except ValueError:
        pass  # closed


def _complain(error: RepqError, code: int, as_json: bool, color: str | None = "red") -> None:
    if as_json:
        values = {"what": error.what, "found": error.found, "fix": error.fix, "exit_code": code}
        with suppress(OSError):  # the message is on standard error in any case
            click.echo(json.dumps({"format": FORMAT, **error.result, "error": values}, indent=1, allow_nan=False))
    click.secho(f"error: {printable_lines(str(error))}", fg=color, err=True)


def explained(error: BaseException) -> RepqError | None:
    """A failure of files, memory or inputs as an error for users; None: it is a fault of repq."""
    if isinstance(error, RepqError):
        return error
    text = printable(error)
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename2 or error.filename
        what = "a file cannot be read or written" if path is None else f"cannot read or write {printable(path)}"
        return RepqError(what, found=error.strerror or text, fix=_FIXES.get(error.errno, "check the path"))
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        return RepqError(
            "there is not enough memory", found=text, fix="give a smaller --batch or --imgsz, or more memory"
        )
    if isinstance(error, RecursionError):
        return RepqError("an input is nested too deeply", found=text, fix="check the files that were given")
    if isinstance(error, (UnicodeError, json.JSONDecodeError)) or _is_of(error, "yaml", "pydantic_core"):
        return RepqError("an input does not hold what it should", found=text, fix="check the files that were given")
    return None


def _is_of(error: BaseException, *packages: str) -> bool:
    """Whether a library defined the error, without importing the library."""
    return any(kind.__module__.partition(".")[0] in packages for kind in type(error).__mro__)


class Framed(click.Group):
    """A group of commands in the frame; `main` always ends the process."""

    def main(self, args: Any = None, prog_name: str | None = None, *rest: Any, **extra: Any) -> Any:
        if "_REPQ_COMPLETE" in os.environ:
            return super().main(args, prog_name, *rest, **extra)
        arguments = list(sys.argv[1:] if args is None else args)

        def run() -> int:
            try:
                with self.make_context(prog_name or "repq", arguments) as context:
                    self.invoke(context)
            except click.exceptions.Exit as end:
                return end.exit_code
            return 0

        _open_closed_streams()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):  # of any encoding: what it lacks is spelled out
                stream.reconfigure(errors=SPELLED)
        with ending_on_signals():
            as_json, verbose = (self._given(arguments, *names) for names in (("--json",), ("-v", "--verbose")))
            sys.exit(run_framed(run, as_json=as_json, verbose=verbose))

    def _given(self, arguments: list[str], *names: str) -> bool:
        """Whether a switch is given, which counts also where the command line cannot be parsed.

        What another option of the command takes as its value is no switch.
        """
        if set(names).isdisjoint(arguments):
            return False
        taken, words = self._taken(arguments), iter(arguments)
        for word in words:
            if word in names or word == "--":
                return word != "--"
            for _ in range(taken.get(word, 0)):
                next(words, None)
        return False

    def _taken(self, arguments: list[str]) -> dict[str, int]:
        """How many words each option of the command takes."""
        name = next((word for word in arguments if word[:1] != "-"), "")
        try:
            command = self.get_command(click.Context(self), name)
        except Exception:
            if stopped():
                raise
            return {}  # it fails in the same way when it is run
        return {
            name: option.nargs
            for option in (() if command is None else command.params)
            if isinstance(option, click.Option) and not (option.is_flag or option.count)
            for name in option.opts
        }


def _open_closed_streams() -> None:
    """Streams that were closed (``>&-``) lead to nothing: else the next file opened would take the place of one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the least number that is free, which is this
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
