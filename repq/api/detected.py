"""What was found in one image, as Python programs get it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from repq.report.boxes import draw_boxes

Image = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Detected:
    """What was found in one image.

    Attributes:
        name: the file's below the folder, the frame's of a video, or the place in a list of arrays.
        image: (h, w, 3) uint8, RGB.
        boxes: float32 (k, 6): x1, y1, x2, y2 in pixels of the image and inside it, score, class; best first.
        names: of the classes.
    """

    name: str
    image: Image
    boxes: NDArray[np.float32]
    names: tuple[str, ...]

    def drawn(self) -> Image:
        """The image with its boxes, RGB."""
        canvas = np.asarray(cv2.cvtColor(self.image, cv2.COLOR_RGB2BGR), np.uint8)
        return np.ascontiguousarray(draw_boxes(canvas, self.boxes, self.names)[..., ::-1])
