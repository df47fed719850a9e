"""Errors that a user can act on: what failed, what was found, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from repq.printable import printable, printable_lines


class RepqError(Exception):
    """A failure that the user can correct.

    Args:
        what: what failed, as one sentence. Control characters, which a file's name or content may bring in, are
            escaped in all three.
        found: what was found instead of what was expected.
        fix: what to do about it.

    Attributes:
        result: what a command had found before it failed, which JSON output holds beside the error.
    """

    exit_code = 2
    result: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, what: str, *, found: str | None = None, fix: str | None = None) -> None:
        self.what = printable_lines(what)
        self.found, self.fix = (printable_lines(text) if text else text for text in (found, fix))
        lines = [self.what]
        if self.found:
            lines.append(f"found: {self.found}")
        if self.fix:
            lines.append(f"fix: {self.fix}")
        super().__init__("\n".join(lines))


def reason(problem: BaseException) -> str:
    """What an exception says, in one line and without a file's path; its type's name where it says nothing."""
    lines = (getattr(problem, "strerror", None) or str(problem)).strip().splitlines()
    return printable(lines[0]) if lines else type(problem).__name__


class CheckpointError(RepqError):
    """A weights file that cannot be read, is unsafe, or fits no known model."""


class DataError(RepqError):
    """A data set, label file, image or manifest that cannot be used."""


class RecipeError(RepqError):
    """A recipe or an option with an unknown key or an invalid value."""


class SelectorError(RepqError):
    """A layer selector that matches no layer."""


class GraphError(RepqError):
    """An ONNX graph that a pass cannot work on."""


class QuantizationError(RepqError):
    """A model, an activation or a scale that cannot be quantized, or a quantized model without its scales."""


class EngineError(RepqError):
    """An engine that cannot be built, loaded or run here."""


class TrainingError(RepqError):
    """Training that cannot go on, such as a loss that is not finite."""


class ToleranceError(RepqError):
    """A measured difference above the stated tolerance: the run worked, its result is not good enough."""

    exit_code = 1
