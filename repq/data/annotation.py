"""The annotation of one image, in the form that YOLO label files and COCO json have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Annotation:
    """Boxes of one image; see `ImageRecord` for the arrays. ``problems`` names what was left out and why."""

    labels: NDArray[np.float32]
    areas: NDArray[np.float32]
    crowds: NDArray[np.float32]
    problems: tuple[str, ...] = ()

    @property
    def is_spoilt(self) -> bool:
        """Whether there were boxes and not one is usable: the image must not pass for one without objects."""
        return bool(self.problems) and not len(self.labels) and not len(self.crowds)


def as_boxes(rows: list[tuple[float, ...]]) -> NDArray[np.float32]:
    """Rows of class, centre x, y, width, height as an (n, 5) float32 array; (0, 5) without rows."""
    return np.array(rows, np.float32).reshape(-1, 5)
