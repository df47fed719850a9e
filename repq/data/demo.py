"""The data set that repq draws by itself: coloured shapes on textured ground, in YOLO form.

Every image comes from its own generator, seeded with (seed, split, index): the same settings give the same files, and
more images leave the first ones as they were.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from repq.errors import DataError
from repq.files import replacing_folder
from repq.recipe import DemoConfig

SHAPES = ("ring", "triangle", "cross", "circle", "star", "square", "crescent", "arrow")
DRAWING = 1  # counts up when the same settings draw something else
SETTINGS_FILE = "demo.json"
SUPERSAMPLE = 4  # masks are drawn larger and averaged down, for soft edges
MIN_INSIDE = 0.7  # share of a shape that lies inside the image
MIN_VISIBLE = 0.7  # share of a shape that later ones leave uncovered
MIN_CONTRAST = 60.0  # distance of a shape's colour from the mean colour under it

Image = NDArray[np.uint8]
Polygon = NDArray[np.float64]


@dataclass(frozen=True)
class DrawnImage:
    """An image (H, W, 3), BGR, and its labels: rows of class, cx, cy, w, h in 0..1."""

    image: Image
    labels: NDArray[np.float64]


def make_demo_set(folder: Path, config: DemoConfig) -> Path:
    """Draw the data set into ``folder`` and return its ``data.yaml``; a complete one of the same settings is reused.

    The folder appears at once with all its files or not at all.

    Raises:
        DataError: the folder holds something that is no demo set.
    """
    settings = {"drawing": DRAWING, **config.model_dump()}
    if _settings_of(folder) == settings:
        return folder / "data.yaml"
    if folder.exists() and _settings_of(folder) is None and any(folder.iterdir()):
        raise DataError(
            f"cannot draw the demo set into {folder}",
            found="a folder with other files in it",
            fix="name a new folder or empty this one",
        )
    try:
        with replacing_folder(folder) as fresh:
            _write_set(fresh, config)
            (fresh / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except OSError:
        if _settings_of(folder) != settings:  # no other process was faster
            raise
    return folder / "data.yaml"


def draw_image(config: DemoConfig, split: int, index: int) -> DrawnImage:
    """Draw one image of one split (0: train, 1: val)."""
    rng = np.random.default_rng((config.seed, split, index))
    image = _background(rng, config.size).astype(np.float64)
    owners = np.full((config.size, config.size), -1)
    areas: list[float] = []
    labels: list[tuple[float, ...]] = []
    for _ in range(int(rng.integers(2, 15))):
        shape = int(rng.integers(config.classes))
        contours = _place(_contours(SHAPES[shape]), rng, config.size)
        area = abs(sum(_signed_area(contour) for contour in contours))
        mask = _mask(contours, config.size)
        cover = _coverage(mask)
        covered = np.where(cover > 0.5, len(labels), owners)
        visible = [float((covered == other).sum()) / full for other, full in enumerate(areas)]
        if cover.sum() < MIN_INSIDE * area or any(share < MIN_VISIBLE for share in visible):
            continue
        colour = _contrasting_colour(rng, image[cover > 0.5].mean(axis=0))
        shade = _noise(rng, config.size, cells=3)[..., None] * 25.0
        image += cover[..., None] * (colour + shade - image)
        owners = covered
        areas.append(area)
        labels.append((float(shape), *_box(mask)))
    if rng.random() < 0.3:
        image = np.asarray(cv2.GaussianBlur(image, (3, 3), 0), np.float64)
    image += rng.normal(0.0, rng.uniform(2.0, 8.0), image.shape)
    pixels = np.clip(image, 0, 255).round().astype(np.uint8)
    return DrawnImage(pixels, np.array(labels, dtype=np.float64).reshape(-1, 5))


def _settings_of(folder: Path) -> object:
    """The settings of a complete demo set, or None."""
    try:
        return json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_set(folder: Path, config: DemoConfig) -> None:
    for split, (name, count) in enumerate((("train", config.train_images), ("val", config.val_images))):
        images, labels = folder / "images" / name, folder / "labels" / name
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            drawn = draw_image(config, split, index)
            written = cv2.imwrite(str(images / f"{index:05d}.jpg"), drawn.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            if not written:
                raise DataError(f"cannot write an image into {images}", fix="check the space and rights of the disk")
            lines = [f"{row[0]:.0f} " + " ".join(f"{value:.6f}" for value in row[1:]) for row in drawn.labels]
            (labels / f"{index:05d}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    names = dict(enumerate(SHAPES[: config.classes]))
    layout = {"path": ".", "train": "images/train", "val": "images/val", "nc": config.classes, "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(layout, sort_keys=False), encoding="utf-8")


# --- ground ----------------------------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float64]:
    """Smooth noise with about ``cells`` waves across, zero mean, unit deviation before smoothing."""
    coarse = rng.normal(size=(cells + 1, cells + 1))
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.float64)


def _background(rng: np.random.Generator, size: int) -> Image:
    """A random colour with coarse and fine noise and a few thin lines that are no objects."""
    ground = np.full((size, size, 3), rng.uniform(40, 215, 3))
    for cells, strength in ((2, 22.0), (7, 12.0), (24, 8.0)):
        tint = rng.uniform(0.4, 1.0, 3)
        ground += _noise(rng, size, cells)[..., None] * tint * strength * rng.uniform(0.3, 1.0)
    image = np.clip(ground, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(0, 5))):
        start, end = rng.integers(0, size, 2), rng.integers(0, size, 2)
        cv2.line(
            image, start.tolist(), end.tolist(), rng.uniform(0, 255, 3).tolist(), int(rng.integers(1, 3)), cv2.LINE_AA
        )
    return image


def _contrasting_colour(rng: np.random.Generator, under: NDArray[np.float64]) -> NDArray[np.float64]:
    for _ in range(100):
        colour = rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - under) >= MIN_CONTRAST:
            return colour
    return 255.0 - under


# --- shapes ----------------------------------------------------------------------------------------------------------


def _circle(radius: float, points: int = 64, phase: float = 0.0) -> Polygon:
    angles = np.arange(points) * (2 * np.pi / points) + phase
    return np.stack((np.cos(angles), np.sin(angles)), axis=1) * radius


def _contours(shape: str) -> list[Polygon]:
    """The outline of a shape inside the unit circle; a second contour is a hole."""
    if shape == "circle":
        return [_circle(1.0)]
    if shape == "ring":
        return [_circle(1.0), _circle(0.55)[::-1]]
    if shape == "square":
        return [_circle(1.0, 4)]
    if shape == "triangle":
        return [_circle(1.0, 3)]
    if shape == "star":
        points = _circle(1.0, 10)
        points[1::2] *= 0.42
        return [points]
    if shape == "crescent":
        outer = _circle(1.0)[8:57]  # what a second circle, moved to the right, leaves of the first
        tip = outer[0]
        centre = np.array([0.8, 0.0])
        radius = float(np.linalg.norm(tip - centre))
        half = float(np.arctan2(tip[1], tip[0] - centre[0]))
        angles = np.linspace(2 * np.pi - half, half, 40)
        inner = centre + radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)
        return [np.concatenate((outer, inner[1:-1]))]
    if shape == "cross":
        corner = [(1.0, -0.3), (1.0, 0.3), (0.3, 0.3)]
        turns = [np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), quarter) for quarter in range(4)]
        return [np.concatenate([np.array(corner) @ turn.T for turn in turns])]
    arrow = [(1.0, 0.0), (0.1, 0.75), (0.1, 0.28), (-1.0, 0.28), (-1.0, -0.28), (0.1, -0.28), (0.1, -0.75)]
    return [np.array(arrow)]


def _place(contours: list[Polygon], rng: np.random.Generator, size: int) -> list[Polygon]:
    """Scale, stretch, turn and move a shape; its radius is 7 to 22 % of the image."""
    radius = size * np.exp(rng.uniform(np.log(0.07), np.log(0.22)))
    stretch = np.array([1.0, rng.uniform(0.75, 1.0)])
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(0.04, 0.96, 2) * size
    return [(contour * stretch * radius) @ turn.T + centre for contour in contours]


def _mask(contours: list[Polygon], size: int) -> NDArray[np.uint8]:
    """The shape at ``SUPERSAMPLE`` times the image's size, 0 or 255."""
    mask = np.zeros((size * SUPERSAMPLE, size * SUPERSAMPLE), np.uint8)
    cv2.fillPoly(mask, [np.round(contour * SUPERSAMPLE - 0.5).astype(np.int32) for contour in contours], 255)
    return mask


def _coverage(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The share of each image pixel that the shape covers, 0..1."""
    size = len(mask) // SUPERSAMPLE
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA).astype(np.float64) / 255.0


def _signed_area(contour: Polygon) -> float:
    x, y = contour[:, 0], contour[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _box(mask: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Centre and extent of the part of the shape that lies inside the image, as shares of its size."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    low = np.array([columns[0], rows[0]]) / len(mask)
    high = np.array([columns[-1] + 1, rows[-1] + 1]) / len(mask)
    centre, extent = (low + high) / 2, high - low
    return float(centre[0]), float(centre[1]), float(extent[0]), float(extent[1])
