"""Layouts of boxes that are final: the graph itself picks the best, or suppresses the rest."""

from __future__ import annotations

from functools import partial

import numpy as np

from repq.errors import RepqError
from repq.layout import OutputLayout
from repq.output_layouts.seen import Array, Fit, NamedLayout, Outputs, form_by_order, is_normalized, is_ranked, only


def _end2end(outputs: Outputs) -> Fit | None:
    rows = only(outputs)
    if rows is None or not is_ranked(rows):
        return None
    classes = _known_classes(outputs)
    normalized = is_normalized(rows)
    return OutputLayout(
        form_by_order(rows) if normalized else "corners", objectness=None, scores=4, ranked=classes,
        one_per_object=True, normalized=normalized,
    ), classes  # fmt: skip


def _known_classes(outputs: Outputs) -> int:
    """How many classes there are, which final boxes do not show.

    Raises:
        RepqError: nothing says it.
    """
    if outputs.classes is None:
        raise RepqError("the number of classes is not known", found=outputs.listed,
                        fix="give --classes, or write the class names into the file, between onnx.load and onnx.save: "
                            "model.metadata_props.add(key='names', value=\"['cat', 'dog']\")")  # fmt: skip
    return outputs.classes


def _labelled(outputs: Outputs, first: int) -> Fit | None:
    """Boxes (K, 4), scores (K) and classes (K), perhaps with how many there are; or boxes with scores, and classes.

    Args:
        first: the number of the first class. That it is 1 shows where a class has the number of how many there are.
    """
    arrays = list(outputs.arrays.items())
    boxes = [number for number, (_, array) in enumerate(arrays) if array.ndim == 3 and array.shape[2] in (4, 5)]
    if len(boxes) != 1 or not 2 <= len(arrays) <= 4:
        return None
    found = arrays[boxes[0]][1]
    lists = [number for number, (_, array) in enumerate(arrays) if array.shape == found.shape[:2]]
    counts = [number for number, (_, array) in enumerate(arrays) if array.size == 1 and number not in lists]
    with_scores = found.shape[2] == 5
    if len(lists) != (1 if with_scores else 2) or len(arrays) != 1 + len(lists) + len(counts):
        return None
    label = max(lists, key=lambda number: _like_labels(*arrays[number]))
    score = boxes[0] if with_scores else next(number for number in lists if number != label)
    scores = found[..., 4] if with_scores else arrays[score][1]
    if not (arrays[label][1] == np.rint(arrays[label][1])).all() or scores.min() < 0 or scores.max() > 1 + 1e-6:
        return None
    classes = _known_classes(outputs)
    if not outputs.told and first != int(arrays[label][1].max() == classes):
        return None
    return OutputLayout(
        "corners", objectness=None, scores=4, ranked=classes, labelled=(boxes[0], score, label),
        first_label=first, counted=counts[0] if counts else None, one_per_object=True,
        normalized=is_normalized(found[0]),
    ), classes  # fmt: skip


def _like_labels(name: str, array: Array) -> int:
    """How much a list is like one of classes: whole numbers by type, by name, by value."""
    named = ("label" in name.lower() or "class" in name.lower()) - ("score" in name.lower() or "conf" in name.lower())
    return 4 * (array.dtype.kind in "iu") + 2 * named + bool((array == np.rint(array)).all())


LAYOUTS = [
    NamedLayout("end2end", "(K, 6) box, score, class: YOLOv10, 26, RT-DETR", _end2end),
    NamedLayout("labelled", "boxes, scores and classes (K): YOLOv7 with suppression", partial(_labelled, first=0)),
    NamedLayout("labelled-from-1", "the same with classes 1, 2, …: SSD with suppression", partial(_labelled, first=1)),
]
