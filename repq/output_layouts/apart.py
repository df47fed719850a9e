"""Layouts with boxes in one output and class scores in another."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from repq.output_layouts.seen import SCORE_WORDS, Array, Fit, NamedLayout, Outputs, columns_of, form_by_order


def _apart(outputs: Outputs) -> tuple[int, int, bool] | None:
    """Numbers of the outputs with boxes and scores, and whether scores are (classes, N)."""
    arrays = list(outputs.arrays.values())
    if len(arrays) != 2 or any(array.ndim != 3 for array in arrays):
        return None
    fits = [
        (boxes, scores, arrays[scores].shape[1] != arrays[boxes].shape[1])
        for boxes, scores in ((0, 1), (1, 0))
        if arrays[boxes].shape[2] == 4 and arrays[boxes].shape[1] in arrays[scores].shape[1:]
    ]
    return max(fits, key=lambda fit: _like_boxes(outputs, fit[0]) - _like_boxes(outputs, fit[1]), default=None)


def _flat(array: Array) -> Array:
    """Boxes (1, N, 1, 4), which have an axis of classes of length 1 (YOLOv4), as (1, N, 4)."""
    return array[:, :, 0] if array.ndim == 4 and array.shape[2:] == (1, 4) else array


def _like_boxes(outputs: Outputs, number: int) -> int:
    """How much an output of four columns is like boxes, by its name before its values.

    Boxes are in pixels, or parts of an image, or their corners are in order; shares of classes are none of these.
    """
    name, array = list(outputs.arrays.items())[number]
    named = ("box" in name.lower()) - any(word in name.lower() for word in SCORE_WORDS)
    inside = array.min() >= 0 and array.max() <= 1
    in_order = array.shape[2] == 4 and form_by_order(array[0]) == "corners"
    return 4 * named + 2 * bool(array.max() > 32) + bool(inside) + in_order - 3 * _are_shares(array)


def _are_shares(scores: Array) -> bool:
    """Whether each row is what a softmax gives."""
    return bool(scores.min() >= 0 and np.abs(scores.sum(-1) - 1).max() < 1e-3)


def _with_scores(outputs: Outputs, logits: bool) -> Fit | None:
    outputs = replace(outputs, arrays={name: _flat(array) for name, array in outputs.arrays.items()})
    found = _apart(outputs)
    if found is None:
        return None
    arrays = list(outputs.arrays.values())
    boxes, scores = arrays[found[0]][0], arrays[found[1]][0]
    scores = scores.T if found[2] else scores
    if bool(scores.min() < 0 or scores.max() > 1 or "logit" in list(outputs.arrays)[found[1]].lower()) is not logits:
        return None
    layout, classes, activation = columns_of(outputs, boxes), scores.shape[1], "sigmoid" if logits else "none"
    if none := _no_object(outputs, scores, logits):
        activation, classes = "softmax" if logits else "shares", classes - 1
        layout = replace(layout, one_per_object=layout.one_per_object and none == "last")  # SSD's are of priors
    if outputs.classes not in (None, classes):
        return None
    layout = replace(layout, apart=found[:2], scores_first=found[2], activation=activation, no_object=none or "last")  # type: ignore[arg-type]
    queries = logits and layout.normalized and layout.one_per_object
    return replace(layout, box_form="centre") if queries else layout, classes


def _no_object(outputs: Outputs, scores: Array, logits: bool) -> Literal["first", "last"] | None:
    """Which class is that of no object, which a softmax needs: the last of DETR, the first of SSD; None: there is none.

    In a softmax it is the likeliest nearly everywhere. Where the first of independent classes is that, such as persons,
    its logits are below 0 all the same.
    """
    classes = scores.shape[1]
    if classes < 2 or (outputs.classes is not None and outputs.classes != classes - 1):
        return None
    best = scores.argmax(1)
    first, last = np.mean(best == 0), np.mean(best == classes - 1)
    if outputs.classes is not None or (not logits and _are_shares(scores)):
        return "first" if first > last else "last"
    if logits and last > 0.5:
        return "last"
    background = logits and first > 0.5 and np.median(scores[:, 0]) > 0
    return "first" if background else None


LAYOUTS = [
    NamedLayout("boxes-scores", "boxes (N, 4) and scores apart: PP-YOLOE, YOLO-NAS", lambda o: _with_scores(o, False)),
    NamedLayout("detr", "boxes (N, 4) and logits apart: DETR, RT-DETR", lambda o: _with_scores(o, True)),
]
