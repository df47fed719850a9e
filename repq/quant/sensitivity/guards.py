"""What a measurement refuses, and what it warns of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repq.data import ImageRecord
from repq.errors import DataError, QuantizationError
from repq.identity import hash_file
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


def demand_objects(records: Sequence[ImageRecord]) -> None:
    """Refuse to measure AP without labels.

    Raises:
        DataError: no image has a labelled object, so that AP is undefined.
    """
    if not any(len(record.labels) for record in records):
        raise DataError(
            "AP cannot be measured on these images",
            found=f"{len(records)} images without a labelled object",
            fix="give labelled images, or use a measure that needs no labels, such as head.snr",
        )


def silent_layers(signals: Mapping[str, float]) -> tuple[str, ...]:
    """A note for every layer whose output had no power (sum of squares): nothing can be said of it."""
    return tuple(
        f"{layer}: its output was zero on all images; its figures mean nothing"
        for layer, signal in signals.items()
        if signal == 0
    )


def image_hashes(records: Sequence[ImageRecord]) -> dict[str, str]:
    """Name to SHA-256 of every image file.

    Raises:
        DataError: an image can no longer be read.
    """
    hashes = {}
    for record in records:
        try:
            hashes[record.name] = hash_file(record.path)
        except OSError as error:
            raise DataError(f"cannot read the image {record.path}", found=error.strerror or str(error)) from None
    return hashes


def overlap_note(deciding: Mapping[str, str], evaluation: Mapping[str, str]) -> str | None:
    """A warning if images that settings are chosen on (name to hash) are evaluated on as well, else None."""
    seen = set(evaluation.values())
    shared = [name for name, digest in deciding.items() if digest in seen]
    if not shared:
        return None
    return (
        f"{len(shared)} of {len(deciding)} images that settings are chosen on are evaluated on too, such as "
        f"{shared[0]}: the accuracy will look better than it is"
    )
