"""Which of a model's boxes count where it is used, as a value that travels with all that is made of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import ConfigDict

from repq.json_value import JsonValue
from repq.log import Log, quiet


@dataclass(frozen=True)
class Thresholds(JsonValue):
    """What counts as found. Measuring AP has settings of its own (`repq.recipe.EvalConfig`).

    Attributes:
        confidence: the score of a box that counts is above it, 0..1.
        iou: a box falls if its IoU with a better one of its class is above it, 0..1.
        max_detections: boxes of an image at most.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    confidence: float = 0.25
    iou: float = 0.65
    max_detections: int = 300

    def __post_init__(self) -> None:
        if not (0 <= self.confidence <= 1 and 0 < self.iou <= 1 and self.max_detections > 0):
            raise ValueError(f"no thresholds: {self}")

    def changed(self, asked: Mapping[str, Any], label: str, log: Log = quiet) -> Thresholds:
        """These, with what is asked for; where that contradicts what somebody set in a file, both are logged.

        Args:
            asked: values by name; None asks for nothing.
            label: the file that says these.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        for name, value in given.items():
            own = getattr(self, name)
            if value != own != getattr(USUAL, name):
                log(f"{label} works at {name.replace('_', ' ')} {own:g}; {value:g} is asked for")
        return replace(self, **given)


USUAL = Thresholds()
"""Of a model of which nobody said others."""
