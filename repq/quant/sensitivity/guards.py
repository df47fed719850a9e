"""What a measurement refuses, and what it warns of."""

from __future__ import annotations

from collections.abc import Mapping

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.quant.similarity import ErrorSums


def demand_images(count: int) -> None:
    """Refuse to measure on nothing.

    Raises:
        QuantizationError: there are no images.
    """
    if not count:
        raise QuantizationError(
            "there is nothing to measure the layers on", found="no images", fix="give at least one image"
        )


def demand_finite(layer: LayerId, sums: ErrorSums) -> None:
    """Refuse figures of a layer whose output held NaN or infinity.

    Raises:
        QuantizationError: the sums of the layer are not finite; it is named.
    """
    if not sums.finite:
        raise QuantizationError(
            f"the output of {layer} is not finite",
            found="NaN or infinite values",
            fix="look for the layer that makes them in the float model; start from another checkpoint",
        )


def silent_layers(signals: Mapping[str, float]) -> tuple[str, ...]:
    """A note for every layer whose output had no power (sum of squares): nothing can be said of it."""
    return tuple(
        f"{layer}: its output was zero on all images; its figures mean nothing"
        for layer, signal in signals.items()
        if signal == 0
    )
