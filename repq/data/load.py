"""Loading a split: list its images, check every image and label once, keep what is usable and say what is not."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from repq.amounts import counted
from repq.concurrency import prefetch
from repq.data import labels_cache
from repq.data.coco import find_image, read_annotations, read_coco, size_problem
from repq.data.data_yaml import SplitSource, read_source
from repq.data.dataset import Annotation, DetectionDataset, ImageRecord, Problems
from repq.data.image_files import find_images, label_paths, name_below, place
from repq.data.images import decoder, image_size
from repq.data.yolo import read_labels
from repq.errors import DataError
from repq.machine.cpu import cpu_cores
from repq.printable import first_names, printable
from repq.progress import Progress, silent

Item = TypeVar("Item")

FORMS = {
    "polygon": (
        "1 label is a polygon; its bounding box is taken",
        "{} labels are polygons; their bounding boxes are taken",
    ),
    "doubtful": (
        "the polygon may be a box with key points; if it is, say so in the data.yaml: kpt_shape: [POINTS, VALUES]",
        "all of the polygons may be boxes with key points; if they are, say so in the data.yaml: kpt_shape: "
        "[POINTS, VALUES]",
    ),
    "keypoints": ("1 label has key points; its box is taken", "{} labels have key points; their boxes are taken"),
    "outside": (
        "1 box reaches beyond its image; check that it is written as centre, width and height",
        "{} boxes reach beyond their image; check that they are written as centre, width and height",
    ),
    "cut": (
        "1 box reaches beyond its image and is cut; check that it is written as x, y, width and height",
        "{} boxes reach beyond their image and are cut; check that they are written as x, y, width and height",
    ),
    "marked": (
        "1 annotation is marked as ignored or difficult; as in pycocotools it counts as any other",
        "{} annotations are marked as ignored or difficult; as in pycocotools they count as any other",
    ),
    "repeated": (
        "1 annotation repeats an earlier one; as in pycocotools it counts",
        "{} annotations repeat an earlier one; as in pycocotools each counts",
    ),
    "unlabelled": (
        "1 of {1} has no label file; it is taken as an image without objects",
        "{} of {} have no label file; they are taken as images without objects",
    ),
}
"""What is said of labels that are used, but not as plain boxes of an own label file: of one, of many.

`Annotation.counts` has how many there are.
"""

_TOGETHER = 32  # images that are handed to a thread at a time; to hand over each alone costs as much as a small image


@dataclass(frozen=True)
class _Listing:
    """A split before its images are opened.

    Attributes:
        images: name to path.
        files: everything whose change makes a new check necessary.
        annotate: reads one image's annotation, given its name and true size; a text is why the image is unusable.
    """

    names: tuple[str, ...]
    images: dict[str, str]
    files: tuple[Path | str, ...]
    annotate: Callable[[str, int, int], Annotation | str]
    problems: Problems


def load_dataset(path: Path, split: str, *, progress: Progress = silent) -> DetectionDataset:
    """Load one split of a ``data.yaml`` (see `repq.data.data_yaml` for its form) or of a COCO json.

    Every image is decoded and every label checked once; the result is cached until a file changes. What is broken is
    left out and listed in ``problems``. An image whose labels are all broken is left out as well; an image without a
    label file, or with an empty one, is an image without objects. What is used in another way than it is written, and
    what lies among the images and is not read, is said in ``problems.notes``.

    Raises:
        DataError: the description makes no sense, or no image is usable, or (YOLO form) no image has a label file.
    """
    source = read_source(path, split)
    listing = _listing_of(path, source)
    shown = f"the split {printable(split)!r} of {printable(path)}"
    if not listing.images:
        found = "; ".join((f"none in {_shown(source)}", *listing.problems.notes))
        raise DataError(f"{shown} has no images", found=found, fix="check the paths in the data.yaml")
    ordered = sorted(listing.images)
    cache = labels_cache.cache_path(path, split)
    key = labels_cache.files_key(
        (*(listing.images[name] for name in ordered), *listing.files),
        (*listing.names, "|", str(source.keypoints), *listing.problems.labels, "|", *decoder()),
    )
    checked = labels_cache.load(cache, key, listing.images)
    if checked is None:
        checked = _check(listing, ordered, progress)
        if checked[0]:
            labels_cache.save(cache, key, *checked)
    records, problems = checked
    problems = listing.problems + problems
    if not records:
        raise DataError(f"{shown} has nothing usable", found=str(problems), fix="correct the files named")
    if not any(len(record.labels) for record in records):
        problems += Problems(notes=(f"none of the {counted(len(records), 'image')} has a labelled object",))
    return DetectionDataset(source.root, split, listing.names, records, problems)


def listed_images(path: Path, split: str) -> tuple[ImageRecord, ...]:
    """The image files of a split as they are listed: names and places, nothing opened, no labels.

    Raises:
        DataError: the description makes no sense.
    """
    images = _listing_of(path, read_source(path, split)).images
    there = (name for name in sorted(images) if os.path.isfile(images[name]))  # noqa: PTH113 (there are many)
    return tuple(ImageRecord(name, images[name], 0, 0) for name in there)


def _listing_of(path: Path, source: SplitSource) -> _Listing:
    return _coco_listing(source) if source.annotations else _yolo_listing(path, source)


def _shown(source: SplitSource) -> str:
    return ", ".join(map(printable, (source.annotations,) if source.annotations else source.images))


def _twice(names: list[str]) -> tuple[str, ...]:
    return tuple(f"{printable(name)}: listed more than once" for name, count in Counter(names).items() if count > 1)


def _shared(label_files: Mapping[str, str]) -> tuple[str, ...]:
    """What is said of images with one label file in common, such as those of a.jpg and a.png, by name of the image."""
    uses = Counter(label_files.values())
    sharing = [name for name, file in label_files.items() if uses[file] > 1 and os.path.lexists(file)]
    return (f"{len(sharing)} images share a label file with another: {first_names(sharing)}",) if sharing else ()


def _yolo_listing(path: Path, source: SplitSource) -> _Listing:
    names = source.names
    if names is None:
        raise DataError(
            f"{printable(path)} names no classes", found="neither 'names' nor 'nc'", fix="add 'names: [first, …]'"
        )
    files = find_images(source.images, source.root)
    found = sorted(name_below(image, source.root) for image in files.files)
    images = {name: place(source.root, name) for name in found}
    label_files = dict(zip(images, label_paths(images.values()), strict=True))
    if images and not any(map(os.path.lexists, label_files.values())):
        if not any(map(os.path.lexists, images.values())):
            raise DataError(
                f"no image of the split {printable(source.split)!r} of {printable(path)} is there",
                found=f"nothing at {printable(next(iter(images.values())))}, for instance",
                fix="write one path a line, without quotes, relative to the list or to the root",
            )
        raise DataError(
            f"no image of the split {printable(source.split)!r} of {printable(path)} has a label file",
            found=f"nothing at {printable(next(iter(label_files.values())))}, for instance",
            fix="put the labels of .../images/NAME.jpg at .../labels/NAME.txt (empty for an image without objects)",
        )

    def annotate(name: str, width: int, height: int) -> Annotation | str:
        return read_labels(label_files[name], len(names), width, height, source.keypoints)

    problems = Problems(_twice(found), notes=(*source.notes, *files.notes(), *_shared(label_files)))
    return _Listing(names, images, tuple(label_files.values()), annotate, problems)


def _coco_listing(source: SplitSource) -> _Listing:
    assert source.annotations is not None
    for folder in source.images:
        if not os.path.isdir(folder):  # noqa: PTH112
            raise DataError(
                f"{printable(folder)} is no image folder",
                fix="with a COCO json name the folder that its file names are relative to",
            )
    coco = read_coco(source.annotations, source.names)
    found = [(name_below(find_image(file_name, source.images), source.root), file_name) for file_name in coco.images]
    images = {name: place(source.root, name) for name, _ in found}
    file_names: dict[str, list[str]] = defaultdict(list)  # a.jpg and ./a.jpg are one image
    for name, file_name in found:
        file_names[name].append(file_name)

    def annotate(name: str, width: int, height: int) -> Annotation | str:
        entries = file_names[name]
        problems = filter(None, (size_problem(coco.images[entry], width, height) for entry in entries))
        annotations = [annotation for entry in entries for annotation in coco.annotations.get(entry, ())]
        return next(problems, None) or read_annotations(annotations, coco.classes, width, height)

    problems = Problems(_twice([name for name, _ in found]), notes=source.notes) + coco.problems
    return _Listing(coco.names, images, (source.annotations,), annotate, problems)


def _check(listing: _Listing, ordered: list[str], progress: Progress) -> tuple[tuple[ImageRecord, ...], Problems]:
    def check(name: str) -> tuple[ImageRecord | str, Annotation | None]:
        path = listing.images[name]
        try:
            width, height = image_size(path)
        except DataError as error:
            return f"{printable(name)}: {error.found or error.what}", None
        annotation = listing.annotate(name, width, height)
        if isinstance(annotation, str):
            return f"{printable(name)}: {annotation}", None
        if annotation.is_spoilt:
            return f"{printable(name)}: all its labels are broken", annotation
        return ImageRecord(
            name, path, width, height, annotation.labels, annotation.areas, annotation.crowds
        ), annotation

    records: list[ImageRecord] = []
    images: list[str] = []
    labels: list[str] = []
    counts: Counter[str] = Counter()
    checked = progress(_each(check, ordered), total=len(ordered), label="checking images")
    for name, (outcome, annotation) in zip(ordered, checked, strict=True):
        if annotation is not None:
            labels += [f"{printable(name)}, {problem}" for problem in annotation.problems]
            counts.update(annotation.counts)
        if isinstance(outcome, str):
            images.append(outcome)
        else:
            records.append(outcome)
    if counts["doubtful"] < counts["polygon"]:
        del counts["doubtful"]
    notes = tuple(
        texts[-1 if counts[form] > 1 else 0].format(counts[form], counted(len(ordered), "image"))
        for form, texts in FORMS.items()
        if counts[form]
    )
    return tuple(records), Problems(tuple(images), tuple(labels), notes)


def _each(function: Callable[[str], Item], names: Sequence[str]) -> Iterator[Item]:
    """What ``function`` gives for each name, in order, by threads of which each takes some names at a time."""
    parts = (names[start : start + _TOGETHER] for start in range(0, len(names), _TOGETHER))
    workers = min(8, cpu_cores())
    for found in prefetch(lambda part: list(map(function, part)), parts, workers=workers, ahead=2 * workers):
        yield from found
