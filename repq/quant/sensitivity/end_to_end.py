"""The error at the neck's and the head's outputs when only one layer is quantized."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.layout import OutputLayout
from repq.model import Detector
from repq.quant.calibration.observe import Images
from repq.quant.sensitivity.guards import demand_images
from repq.quant.sensitivity.measures import Moments, similarity
from repq.quant.sensitivity.sweep import UNCHANGED, as_inputs, changed_outputs
from repq.quant.tape import Outputs
from repq.results import Similarity


@dataclass
class OutputMoments:
    """Sums over the neck's maps, one for each level, and over the head's boxes and class scores."""

    layout: OutputLayout
    neck: list[Moments] = field(default_factory=list)
    head: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()))

    def add(self, original: Outputs, changed: Outputs) -> None:
        """Take in one batch's outputs, as ``changed_outputs`` yields them."""
        self.neck = self.neck or [Moments() for _ in original[:-1]]
        for moments, before, after in zip(self.neck, original[:-1], changed[:-1], strict=True):
            moments.add(before, after)
        parts = (self.layout.parts(outputs[-1]).values() for outputs in (original, changed))
        for moments, before, after in zip(self.head, *parts, strict=True):
            moments.add(before, after)

    @property
    def finite(self) -> bool:
        return all(moments.finite for moments in (*self.neck, *self.head))

    def similarities(self) -> tuple[Similarity, Similarity]:
        """At the neck and at the head; levels count alike, and so do boxes and scores."""
        return similarity(self.neck), similarity(self.head)


def end_to_end_similarity(
    model: Detector, layers: Sequence[LayerId], batches: Iterable[Images]
) -> dict[LayerId, tuple[Similarity, Similarity]]:
    """Compare the float model's outputs with those of only one layer quantized: at the neck, and at the head.

    Layers of the head leave the neck's maps alone: their SNR there is infinite.

    Args:
        model: a calibrated model in eval mode that holds quantizers in all ``layers``.
        batches: network inputs, float32 (B, 3, H, W) in 0..1.

    Raises:
        QuantizationError: no images, or outputs that are not finite; the message names the layer.
    """
    moments = {layer: OutputMoments(model.spec.layout) for layer in layers}
    images = 0
    for inputs in as_inputs(batches, model):
        images += len(inputs)
        original: Outputs = ()
        for item, outputs in changed_outputs(model, "only_int8", (UNCHANGED, *layers), inputs):
            if item == UNCHANGED:
                original = outputs
                continue
            moments[item].add(original, outputs)
            _demand_finite(item, moments[item], original)
    demand_images(images)
    return {layer: sums.similarities() for layer, sums in moments.items()}


def _demand_finite(layer: LayerId, moments: OutputMoments, original: tuple[Tensor, ...]) -> None:
    if moments.finite:
        return
    already = not all(bool(output.isfinite().all()) for output in original)
    raise QuantizationError(
        "the model's output is not finite" + ("" if already else f" once {layer} is quantized"),
        found="NaN or infinite values",
        fix="start from another checkpoint" if already else f"keep {layer} in float",
    )
