"""What is refused, or said, before images are measured or trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from repq.amounts import counted
from repq.data.dataset import DetectionDataset, ImageRecord, image_hashes
from repq.errors import DataError, reason
from repq.log import Log
from repq.printable import printable


def demand_objects(dataset: DetectionDataset, purpose: str = "AP cannot be measured") -> None:
    """Refuse images of which none has a labelled object.

    Args:
        purpose: what cannot be done with them, as the beginning of a sentence.

    Raises:
        DataError: no image has a labelled object: AP is undefined, and there is nothing to learn.
    """
    if not any(len(record.labels) for record in dataset.records):
        said = dataset.problems.lines()
        raise DataError(
            f"{purpose} on these images",
            found=f"{counted(len(dataset), 'image')} of the split {dataset.split!r} without a labelled object"
            + "".join(f"; {line}" for line in said),
            fix="give labelled images; check where the label files lie, and that they are not empty",
        )


def overlap_note(
    deciding: Mapping[str, str], evaluation: Mapping[str, str], use: str = "settings are chosen on"
) -> str | None:
    """A warning if images that something is learned from (name to hash) are evaluated on as well, else None.

    Args:
        use: what is done with the images of ``deciding``.
    """
    seen = set(evaluation.values())
    shared = [name for name, digest in deciding.items() if digest in seen]
    if not shared:
        return None
    some = f"{len(shared)} of {counted(len(deciding), 'image')} that {use}"
    also = f"{'is' if len(shared) == 1 else 'are'} evaluated on too, such as {printable(shared[0])}"
    return f"{some} {also}: the accuracy will look better than it is"


def warn_of_overlap(
    deciding: Sequence[ImageRecord],
    evaluation: Sequence[ImageRecord],
    log: Log,
    use: str = "settings are chosen on",
) -> None:
    """Say if images that something is learned from are evaluated on as well, whatever their names and places.

    Files are compared by their content; only those of equal sizes are read.

    Raises:
        DataError: an image can no longer be read.
    """
    sizes = [[_size(record.path) for record in records] for records in (deciding, evaluation)]
    alike = set(sizes[0]) & set(sizes[1])
    own, other = (
        image_hashes([record for record, size in zip(records, known, strict=True) if size in alike])
        for records, known in zip((deciding, evaluation), sizes, strict=True)
    )
    note = overlap_note({record.name: own.get(record.name, "") for record in deciding}, other, use)
    if note is not None:
        log(note)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the image {path}", found=reason(error)) from None
