"""Images and data sets in every form that users have them in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from repq.errors import DataError
from repq.files import scratch_folder
from repq.log import Log, quiet
from repq.printable import printable
from repq.progress import Progress, silent

if TYPE_CHECKING:
    from repq.data import DetectionDataset, ImageRecord
    from repq.recipe import CalibrationConfig

Image = str | Path | NDArray[np.uint8]
"""A file, or an RGB array (h, w, 3) uint8."""

Images = Union[Image, "Sequence[Image]", "DetectionDataset"]
"""A folder, a list file (.txt), a data.yaml or COCO .json, an image, a list of images, or an opened data set."""

_DATA_SUFFIXES = (".yaml", ".yml", ".json")


def read_rgb(image: Image) -> NDArray[np.uint8]:
    """One image as RGB (h, w, 3) uint8 in one piece of memory.

    Files are turned as their EXIF orientation says, grey ones get three equal channels, 16-bit ones lose their low
    byte, an alpha channel is dropped.

    Raises:
        DataError: the file cannot be read, or the array has another type or shape.
    """
    from repq.data import read_image

    if isinstance(image, (str, Path)):
        return read_image(Path(image))
    if not isinstance(image, np.ndarray):
        raise DataError(
            "this is no image", found=f"a value of type {type(image).__name__}",
            fix="give a path, or an RGB array (h, w, 3) uint8, such as numpy.asarray(picture.convert('RGB'))",
        )  # fmt: skip
    if image.dtype != np.uint8:
        raise DataError(
            "an image array holds bytes", found=f"an array of {image.dtype}", fix="convert it to uint8 in 0..255"
        )
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(
            "an image array has the shape (h, w, 3), with red first", found=f"the shape {image.shape}",
            fix="repeat a grey channel three times, leave alpha out, and give several images as a list",
        )  # fmt: skip
    return np.ascontiguousarray(image)


def listed_images(images: Any) -> list[Any]:
    """Images as a list: one that is given alone, or each of several, whatever holds them."""
    if isinstance(images, (str, Path, np.ndarray)) or not isinstance(images, Iterable):
        return [images]
    return list(images)


@contextmanager
def as_dataset(
    images: Images,
    split: str = "train",
    *,
    drawing: CalibrationConfig,
    names: tuple[str, ...] = (),
    log: Log = quiet,
) -> Iterator[DetectionDataset]:
    """Images of any form as a data set; without labels, unless they come as one.

    Of a folder or list file those images are kept that ``drawing`` draws, as from a data set; a list is taken whole.
    Arrays are kept as files in a temporary folder meanwhile.

    Args:
        split: of a data.yaml or COCO .json.
        names: the classes, for images without labels.

    Raises:
        DataError: there are no images, or one cannot be read.
    """
    from repq.data import DetectionDataset, calibration_set

    if isinstance(images, DetectionDataset):
        yield images
        return
    place = _place(images)
    if place is not None and place.suffix.lower() in _DATA_SUFFIXES:
        yield open_data(place, split, log)
    elif place is not None and is_unlabelled(place):
        whole = _unlabelled(place, split, names)
        yield whole.subset(_measured(calibration_set(whole, drawing), str(place)))
    else:
        with scratch_folder() as folder:
            records = [_as_record(image, number, folder) for number, image in enumerate(listed_images(images))]
            yield DetectionDataset(folder, split, names, tuple(_measured(records, "the list")))


def is_unlabelled(data: Images) -> bool:
    """Whether it is a folder or list file (.txt) of images."""
    place = _place(data)
    return place is not None and (place.is_dir() or place.suffix.lower() == ".txt")


def _place(images: Images) -> Path | None:
    """The path that is given; None: images themselves are."""
    if isinstance(images, str) and not images:
        raise DataError("a path is empty", fix="give a file or folder; the working folder is '.'")
    return Path(images) if isinstance(images, (str, Path)) else None


def _unlabelled(place: Path, split: str, names: tuple[str, ...] = ()) -> DetectionDataset:
    """The images of a folder or list file; their sizes are not known yet."""
    from repq.data import DetectionDataset, ImageRecord
    from repq.data.image_files import find_images, name_below

    root = place if place.is_dir() else place.parent
    found = sorted(find_images((place,), root).paths)
    if not found:
        raise DataError(f"there are no images in {printable(place)}", fix="give at least one image")
    records = (ImageRecord(name_below(path, root), path, 0, 0) for path in found)
    return DetectionDataset(root, split, names, tuple(records))


def with_sizes(dataset: DetectionDataset) -> DetectionDataset:
    """The data set with the sizes of all images, which training needs.

    Raises:
        DataError: an image cannot be read.
    """
    if all(record.width for record in dataset.records):
        return dataset
    return dataset.subset(_measured(dataset.records, str(dataset.root)))


def open_data(data: Images, split: str, log: Log = quiet, progress: Progress = silent) -> DetectionDataset:
    """A split of a data.yaml or COCO .json; says what had to be left out or was taken in another way.

    A folder or list file has no labels, no class names and no splits: all of it is the split.

    Raises:
        DataError: it cannot be read.
    """
    from repq.data import DetectionDataset, load_dataset

    if isinstance(data, DetectionDataset):
        return data
    if not isinstance(data, (str, Path)):
        raise DataError("this needs a labelled data set", found="images alone", fix="give a data.yaml or a COCO .json")
    if is_unlabelled(data):
        if (described := Path(data) / "data.yaml").is_file():
            log(f"{printable(data)}: all its images, without labels; {printable(described)} has labels and splits")
        return _unlabelled(Path(data), split)
    dataset = load_dataset(Path(data), split, progress=progress)
    for line in dataset.problems.lines():
        log(f"{printable(data)} {printable(split)}: {line}")
    return dataset


def _as_record(image: Image, number: int, folder: Path) -> ImageRecord:
    """Names are numbers, so that a list of files and the list of their arrays are the same data."""
    import cv2

    from repq.data import ImageRecord

    name = f"{number:06d}"
    if isinstance(image, (str, Path)):
        return ImageRecord(name, Path(image), 0, 0)
    path = folder / f"{name}.png"
    cv2.imwrite(str(path), read_rgb(image)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return ImageRecord(name, path, 0, 0)


def _measured(records: Sequence[ImageRecord], source: str) -> list[ImageRecord]:
    """The records with their images' sizes, which training and AP need."""
    from repq.concurrency import prefetch
    from repq.data import image_size

    if not records:
        raise DataError(f"there are no images in {source}", fix="give at least one image")
    sizes = prefetch(lambda record: image_size(record.file), records)
    return [replace(record, width=width, height=height) for record, (width, height) in zip(records, sizes, strict=True)]
