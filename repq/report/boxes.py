"""Detections drawn on images, by both models, for the report."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from repq.errors import RepqError
from repq.results import DrawnImage

Image = NDArray[np.uint8]
Detections = NDArray[np.floating]
Rectangle = tuple[int, int, int, int]


def draw_pair(
    name: str,
    image: Image,
    float_detections: Detections,
    quantized_detections: Detections,
    class_names: Sequence[str],
    *,
    confidence: float = 0.3,
    max_side: int = 640,
) -> DrawnImage:
    """Draw the boxes of both models on two copies of one image and count those that both found.

    Args:
        name: what the image is called in the report.
        image: (H, W, 3) BGR.
        float_detections, quantized_detections: (k, 6) rows x1 y1 x2 y2 score class, in pixels of ``image``.
        class_names: by class index.
        confidence: boxes of a lower score are left out.
        max_side: longer images are shrunk to this, so that the page stays small.
    """
    kept_float, kept_quantized = (
        rows[rows[:, 4] >= confidence]
        for rows in (float_detections.reshape(-1, 6), quantized_detections.reshape(-1, 6))
    )
    shrunk, scale = _shrunk(image, max_side)
    return DrawnImage(
        name=name,
        float_jpeg=encode_jpeg(draw_boxes(shrunk, _scaled(kept_float, scale), class_names)),
        quantized_jpeg=encode_jpeg(draw_boxes(shrunk, _scaled(kept_quantized, scale), class_names)),
        float_boxes=len(kept_float),
        quantized_boxes=len(kept_quantized),
        matched=count_matches(kept_float, kept_quantized),
    )


def draw_boxes(image: Image, detections: Detections, class_names: Sequence[str]) -> Image:
    """Draw boxes with names and scores on a copy; surer boxes lie above less sure ones, labels above all.

    Args:
        image: (H, W, 3) BGR.
        detections: (k, 6) rows x1 y1 x2 y2 score class, in pixels of ``image``.
        class_names: by class index; an index past its end is printed as a number.
    """
    import cv2

    canvas = np.ascontiguousarray(image).copy()
    size = max(0.36, min(0.7, max(canvas.shape[:2]) / 1100))
    width = 1 if max(canvas.shape[:2]) < 320 else 2
    rows = sorted(detections.tolist(), key=lambda row: row[4])
    for x1, y1, x2, y2, _, label in rows:
        corners = (round(x1), round(y1)), (round(x2), round(y2))
        cv2.rectangle(canvas, *corners, class_colour(int(label)), width)
    taken: list[Rectangle] = []
    for x1, y1, _, y2, score, label in reversed(rows):  # the surest choose their place first
        index = int(label)
        text = f"{class_names[index] if index < len(class_names) else index} {score:.2f}"
        taken.append(_draw_label(canvas, text, (round(x1), round(y1), round(y2)), class_colour(index), size, taken))
    return canvas


def count_matches(first: Detections, second: Detections, iou: float = 0.5) -> int:
    """Pairs of boxes of one class with at least this IoU, each box in one pair at most; the surest choose first."""
    free = np.ones(len(second), dtype=bool)
    matches = 0
    for row in first[np.argsort(-first[:, 4], kind="stable")]:
        overlaps = np.where(free & (second[:, 5] == row[5]), _iou(row, second), 0.0)
        if overlaps.size and overlaps.max() >= iou:
            free[int(overlaps.argmax())] = False
            matches += 1
    return matches


def class_colour(index: int) -> tuple[int, int, int]:
    """A BGR colour for a class: hues by the golden angle, so that neighbouring classes differ."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * 0.61803399) % 1.0, 0.78, 0.92)
    return round(255 * blue), round(255 * green), round(255 * red)


def encode_jpeg(image: Image, quality: int = 85) -> bytes:
    """Compress a BGR image.

    Raises:
        RepqError: OpenCV cannot encode it.
    """
    import cv2

    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RepqError("cannot encode an image as JPEG", found=f"shape {image.shape}, {image.dtype}")
    return data.tobytes()


def _draw_label(
    canvas: Image,
    text: str,
    edge: tuple[int, int, int],
    colour: tuple[int, int, int],
    size: float,
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Draw a label at a box with this left, top and bottom edge, beside the labels drawn before; return its place."""
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    ascii_text = text.encode("ascii", "replace").decode()  # OpenCV's fonts hold nothing else
    (width, height), below = cv2.getTextSize(ascii_text, font, size, 1)
    wide, tall = width + 4, height + below + 3
    x, top, bottom = edge
    left = max(0, min(x, canvas.shape[1] - wide))
    tops = [max(0, min(y, canvas.shape[0] - tall)) for y in (top - tall, top, bottom - tall, bottom)]
    places = [(left, y, left + wide, y + tall) for y in tops]
    place = next((place for place in places if not any(_touch(place, other) for other in taken)), places[0])
    cv2.rectangle(canvas, place[:2], place[2:], colour, cv2.FILLED)
    blue, green, red = colour
    ink = (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 140 else (255, 255, 255)
    cv2.putText(canvas, ascii_text, (left + 2, place[1] + height + 2), font, size, ink, 1, cv2.LINE_AA)
    return place


def _touch(first: Rectangle, second: Rectangle) -> bool:
    apart = first[0] > second[2] or second[0] > first[2] or first[1] > second[3] or second[1] > first[3]
    return not apart


def _iou(box: Detections, others: Detections) -> NDArray[np.floating]:
    overlap = np.clip(np.minimum(box[2:4], others[:, 2:4]) - np.maximum(box[:2], others[:, :2]), 0, None).prod(axis=1)
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (others[:, 2:4] - others[:, :2]).prod(axis=1)
    return overlap / np.maximum(area + areas - overlap, 1e-9)


def _scaled(detections: Detections, scale: float) -> Detections:
    return np.concatenate([detections[:, :4] * scale, detections[:, 4:]], axis=1)


def _shrunk(image: Image, max_side: int) -> tuple[Image, float]:
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    if scale == 1.0:
        return image, scale
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), scale
