"""Loading a split: list its images, check every image and label once, keep what is usable and say what is not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from repq.data import labels_cache
from repq.data.annotation import Annotation
from repq.data.coco import find_image, read_annotations, read_coco, size_problem
from repq.data.data_yaml import SplitSource, read_source
from repq.data.dataset import DetectionDataset, ImageRecord, Problems
from repq.data.images import read_image
from repq.data.loader import prefetch
from repq.data.yolo import label_path, list_images, read_labels
from repq.errors import DataError
from repq.progress import Progress, silent


@dataclass(frozen=True)
class _Listing:
    """A split before its images are opened.

    Attributes:
        images: name to path.
        files: everything whose change makes a new check necessary.
        annotate: reads one image's annotation, given its name and true size; a text is why the image is unusable.
    """

    names: tuple[str, ...]
    images: dict[str, Path]
    files: tuple[Path, ...]
    annotate: Callable[[str, int, int], Annotation | str]
    problems: Problems


def load_dataset(path: Path, split: str, *, progress: Progress = silent) -> DetectionDataset:
    """Load one split of a ``data.yaml`` (see `repq.data.data_yaml` for its form) or of a COCO json.

    Every image is decoded and every label checked once; the result is cached until a file changes. What is broken is
    left out and listed in ``problems``. An image whose labels are all broken is left out as well; an image without a
    label file, or with an empty one, is an image without objects.

    Raises:
        DataError: the description makes no sense, or no image is usable, or (YOLO form) no image has a label file.
    """
    source = read_source(path, split)
    listing = _coco_listing(source) if source.annotations else _yolo_listing(path, source)
    if not listing.images:
        raise DataError(f"the split {split!r} of {path} has no images", found=f"none in {_shown(source)}")
    ordered = sorted(listing.images)
    cache = labels_cache.cache_path(path, split)
    key = labels_cache.files_key(
        (*(listing.images[name] for name in ordered), *listing.files), (*listing.names, "|", *listing.problems.labels)
    )
    checked = labels_cache.load(cache, key, source.root)
    if checked is None:
        checked = _check(listing, ordered, progress)
        if checked[0]:
            labels_cache.save(cache, key, *checked)
    records, problems = checked
    problems = Problems(listing.problems.images + problems.images, listing.problems.labels + problems.labels)
    if not records:
        raise DataError(
            f"the split {split!r} of {path} has nothing usable", found=str(problems), fix="mend the files named"
        )
    return DetectionDataset(source.root, split, listing.names, records, problems)


def _shown(source: SplitSource) -> str:
    return ", ".join(map(str, (source.annotations,) if source.annotations else source.images))


def _name(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _twice(names: list[str]) -> Problems:
    return Problems(tuple(f"{name}: listed more than once" for name, count in Counter(names).items() if count > 1))


def _yolo_listing(path: Path, source: SplitSource) -> _Listing:
    names = source.names
    if names is None:
        raise DataError(f"{path} names no classes", found="neither 'names' nor 'nc'", fix="add 'names: [first, …]'")
    found = sorted(_name(image, source.root) for image in list_images(source.images, source.root))
    images = {name: labels_cache.place(source.root, name) for name in found}
    label_files = {name: label_path(image) for name, image in images.items()}
    if images and not any(file.is_file() for file in label_files.values()):
        raise DataError(
            f"no image of the split {source.split!r} of {path} has a label file",
            found=f"nothing at {next(iter(label_files.values()))}, for instance",
            fix="put the labels of .../images/NAME.jpg at .../labels/NAME.txt (empty for an image without objects)",
        )

    def annotate(name: str, width: int, height: int) -> Annotation | str:
        return read_labels(label_files[name], len(names), width, height)

    return _Listing(names, images, tuple(label_files.values()), annotate, _twice(found))


def _coco_listing(source: SplitSource) -> _Listing:
    assert source.annotations is not None
    for folder in source.images:
        if not folder.is_dir():
            raise DataError(
                f"{folder} is no image folder",
                fix="with a COCO json name the folder that its file names are relative to",
            )
    coco = read_coco(source.annotations, source.names)
    found = [(_name(find_image(file_name, source.images), source.root), file_name) for file_name in coco.images]
    images = {name: labels_cache.place(source.root, name) for name, _ in found}
    file_names = dict(found)

    def annotate(name: str, width: int, height: int) -> Annotation | str:
        file_name = file_names[name]
        problem = size_problem(coco.images[file_name], width, height)
        return problem or read_annotations(coco.annotations.get(file_name, ()), coco.classes, width, height)

    twice = _twice([name for name, _ in found])
    return _Listing(coco.names, images, (source.annotations,), annotate, Problems(twice.images, coco.problems))


def _check(listing: _Listing, ordered: list[str], progress: Progress) -> tuple[tuple[ImageRecord, ...], Problems]:
    def check(name: str) -> tuple[ImageRecord | str, tuple[str, ...]]:
        path = listing.images[name]
        try:
            height, width = read_image(path).shape[:2]
        except DataError as error:
            return f"{name}: {error.found or error.what}", ()
        annotation = listing.annotate(name, width, height)
        if isinstance(annotation, str):
            return f"{name}: {annotation}", ()
        problems = tuple(f"{name}, {problem}" for problem in annotation.problems)
        if annotation.is_spoilt:
            return f"{name}: all its labels are broken", problems
        record = ImageRecord(name, path, width, height, annotation.labels, annotation.areas, annotation.crowds)
        return record, problems

    records: list[ImageRecord] = []
    images: list[str] = []
    labels: list[str] = []
    checked = prefetch(check, ordered, workers=min(8, os.cpu_count() or 1), ahead=64)
    for outcome, problems in progress(checked, total=len(ordered), label="checking images"):
        labels += problems
        if isinstance(outcome, str):
            images.append(outcome)
        else:
            records.append(outcome)
    return tuple(records), Problems(tuple(images), tuple(labels))
