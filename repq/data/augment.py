"""Training samples: one image or a mosaic of four, moved, scaled, mirrored and recoloured, with their boxes.

What is drawn at random and where objects come to lie is a `SamplePlan`, for which no image is decoded; `render` makes
its pixels. Every image is resampled once: fit, zoom, turn, shear and shift are one affine map, in continuous
coordinates, in which a pixel's centre is at a half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from repq.data.cache import ImageCache
from repq.data.letterbox import USUAL, fit_ratio, letterbox_transform, rooms
from repq.preprocessing import Preprocessing
from repq.recipe import LoopConfig

MIN_SIDE = 2.0  # pixels of a box that are left after cutting
MIN_VISIBLE = 0.1  # share of a box's area that is left after cutting
MIXUP_SHAPE = 32.0  # of the beta distribution of shares: most pairs are mixed about evenly

Matrix = NDArray[np.float64]
Tables = tuple[NDArray[np.uint8], ...]
"""Of `SamplePlan`; empty where colours stay."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a source image goes: ``output = linear @ source + offset``, seen through ``region`` only.

    Attributes:
        linear: (2, 2), of x and y: zoom, turn and shear.
        offset: (2,) x and y.
        region: x1, y1, x2, y2 in whole pixels of the output.
    """

    linear: Matrix
    offset: Matrix
    region: tuple[int, int, int, int]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be seen of it."""
        left, top, right, bottom = self.region
        return left >= right or top >= bottom


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """How a sample is made. Steps are done in the order of the attributes.

    Attributes:
        imgsz: height and width of the sample.
        grey: level of what no image covers.
        sources: index of a record and where its image goes, drawn one after another.
        objects: (n, 5) float32 rows of class, x1, y1, x2, y2 in pixels of the finished sample.
        second: what is blended with it.
        share: of the first, 0..1.
        tables: (256, 3) uint8, the new hue (0..179), saturation and value (0..255) for each old one.
        mirrored: left and right are swapped.
        turned_over: top and bottom are swapped.
    """

    imgsz: tuple[int, int]
    grey: int
    sources: tuple[tuple[int, Placement], ...]
    objects: NDArray[np.float32]
    second: SamplePlan | None = None
    share: float = 1.0
    tables: Tables = ()
    mirrored: bool = False
    turned_over: bool = False


def plan_sample(
    cache: ImageCache,
    index: int,
    imgsz: tuple[int, int],
    config: LoopConfig,
    rng: np.random.Generator,
    preprocessing: Preprocessing = USUAL,
) -> SamplePlan:
    """Draw at random how one training sample of size ``imgsz`` (height, width) is made around record ``index``.

    Raises:
        DataError: the letterbox leaves no room in the input.
    """
    is_mosaic = rng.random() < config.mosaic
    plan = _compose(cache, index, imgsz, config, rng, preprocessing, mosaic=is_mosaic)
    if rng.random() < config.mixup and (is_mosaic or config.mixup_scale is None):
        other = int(rng.integers(len(cache)))
        if config.mixup_scale is None:
            mosaic = rng.random() < config.mosaic
            second = _compose(cache, other, imgsz, config, rng, preprocessing, mosaic=mosaic)
            plan = mix(plan, second, rng.beta(MIXUP_SHAPE, MIXUP_SHAPE))
        else:
            plan = mix(plan, _jittered(cache, other, imgsz, config, rng, preprocessing), 0.5)
    plan = replace(plan, tables=(*shifting_table(config.hsv, rng), *adding_table(config.hsv_shift, rng)))
    if rng.random() < config.flip:
        plan = mirror(plan)
    return turn_over(plan) if rng.random() < config.flip_vertical else plan


def render(plan: SamplePlan, cache: ImageCache) -> NDArray[np.uint8]:
    """The pixels of a sample: (H, W, 3) RGB.

    Raises:
        DataError: an image can no longer be read, or has another size than its record says.
    """
    canvas = np.full((*plan.imgsz, 3), plan.grey, np.uint8)
    for index, placement in plan.sources:
        paste(canvas, cache.image(index), placement, plan.grey)
    if plan.second is not None:
        canvas = blend(canvas, render(plan.second, cache), plan.share)
    for table in plan.tables:
        canvas = recolour(canvas, table)
    canvas = canvas[:, ::-1] if plan.mirrored else canvas
    return np.ascontiguousarray(canvas[::-1] if plan.turned_over else canvas)


def _compose(
    cache: ImageCache,
    index: int,
    imgsz: tuple[int, int],
    config: LoopConfig,
    rng: np.random.Generator,
    preprocessing: Preprocessing,
    *,
    mosaic: bool,
) -> SamplePlan:
    """One image, or a mosaic of it and three others, on grey."""
    if mosaic:
        indices = [index, *rng.integers(0, len(cache), 3).tolist()]
        placements = mosaic_placements([cache.size(other) for other in indices], imgsz, config, rng, preprocessing)
    else:
        indices, size = [index], cache.size(index)
        if config.affine == "all":
            placements = [single_placement(size, imgsz, config, rng, preprocessing)]
        else:
            placements = [plain_placement(size, imgsz, config, preprocessing)]
    return _placed(cache, indices, placements, imgsz, preprocessing.pad)


def _jittered(
    cache: ImageCache,
    index: int,
    imgsz: tuple[int, int],
    config: LoopConfig,
    rng: np.random.Generator,
    preprocessing: Preprocessing,
) -> SamplePlan:
    """One image in the input, scaled by a random factor, mirrored at random, and a random part of what is too large."""
    assert config.mixup_scale is not None
    plain = plain_placement(cache.size(index), imgsz, config, preprocessing)
    factor, size = rng.uniform(*config.mixup_scale), np.array(imgsz[::-1])
    hidden = np.maximum(factor * size - size, 0) * rng.uniform(size=2)
    linear, offset = factor * plain.linear, factor * plain.offset - hidden
    plan = _placed(cache, [index], [Placement(linear, offset, plain.region)], imgsz, preprocessing.pad)
    return mirror(plan) if rng.random() < config.flip else plan


def _placed(
    cache: ImageCache, indices: list[int], placements: list[Placement], imgsz: tuple[int, int], grey: int
) -> SamplePlan:
    sources = tuple(zip(indices, placements, strict=True))
    objects = [place_objects(cache.objects(index), placement) for index, placement in sources]
    return SamplePlan(imgsz, grey, sources, np.concatenate(objects))


def plain_placement(
    size: tuple[int, ...], imgsz: tuple[int, int], config: LoopConfig, preprocessing: Preprocessing
) -> Placement:
    """An image of ``size`` (height, width) where evaluation puts it."""
    place = letterbox_transform(size[1], size[0], imgsz, config.letterbox, preprocessing)
    offset = np.array([place.left, place.top], np.float64)
    return Placement(np.diag([place.scale_x, place.scale_y]), offset, (0, 0, imgsz[1], imgsz[0]))


def fit_scales(
    size: tuple[int, ...], imgsz: tuple[int, int], config: LoopConfig, preprocessing: Preprocessing
) -> Matrix:
    """By how much x and y of an image of ``size`` (height, width) are scaled to fit into the output: (2,)."""
    if preprocessing.stretch:
        height, width = rooms(imgsz, config.letterbox)
        return np.array([width / size[1], height / size[0]])
    return np.full(2, fit_ratio(size[1], size[0], imgsz, config.letterbox))


def single_placement(
    size: tuple[int, ...],
    imgsz: tuple[int, int],
    config: LoopConfig,
    rng: np.random.Generator,
    preprocessing: Preprocessing = USUAL,
) -> Placement:
    """Fit an image of ``size`` (height, width) into the output, then zoom, turn, shear and shift it at random."""
    view, centre = _draw_view(imgsz, config, rng)
    linear = view * fit_scales(size, imgsz, config, preprocessing)
    return Placement(linear, centre - linear @ _middle(size), (0, 0, imgsz[1], imgsz[0]))


def mosaic_placements(
    sizes: list[tuple[int, ...]],
    imgsz: tuple[int, int],
    config: LoopConfig,
    rng: np.random.Generator,
    preprocessing: Preprocessing = USUAL,
) -> list[Placement]:
    """Lay four fitted images around a random point, the joint, of a canvas twice as large, and look at its middle.

    The order is top left, top right, bottom left, bottom right (Bochkovskiy et al., YOLOv4, 2004.10934, section 3.3).
    Images turn around the joint, the lines between them stay upright.
    """
    height, width = imgsz
    view, centre = _draw_view(imgsz, config, rng)
    joint = centre + view @ (rng.uniform(-0.5, 0.5, 2) * (width, height))
    cut_x, cut_y = np.clip(np.rint(joint), 0, (width, height)).astype(int).tolist()
    placements = []
    for quarter, size in enumerate(sizes):
        bottom, right = divmod(quarter, 2)
        linear = view * fit_scales(size, imgsz, config, preprocessing)
        corner = np.array([0 if right else size[1], 0 if bottom else size[0]], np.float64)
        columns = (cut_x, width) if right else (0, cut_x)
        rows = (cut_y, height) if bottom else (0, cut_y)
        region = (columns[0], rows[0], columns[1], rows[1])
        placements.append(Placement(linear, joint - linear @ corner, region))
    return placements


def paste(canvas: NDArray[np.uint8], image: NDArray[np.uint8], placement: Placement, grey: int) -> None:
    """Draw an image into its region of the canvas, grey where it does not reach."""
    if not placement.is_empty:
        left, top, right, bottom = placement.region
        canvas[top:bottom, left:right] = warp(image, placement, grey)


def warp(image: NDArray[np.uint8], placement: Placement, grey: int) -> NDArray[np.uint8]:
    """What is seen of an image through its region, which is not empty: (h, w, 3)."""
    left, top, right, bottom = placement.region
    half = np.array([0.5, 0.5])  # from continuous coordinates to indices of pixels
    shift = placement.linear @ half + placement.offset - half - (left, top)
    warped = cv2.warpAffine(
        image,
        np.column_stack((placement.linear, shift)),
        (right - left, bottom - top),
        flags=cv2.INTER_LINEAR,
        borderValue=(grey, grey, grey),
    )
    return np.asarray(warped, np.uint8)


def place_objects(objects: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """Map objects, cut them at the region, and drop those of which too little is left to be seen.

    A turned box becomes the upright one around it.
    """
    corners = objects[:, [1, 2, 3, 2, 3, 4, 1, 4]].reshape(-1, 4, 2) @ placement.linear.T + placement.offset
    boxes = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    region = np.array(placement.region)
    low, high = region[[0, 1, 0, 1]], region[[2, 3, 2, 3]]
    cut = np.clip(boxes, low, np.maximum(low, high))
    sides = cut[:, 2:] - cut[:, :2]
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept = (sides.min(axis=1, initial=np.inf) >= MIN_SIDE) & (sides.prod(axis=1) >= MIN_VISIBLE * area)
    return np.concatenate((objects[:, :1], cut), axis=1)[kept].astype(np.float32)


def mix(first: SamplePlan, second: SamplePlan, share: float) -> SamplePlan:
    """Blend two images, ``share`` of the first, and keep the objects of both (Zhang et al. 1902.04103, section 3.1)."""
    return replace(first, second=second, share=share, objects=np.concatenate((first.objects, second.objects)))


def blend(first: NDArray[np.uint8], second: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """The mean of two images, with weight ``share`` of the first."""
    return np.asarray(cv2.addWeighted(first, share, second, 1 - share, 0), np.uint8)


def mirror(plan: SamplePlan) -> SamplePlan:
    """Swap left and right."""
    objects = plan.objects.copy()
    objects[:, [1, 3]] = plan.imgsz[1] - plan.objects[:, [3, 1]]
    return replace(plan, objects=objects, mirrored=not plan.mirrored)


def turn_over(plan: SamplePlan) -> SamplePlan:
    """Swap top and bottom."""
    objects = plan.objects.copy()
    objects[:, [2, 4]] = plan.imgsz[0] - plan.objects[:, [4, 2]]
    return replace(plan, objects=objects, turned_over=not plan.turned_over)


def shifting_table(strengths: tuple[float, float, float], rng: np.random.Generator) -> Tables:
    """Multiply hue, saturation and value by random factors in ``1 ± strength``; hue wraps around."""
    if not any(strengths):
        return ()
    factors = 1 + rng.uniform(-1, 1, 3) * strengths
    levels = np.arange(256)
    hue = (levels * factors[0]) % 180
    table = np.stack((hue, levels * factors[1], levels * factors[2]), axis=-1)
    return (table.clip(0, 255).astype(np.uint8),)


def adding_table(widths: tuple[float, float, float], rng: np.random.Generator) -> Tables:
    """Add numbers within ``± widths`` to hue (of 180), saturation and value, to each in half of the cases."""
    if not any(widths):
        return ()
    added = (rng.uniform(-1, 1, 3) * widths * rng.integers(0, 2, 3)).astype(int)
    levels = np.arange(256)[:, None] + added
    return (np.column_stack((levels[:, 0] % 180, levels[:, 1:].clip(0, 255))).astype(np.uint8),)


def recolour(image: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace hue, saturation and value as the table (256, 3) says."""
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table[None])
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def _middle(size: tuple[int, ...]) -> Matrix:
    return np.array([size[1] / 2, size[0] / 2])


def _draw_view(imgsz: tuple[int, int], config: LoopConfig, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """A random zoom, turn and shear, (2, 2), and the point of the output where the middle goes, (2,)."""
    zoom = rng.uniform(*config.scale)
    centre = rng.uniform(0.5 - config.translate, 0.5 + config.translate, 2) * (imgsz[1], imgsz[0])
    angle = np.radians(rng.uniform(-config.rotate, config.rotate))
    slope_x, slope_y = np.tan(np.radians(rng.uniform(-config.shear, config.shear, 2)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return zoom * turn @ np.array([[1, slope_x], [slope_y, 1]]), centre
