"""The letterbox: an image scaled as a whole into the network's input, the rest filled with grey.

With input (H, W), border b and inner size s the scale is ``r = min((H - 2b) / h, (W - 2b) / w, s / max(h, w))``; the
image becomes (int(r h), int(r w)) and lies where the model's preprocessing says. The border and the inner size are the
two options by which the YOLOv6 report (v2, section 2.4.3, "gray border") feeds the network a margin that its
convolutions can look into.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from repq.errors import DataError
from repq.preprocessing import Preprocessing
from repq.recipe import LetterboxConfig

DEFAULT, USUAL = LetterboxConfig(), Preprocessing()


@dataclass(frozen=True)
class LetterboxTransform:
    """Where the image lies in the network's input: ``input = original * scale + offset``, per axis.

    Attributes:
        width, height: of the original image.
        scale_x, scale_y: resized over original size; they differ by the rounding to whole pixels.
        left, top: offset of the image in the input, in pixels.
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    left: int
    top: int

    def to_input(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map (n, 4) boxes x1, y1, x2, y2 from pixels of the original to pixels of the input."""
        return np.asarray(boxes, np.float64) * self._scale() + self._offset()

    def to_original(self, boxes: NDArray[np.floating], *, clip: bool = False) -> NDArray[np.float64]:
        """Map (n, 4) boxes from pixels of the input to pixels of the original; ``clip`` cuts them at its edges."""
        boxes = (np.asarray(boxes, np.float64) - self._offset()) / self._scale()
        return np.clip(boxes, 0, [self.width, self.height, self.width, self.height]) if clip else boxes

    def _scale(self) -> NDArray[np.float64]:
        return np.array([self.scale_x, self.scale_y, self.scale_x, self.scale_y])

    def _offset(self) -> NDArray[np.float64]:
        return np.array([self.left, self.top, self.left, self.top], np.float64)


def rooms(imgsz: tuple[int, int], config: LetterboxConfig, scale: float = 1.0) -> tuple[int, int]:
    """Height and width that an image may take of an input of ``imgsz``: less the borders, at most the inner size.

    Args:
        scale: 0..1, of both: a look at the image from further away.

    Raises:
        DataError: border and inner size leave no room in the input.
    """
    room_h, room_w = imgsz[0] - 2 * config.border, imgsz[1] - 2 * config.border
    if min(room_h, room_w) < 1 or (config.inner_size or 1) > max(room_h, room_w):
        raise DataError(
            f"the letterbox does not fit into an input of {imgsz[0]}x{imgsz[1]}",
            found=f"border {config.border}, inner_size {config.inner_size}",
            fix="make the border or the inner size smaller: inner_size + 2 * border may not exceed the input",
        )
    limit = config.inner_size or max(room_h, room_w)
    return max(1, round(min(room_h, limit) * scale)), max(1, round(min(room_w, limit) * scale))


def fit_ratio(
    width: float, height: float, imgsz: tuple[int, int], config: LetterboxConfig = DEFAULT, scale: float = 1.0
) -> float:
    """By how much an image of this size is scaled to fit into an input of ``imgsz`` (height, width).

    Args:
        scale: as of `rooms`.

    Raises:
        DataError: border and inner size leave no room in the input.
    """
    room_h, room_w = rooms(imgsz, config, scale)
    ratio = min(room_h / height, room_w / width)
    return ratio if config.upscale else min(ratio, scale)


def letterbox_transform(
    width: int,
    height: int,
    imgsz: tuple[int, int],
    config: LetterboxConfig = DEFAULT,
    preprocessing: Preprocessing = USUAL,
    scale: float = 1.0,
) -> LetterboxTransform:
    """Return where an image of this size goes; ``imgsz`` is (height, width) of the input, ``scale`` as of `rooms`.

    Raises:
        DataError: border and inner size leave no room in the input.
    """
    ratio = fit_ratio(width, height, imgsz, config, scale)
    # A float ratio such as 319.99999 must not lose a pixel, and a very long image keeps at least one.
    inner_w = max(1, int(width * ratio + 1e-6))
    inner_h = max(1, int(height * ratio + 1e-6))
    if preprocessing.stretch:
        inner_h, inner_w = rooms(imgsz, config, scale)
    middle = preprocessing.placement == "centre"
    return LetterboxTransform(
        width=width,
        height=height,
        scale_x=inner_w / width,
        scale_y=inner_h / height,
        left=(imgsz[1] - inner_w) // 2 if middle else config.border,
        top=(imgsz[0] - inner_h) // 2 if middle else config.border,
    )


def letterbox(
    image: NDArray[np.uint8],
    imgsz: tuple[int, int],
    config: LetterboxConfig = DEFAULT,
    preprocessing: Preprocessing = USUAL,
    scale: float = 1.0,
) -> tuple[NDArray[np.uint8], LetterboxTransform]:
    """Scale an (h, w, 3) image into an input of ``imgsz`` (height, width), grey around it; ``scale`` as of `rooms`.

    Raises:
        DataError: border and inner size leave no room in the input.
    """
    height, width = image.shape[:2]
    transform = letterbox_transform(width, height, imgsz, config, preprocessing, scale)
    inner_w, inner_h = round(width * transform.scale_x), round(height * transform.scale_y)
    if (inner_w, inner_h) != (width, height):
        averages = preprocessing.resize == "area" and inner_w < width and inner_h <= height
        image = cv2.resize(  # type: ignore[assignment]
            image, (inner_w, inner_h), interpolation=cv2.INTER_AREA if averages else cv2.INTER_LINEAR
        )
    canvas = np.full((*imgsz, image.shape[2]), preprocessing.pad, np.uint8)
    canvas[transform.top : transform.top + inner_h, transform.left : transform.left + inner_w] = image
    return canvas, transform
