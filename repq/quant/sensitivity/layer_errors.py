"""What quantizing a layer costs: the error at its own output, at the neck's and the head's, and in AP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repq.data import Batch, DetectionDataset, demand_objects
from repq.errors import QuantizationError
from repq.evaluate import Detections, Matcher, boxes_in_images
from repq.layers import LayerId
from repq.layout import demand_finite
from repq.model import Detector
from repq.progress import Progress, silent
from repq.quant.calibration.observation import Images
from repq.quant.ptq import on_device_of
from repq.quant.sensitivity.sweep import UNCHANGED, Change, changed_outputs
from repq.quant.similarity import ErrorSums, OutputErrors, Outputs
from repq.quant.state import quantized_layers, quantizing
from repq.recipe import EvalConfig
from repq.results import Similarity

LoadBatches = Callable[[], Iterable[Batch]]
"""Starts another pass over the images of a data set, in the order of its records."""


def local_errors(
    model: Detector, layers: Sequence[LayerId], batches: Iterable[Images], progress: Progress = silent
) -> dict[LayerId, ErrorSums]:
    """Compare every layer's output with quantized and with float input and weight, on the float model's activations.

    The model runs in float; beside each layer the same input goes through the layer again, quantized. Nothing is kept
    but three sums a layer.

    Args:
        model: a calibrated model that holds quantizers in all ``layers``.
        batches: network inputs, float32 (B, 3, H, W).

    Raises:
        QuantizationError: no images, or a layer's output is not finite; the message names the first such layer.
    """
    modules = quantized_layers(model)
    sums = {layer: ErrorSums() for layer in layers}
    images = 0
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(quantizing(model, ()))
        for layer in layers:
            stack.enter_context(modules[layer].register_forward_hook(_comparing(layer, sums[layer])))
        for batch in progress(batches, label="local measures"):
            (inputs,) = on_device_of(model, [batch])
            model(inputs)
            images += len(inputs)
    _demand_images(images)
    return sums


def _comparing(layer: LayerId, sums: ErrorSums) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        with quantizing(module, (LayerId(""),)):  # within itself the layer's path is empty
            quantized = module.forward(*inputs)
        sums.add(output, quantized)
        _demand_finite_layer(layer, sums)

    return hook


def end_to_end_similarity(
    model: Detector, layers: Sequence[LayerId], batches: Iterable[Images]
) -> dict[LayerId, tuple[Similarity, Similarity]]:
    """Compare the float model's outputs with those of only one layer quantized: at the neck, and at the head.

    Layers of the head leave the neck's maps alone: their SNR there is infinite.

    Args:
        model: a calibrated model in eval mode that holds quantizers in all ``layers``.
        batches: network inputs, float32 (B, 3, H, W).

    Raises:
        QuantizationError: no images, or outputs that are not finite; the message names the layer.
    """
    errors = {layer: OutputErrors() for layer in layers}
    images = 0
    for inputs in on_device_of(model, batches):
        images += len(inputs)
        original: Outputs = ()
        for item, outputs in changed_outputs(model, "only_int8", (UNCHANGED, *layers), inputs):
            if item == UNCHANGED:
                original = outputs
                continue
            errors[item].add(original, outputs)
            _demand_finite(item, errors[item], original)
    _demand_images(images)
    return {layer: sums.similarities() for layer, sums in errors.items()}


def _demand_finite(layer: LayerId, errors: OutputErrors, original: tuple[Tensor, ...]) -> None:
    if errors.finite:
        return
    already = not all(bool(output.isfinite().all()) for output in original)
    raise QuantizationError(
        "the model's output is not finite" + ("" if already else f" once {layer} is quantized"),
        found="NaN or infinite values",
        fix="start from another checkpoint" if already else f"keep {layer} in float",
    )


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
        (inputs,) = on_device_of(model, [batch.images])
        for item, outputs in changed_outputs(model, change, items, inputs):
            detections = outputs[-1].float().cpu().numpy()
            demand_finite({"detections": detections}, f"the simulation with {item} changed")
            found[item].extend(boxes_in_images(detections, batch, dataset.names, config, model.spec.layout))
    images = tuple(record.name for record in dataset.records)
    return {item: matcher.match(Detections(images, tuple(boxes))).ap() for item, boxes in found.items()}


def _demand_images(count: int) -> None:
    if not count:
        raise QuantizationError(
            "there is nothing to measure the layers on", found="no images", fix="give at least one image"
        )


def _demand_finite_layer(layer: LayerId, sums: ErrorSums) -> None:
    if not sums.finite:
        raise QuantizationError(
            f"the output of {layer} is not finite",
            found="NaN or infinite values",
            fix="look for the layer that makes them in the float model; start from another checkpoint",
        )
