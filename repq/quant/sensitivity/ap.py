"""AP with only one layer in INT8, and with only one layer in float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from repq.data import Batch, DetectionDataset, demand_objects
from repq.evaluate import Detections, Matcher, boxes_in_images
from repq.layers import LayerId
from repq.model import Detector
from repq.quant.sensitivity.sweep import Change, as_inputs, changed_outputs
from repq.recipe import EvalConfig

LoadBatches = Callable[[], Iterable[Batch]]
"""Starts another pass over the images of a data set, in the order of its records."""


def ap_with_changes(
    model: Detector,
    change: Change,
    items: Sequence[LayerId],
    dataset: DetectionDataset,
    load: LoadBatches,
    config: EvalConfig,
    matcher: Matcher,
) -> dict[LayerId, float]:
    """AP of the model with only each item in INT8 (or in float), all items in one pass over the images.

    What is kept of an item is the boxes that it leads to.

    Args:
        model: a calibrated model in eval mode that holds quantizers in all layers.
        items: layers, or ``UNCHANGED`` for the float model (or the model with all layers in INT8).
        load: the images of ``dataset``.
        matcher: of ``dataset``.

    Raises:
        DataError: no image has a labelled object, or the model does not fit the data set's classes.
    """
    demand_objects(dataset)
    found: dict[LayerId, list[NDArray[np.float32]]] = {item: [] for item in items}
    for batch in load():
        (inputs,) = as_inputs([batch.images], model)
        for item, outputs in changed_outputs(model, change, items, inputs):
            detections = outputs[-1].float().cpu().numpy()
            found[item].extend(boxes_in_images(detections, batch, dataset.names, config))
    images = tuple(record.name for record in dataset.records)
    return {item: matcher.match(Detections(images, tuple(boxes))).ap() for item, boxes in found.items()}
