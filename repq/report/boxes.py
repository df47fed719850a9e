"""Boxes drawn on images: for the report, and for what `repq predict` writes. One style for both.

Lines, letters and labels scale with the image. A label never hides what it names: all labels of an image together cover
at most `LABEL_SHARE` of it and none covers another; the surest boxes are named first, the rest keep their colour alone.
"""

from __future__ import annotations

import colorsys
import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from repq.errors import RepqError
from repq.results import DrawnImage, Panel

Image = NDArray[np.uint8]
Boxes = NDArray[np.floating]
Rectangle = tuple[int, int, int, int]
Colour = tuple[int, int, int]

LABEL_SHARE = 0.25
_INK, _PAPER = (0, 0, 0), (255, 255, 255)


class Found(NamedTuple):
    """What one model found in an image, or what there is to find.

    Attributes:
        title: of its panel.
        boxes: (k, 6) rows x1 y1 x2 y2 score class, in pixels of the image. A score of NaN is not written.
        marked: (k,) bool: boxes that stand out; None: none of them.
        mark: what a marked box is called, such as ``lost``.
    """

    title: str
    boxes: Boxes
    marked: NDArray[np.bool_] | None = None
    mark: str = ""


def compared(first: tuple[str, Boxes], second: tuple[str, Boxes]) -> tuple[Found, Found]:
    """The boxes of two models, each a title and (k, 6) boxes: those that the second lost, and those that it added."""
    partner = match_boxes(first[1], second[1])
    new = np.ones(len(second[1]), bool)
    new[partner[partner >= 0]] = False
    return Found(*first, partner < 0, "lost"), Found(*second, new, "new")


def match_boxes(first: Boxes, second: Boxes) -> NDArray[np.intp]:
    """(k,): for each of the first boxes its partner of the same class among the second, at an IoU of 0.5, or -1.

    Each box is in one pair at most; the surest of the first choose first.
    """
    partner, free = np.full(len(first), -1, np.intp), np.ones(len(second), bool)
    for index in np.argsort(-first[:, 4], kind="stable"):
        overlaps = np.where(free & (second[:, 5] == first[index, 5]), _iou(first[index], second), 0.0)
        if overlaps.size and overlaps.max() >= 0.5:
            partner[index] = overlaps.argmax()
            free[partner[index]] = False
    return partner


def draw_panels(
    name: str, image: Image, findings: Sequence[Found], class_names: Sequence[str], *, max_side: int = 640
) -> DrawnImage:
    """Draw what several models found in one image, each on its own copy, for the report.

    Args:
        name: what the image is called.
        image: (H, W, 3) BGR.
        class_names: by class index.
        max_side: longer images are shrunk to this, so that the page stays small.
    """
    small, scale = _shrunk(image, max_side)
    panels = []
    for found in findings:
        boxes = np.concatenate([found.boxes[:, :4] * scale, found.boxes[:, 4:]], axis=1)
        drawn = draw_boxes(small, found._replace(boxes=boxes), class_names)
        marked = 0 if found.marked is None else int(found.marked.sum())
        panels.append(
            Panel(title=found.title, boxes=len(boxes), marked=marked, mark=found.mark, jpeg=encode_jpeg(drawn))
        )
    return DrawnImage(name=name, panels=tuple(panels))


def draw_boxes(image: Image, found: Found | Boxes, class_names: Sequence[str]) -> Image:
    """Draw boxes with names and scores on a copy; surer boxes lie above less sure ones, labels above all.

    Args:
        image: (H, W, 3) BGR.
        found: with marks, or (k, 6) boxes alone.
        class_names: by class index; an index past its end is printed as a number.
    """
    import cv2

    boxes, marked, mark = found[1:] if isinstance(found, Found) else (found, None, "")
    canvas = np.array(image, order="C")
    side = max(canvas.shape[:2])
    width, size = max(1, round(side / 400)), max(0.32, side / 1300)
    order = np.argsort(np.nan_to_num(boxes[:, 4]), kind="stable")
    for row in order:
        (x1, y1, x2, y2), colour = boxes[row, :4].round().astype(int).tolist(), class_colour(int(boxes[row, 5]))
        if marked is not None and marked[row]:
            for ring, shade in ((3, _INK), (2, _PAPER)):
                cv2.rectangle(canvas, (x1, y1), (x2, y2), shade, ring * width)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, width)
    taken: list[Rectangle] = []
    room = LABEL_SHARE * canvas.shape[0] * canvas.shape[1]
    for row in order[::-1]:  # the surest choose their place first
        x1, y1, x2, y2, score, label = boxes[row].tolist()
        text = _ascii(class_names, int(label)) + ("" if np.isnan(score) else f" {score:.2f}")
        if marked is not None and marked[row]:
            text = f"{mark}: {text}"
        (wide, tall), below = cv2.getTextSize(text, _font(), size, _stroke(size))
        wide, tall = wide + 2 * width + 2, tall + below + width + 1
        if wide * tall > room or wide > canvas.shape[1]:
            continue
        place = _place((round(x1), round(y1), round(y2)), (wide, tall), canvas.shape[:2], taken)
        if place is None:
            continue
        room -= wide * tall
        taken.append(place)
        _write(canvas, text, place, class_colour(int(label)), size, below)
    return canvas


def side_by_side(image: Image, findings: Sequence[Found], class_names: Sequence[str]) -> Image:
    """One picture with a copy of the image for each model, under its title."""
    import cv2

    size = max(0.4, max(image.shape[:2]) / 1000)
    (_, tall), below = cv2.getTextSize("Ag", _font(), size, _stroke(size))
    panels = []
    for found in findings:
        count = "" if found.marked is None else f", {int(found.marked.sum())} {found.mark}"
        text = f"{found.title.encode('ascii', 'replace').decode()}: {len(found.boxes)} boxes{count}"
        head = np.full((tall + 2 * below + 2, image.shape[1], 3), 255, np.uint8)
        wide = cv2.getTextSize(text, _font(), size, _stroke(size))[0][0]
        fitting = size * min(1.0, (image.shape[1] - 8) / max(wide, 1))
        cv2.putText(head, text, (4, tall + below), _font(), fitting, _INK, _stroke(fitting), cv2.LINE_AA)
        panels.append(np.vstack([head, draw_boxes(image, found, class_names)]))
    gap = np.full((len(panels[0]), max(4, image.shape[1] // 100), 3), 255, np.uint8)
    return np.hstack([part for panel in panels for part in (gap, panel)][1:])


@functools.cache
def class_colour(index: int) -> Colour:
    """A BGR colour for a class, always the same: hues by the golden angle, so that neighbouring classes differ."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * 0.61803399) % 1.0, 0.78, 0.92)
    return round(255 * blue), round(255 * green), round(255 * red)


def encode_jpeg(image: Image) -> bytes:
    """Compress a BGR image; see `encode`."""
    import cv2

    return encode(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 85])


def encode(image: Image, suffix: str, options: Sequence[int] = ()) -> bytes:
    """The bytes of an image file of this suffix.

    Raises:
        RepqError: OpenCV cannot write it.
    """
    import cv2

    try:
        done, data = cv2.imencode(suffix, image, list(options))
        reason = f"shape {image.shape}, {image.dtype}"
        if done:
            return data.tobytes()
    except cv2.error as error:
        reason = str(error.err)
    raise RepqError(f"cannot write an image as {suffix}", found=reason, fix="take .jpg or .png")


def _font() -> int:
    import cv2

    return cv2.FONT_HERSHEY_SIMPLEX


def _stroke(size: float) -> int:
    return max(1, round(1.5 * size))


def _ascii(names: Sequence[str], index: int) -> str:
    """A class's name in the letters that OpenCV's fonts have, without accents; its number where nothing is left."""
    name = unicodedata.normalize("NFKD", names[index]) if index < len(names) else ""
    plain = name.encode("ascii", "ignore").decode().strip()
    return plain if plain.isprintable() and plain else str(index)


def _place(
    edge: tuple[int, int, int], size: tuple[int, int], image: tuple[int, ...], taken: Sequence[Rectangle]
) -> Rectangle | None:
    """Where the label of a box with this left, top and bottom edge lies: above, inside or below, clear of the others.

    None: there is no room.
    """
    (x, top, bottom), (wide, tall) = edge, size
    left = max(0, min(x, image[1] - wide))
    tops = [max(0, min(y, image[0] - tall)) for y in (top - tall, top, bottom - tall, bottom)]
    places = [(left, y, left + wide, y + tall) for y in tops]
    return next((place for place in places if not any(_touch(place, other) for other in taken)), None)


def _write(canvas: Image, text: str, place: Rectangle, colour: Colour, size: float, below: int) -> None:
    import cv2

    cv2.rectangle(canvas, place[:2], place[2:], colour, cv2.FILLED)
    blue, green, red = colour
    ink = _INK if 0.114 * blue + 0.587 * green + 0.299 * red > 140 else _PAPER
    origin = place[0] + max(1, (place[3] - place[1]) // 12), place[3] - below
    cv2.putText(canvas, text, origin, _font(), size, ink, _stroke(size), cv2.LINE_AA)


def _touch(first: Rectangle, second: Rectangle) -> bool:
    apart = first[0] > second[2] or second[0] > first[2] or first[1] > second[3] or second[1] > first[3]
    return not apart


def _iou(box: Boxes, others: Boxes) -> NDArray[np.floating]:
    overlap = np.clip(np.minimum(box[2:4], others[:, 2:4]) - np.maximum(box[:2], others[:, :2]), 0, None).prod(axis=1)
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (others[:, 2:4] - others[:, :2]).prod(axis=1)
    return overlap / np.maximum(area + areas - overlap, 1e-9)


def _shrunk(image: Image, max_side: int) -> tuple[Image, float]:
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    if scale == 1.0:
        return image, scale
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), scale
