"""Test-time augmentation: several looks at an image, mirrored and at other sizes, whose boxes become one set."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from repq.errors import RepqError
from repq.evaluate.postprocess import suppress
from repq.recipe import TtaConfig

A = TypeVar("A", bound=np.floating)
Boxes = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """One look at every image.

    Attributes:
        size: height and width of the network's input.
        mirrored: left to right.
        scale: of the room that the image has in the input, see `repq.data.letterbox.rooms`.
    """

    size: tuple[int, int]
    mirrored: bool
    scale: float = 1.0


PLAIN = TtaConfig(flip=False)


def views(imgsz: tuple[int, int], config: TtaConfig | None) -> tuple[View, ...]:
    """The passes, the plain one first if it is among them; without a config the plain one alone."""
    config = config or PLAIN

    def scaled(side: int, factor: float) -> int:
        return side if factor == 1 else max(1, round(side * factor / config.step)) * config.step

    looks: Iterable[tuple[tuple[int, int], float]] = (
        (imgsz, factor) if config.inside else ((scaled(imgsz[0], factor), scaled(imgsz[1], factor)), 1.0)
        for factor in config.scales
    )
    flips = (False, True) if config.flip else (False,)
    found = [View(size, mirrored, scale) for size, scale in dict.fromkeys(looks) for mirrored in flips]
    return tuple(sorted(found, key=lambda view: view != View(imgsz, False)))


def mirror_images(images: NDArray[A]) -> NDArray[A]:
    """Network input (B, 3, H, W) left to right."""
    return np.ascontiguousarray(images[..., ::-1])


def mirror_boxes(boxes: Boxes, width: int) -> Boxes:
    """Boxes (k, 6) of a mirrored input of this width, where they lie in the plain one."""
    found = boxes.copy()
    found[:, 0], found[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return found


def merged(passes: Sequence[Boxes], config: TtaConfig, most: int) -> Boxes:
    """The boxes (k, 6) of one image from those of every pass, best first, at most so many; one pass stays as it is."""
    if len(passes) == 1:
        return passes[0]
    together = np.concatenate(passes)
    if not len(together):
        return together
    if config.merge == "wbf":
        return _fused(passes, together, config.iou)[:most]
    ordered = together[np.argsort(-together[:, 4], kind="stable")]
    return ordered[suppress(ordered, config.iou)[:most]]


def demand_library(config: TtaConfig) -> None:
    """Refuse weighted box fusion where its library is not installed.

    Raises:
        RepqError: as above.
    """
    if config.merge == "wbf" and importlib.util.find_spec("ensemble_boxes") is None:
        raise RepqError(
            "weighted box fusion needs ensemble-boxes", found="it is not installed",
            fix="pip install 'repq[tta]', or --tta-merge nms",
        )  # fmt: skip


def _fused(passes: Sequence[Boxes], together: Boxes, iou: float) -> Boxes:
    """Weighted box fusion (Solovyev et al., 1910.13302), which wants coordinates in 0..1."""
    from ensemble_boxes import weighted_boxes_fusion

    corners = together[:, :4].reshape(-1, 2)
    low = corners.min(0)
    size = np.maximum(corners.max(0) - low, 1e-6)
    low, size = np.tile(low, 2), np.tile(size, 2)
    boxes, scores, classes = weighted_boxes_fusion(
        [((found[:, :4] - low) / size).clip(0, 1) for found in passes],
        [found[:, 4] for found in passes],
        [found[:, 5] for found in passes],
        iou_thr=iou,
    )
    return np.column_stack([boxes * size + low, scores, classes]).astype(np.float32)
