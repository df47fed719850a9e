"""A small detector in every form, with a drawn data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import repq

SIZE = 64
NAMES = ("ring", "triangle", "cross")


@dataclass(frozen=True)
class Forms:
    """One detector as a checkpoint, quantized, exported and built, and images to try it on."""

    root: Path
    data: Path
    float_: repq.Model
    quantized: repq.Model
    onnx: repq.Model
    engine: repq.Model

    @property
    def images(self) -> list[Path]:
        return sorted((self.root / "set/images/train").iterdir())
