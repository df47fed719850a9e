"""From the network's output to boxes: score threshold, non-maximum suppression per class, at most so many boxes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from repq.errors import DataError
from repq.layout import OutputLayout
from repq.recipe import EvalConfig

MAX_CANDIDATES = 30_000  # the best of so many scores go into the suppression, as in the official evaluation


def postprocess(
    detections: NDArray[np.floating], config: EvalConfig, layout: OutputLayout = OutputLayout()
) -> list[NDArray[np.float32]]:
    """Turn B images' detections into B arrays (k, 6): x1, y1, x2, y2 in network pixels, score, class; best first.

    With ``config.multi_label`` a detection yields a candidate for each class above ``config.confidence``, else only for
    its best class. A box falls if its IoU with a better one of its class exceeds ``config.iou``, unless the layout has
    one per object. Detections that are not finite or whose box has no area yield nothing.

    Raises:
        DataError: an output of another rank.
    """
    outputs = np.asarray(detections)
    if outputs.ndim != 3:
        raise DataError("the output holds no detections (images, rows, columns)", found=f"the shape {outputs.shape}",
                        fix="give a detector, and --layout where its file does not say what they mean")  # fmt: skip
    return [_one_image(output, config, layout) for output in outputs]


def _one_image(output: NDArray[np.floating], config: EvalConfig, layout: OutputLayout) -> NDArray[np.float32]:
    scores, boxes = layout.scores_of(output), layout.boxes_of(output)
    shown = np.flatnonzero((scores > config.confidence).any(axis=1))  # few of all points
    scores, boxes = scores[shown], boxes[shown]
    if config.multi_label:
        row, class_id = np.nonzero(scores > config.confidence)
    else:
        best = scores.argmax(axis=1)
        row = np.flatnonzero(scores[np.arange(len(scores)), best] > config.confidence)
        class_id = best[row]
    score = scores[row, class_id]
    boxes = boxes[row]
    candidates = np.column_stack([*layout.corners(boxes), score, class_id]).astype(np.float32)
    candidates = candidates[np.isfinite(candidates).all(axis=1) & (layout.size(boxes) > 0).all(axis=1)]
    order = np.argsort(-candidates[:, 4], kind="stable")[:MAX_CANDIDATES]
    candidates = candidates[order]
    kept = np.arange(len(candidates)) if layout.one_per_object else suppress(candidates, config.iou)
    return candidates[kept[: config.max_detections]]


def suppress(boxes: NDArray[np.float32], iou: float) -> NDArray[np.intp]:
    """Return the rows of (n, 6) boxes, sorted by falling score, that outlive suppression per class, best first."""
    kept = [np.zeros(0, np.intp)]
    for class_id in np.unique(boxes[:, 5]):
        rows = np.flatnonzero(boxes[:, 5] == class_id)
        corners = boxes[rows, :4].astype(np.float64)
        rectangles = np.column_stack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
        # Ranks instead of scores: no tie is left to the library's sorting, and none is cut by its score threshold.
        ranks = np.arange(len(rows), 0, -1, dtype=np.float32)
        survivors = cv2.dnn.NMSBoxes(rectangles, ranks, score_threshold=0.0, nms_threshold=iou)  # type: ignore[arg-type]
        kept.append(rows[np.asarray(survivors, np.intp).reshape(-1)])
    return np.sort(np.concatenate(kept))
