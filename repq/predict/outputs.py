"""What is written of predictions: JSON, YOLO labels, COCO annotations, images and videos with boxes.

Each output takes one prediction at a time and holds no more than it must, so that a video may be long.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from repq.errors import RepqError
from repq.reading import whole
from repq.report.boxes import encode

Image = NDArray[np.uint8]
Boxes = NDArray[np.float32]

KIND = "repq predictions"
FORMAT = 1
PREDICTIONS, COCO, LABELS, DRAWN = "predictions.json", "coco.json", "labels", "drawn"
OWN = (PREDICTIONS, COCO, LABELS, DRAWN)
_DRAWN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Prediction:
    """One image after the models have seen it.

    Attributes:
        name: of the image, with ``/`` between folders.
        size: its height and width in pixels.
        boxes: (k, 6) x1, y1, x2, y2, score, class in its pixels, of each model.
        lost, new: rows of the first model's boxes that the second has not, and of the second's that the first has not.
        drawn: a file's bytes, or a frame (BGR) of a video; None: nothing is drawn.
    """

    name: str
    size: tuple[int, int]
    boxes: tuple[Boxes, ...]
    lost: tuple[int, ...] = ()
    new: tuple[int, ...] = ()
    drawn: bytes | Image | None = None


class Output(Protocol):
    """A file or folder that is being written."""

    def add(self, found: Prediction) -> None:
        """Write one prediction."""

    def close(self) -> None:
        """Write what is left."""


class JsonFile:
    """``predictions.json``: what is known beside, then the images, one a line, then those that could not be read."""

    def __init__(self, path: Path, about: Mapping[str, Any], names: Sequence[str]) -> None:
        self._file, self._names, self._first = _opened(path), names, True
        head = json.dumps({"kind": KIND, "format": FORMAT, **about})
        self._file.write(f'{head[:-1]}, "images": [')
        self.skipped: list[dict[str, str]] = []

    def add(self, found: Prediction) -> None:
        entry: dict[str, Any] = {"image": found.name, "height": found.size[0], "width": found.size[1]}
        for key, boxes in zip(("boxes", "other"), found.boxes, strict=False):
            entry[key] = [self._box(row) for row in boxes.tolist()]
        if len(found.boxes) > 1:
            entry |= {"lost": found.lost, "new": found.new}
        self._file.write(("\n" if self._first else ",\n") + json.dumps(entry))
        self._first = False

    def _box(self, row: list[float]) -> dict[str, Any]:
        *corners, score, label = row
        box = [round(value, 2) for value in corners]
        return {"box": box, "score": round(score, 5), "class": int(label), "name": named(self._names, int(label))}

    def close(self) -> None:
        self._file.write(f'\n], "skipped": {json.dumps(self.skipped)}}}\n')
        self._file.close()


class YoloFiles:
    """A label file an image: class, centre x, y, width and height as fractions of the image, and perhaps the score."""

    def __init__(self, folder: Path, *, scores: bool) -> None:
        self._folder, self._scores, self._names = folder, scores, _FileNames()

    def add(self, found: Prediction) -> None:
        stem = found.name.rpartition(".")[0] if "." in Path(found.name).name else found.name
        name = self._names.free(f"{stem}.txt", f"{found.name}.txt")  # the latter: a.png beside a.jpg
        height, width = found.size
        lines = []
        for x1, y1, x2, y2, score, label in found.boxes[0].tolist():
            values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
            values += [score] if self._scores else []
            lines.append(" ".join([str(int(label)), *(f"{value:.6f}" for value in values)]) + "\n")
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")

    def close(self) -> None:
        pass


class CocoFile:
    """A COCO data set whose annotations have a score, as ``loadRes`` of pycocotools takes them.

    An image whose name is a number, as in COCO itself, has that as its id, unless another image has it. Boxes and
    scores have all digits: AP of them is AP of what the model found.
    """

    def __init__(self, path: Path, names: Sequence[str], classes: int) -> None:
        self._file, self._images, self._count = _opened(path), list[dict[str, Any]](), 0
        self._taken: set[int] = set()
        self._free = itertools.count(1)
        kinds = [{"id": index, "name": named(names, index)} for index in range(classes)]
        self._file.write(f'{{"categories": {json.dumps(kinds)},\n"annotations": [')

    def add(self, found: Prediction) -> None:
        stem, height, width = Path(found.name).stem, *found.size
        own = None if "/" in found.name else whole(stem, digits=100)
        image = next(self._free) if own is None else own
        while image in self._taken:
            image = next(self._free)
        self._taken.add(image)
        self._images.append({"id": image, "file_name": found.name, "height": height, "width": width})
        for x1, y1, x2, y2, score, label in found.boxes[0].tolist():
            self._count += 1
            box = [_exact(value) for value in (x1, y1, x2 - x1, y2 - y1)]
            entry = {"id": self._count, "image_id": image, "category_id": int(label), "bbox": box,
                     "area": round(box[2] * box[3], 2), "iscrowd": 0, "score": _exact(score)}  # fmt: skip
            self._file.write(("\n" if self._count == 1 else ",\n") + json.dumps(entry))

    def close(self) -> None:
        self._file.write(f'\n],\n"images": {json.dumps(self._images)}}}\n')
        self._file.close()


class DrawnImages:
    """A file an image, of the image's own name and form where OpenCV writes it, else as JPEG."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._names = folder, _FileNames()

    def add(self, found: Prediction) -> None:
        assert isinstance(found.drawn, bytes)
        path = self._folder / self._names.free(drawn_name(found.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found.drawn)

    def close(self) -> None:
        pass


class DrawnVideo:
    """A video of the frames with their boxes: MPEG-4, or Motion JPEG where OpenCV lacks it."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._writer: Any = None
        self._size, self._frames = (0, 0), 0

    def add(self, found: Prediction) -> None:
        import cv2

        assert isinstance(found.drawn, np.ndarray)
        height, width = found.drawn.shape[:2]
        if self._writer is None:
            self._size = (width, height)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._open()
        frame = found.drawn if (width, height) == self._size else cv2.resize(found.drawn, self._size)
        self._writer.write(frame)
        self._frames += 1

    def _open(self) -> Any:
        import cv2

        for code, suffix in (("mp4v", ".mp4"), ("MJPG", ".avi")):
            path = self._path.with_name(f"{self._path.name}{suffix}")
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), self._fps, self._size)
            if writer.isOpened():
                self._path = path
                return writer
        raise RepqError(
            "the video with the boxes cannot be written", found="neither MPEG-4 nor Motion JPEG in this OpenCV",
            fix="leave the drawing away (--no-draw), or install opencv-python-headless from PyPI",
        )  # fmt: skip

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.release()
        kept = _frames_in(self._path)
        if kept < self._frames:  # OpenCV says nothing of a full disk
            raise RepqError(
                "the video with the boxes cannot be written",
                found=f"{kept} of {self._frames} frames in {self._path.name}",
                fix="free some space, or leave the drawing away (--no-draw)",
            )


class _FileNames:
    """Names of files in one folder, none of them twice: ``a.gif`` and ``a.gif.jpg`` are both drawn as JPEG."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def free(self, *wanted: str) -> str:
        """The first of the names that is free, else the last one with a number before its suffix."""
        stem, dot, suffix = wanted[-1].rpartition(".")
        numbered = (f"{stem}-{number}{dot}{suffix}" for number in itertools.count(2))
        name = next(name for name in itertools.chain(wanted, numbered) if name not in self._taken)
        self._taken.add(name)
        return name


def _exact(value: float) -> float:
    """A float32 in the digits that tell it from its neighbours."""
    return float(f"{value:.9g}")


def _frames_in(path: Path) -> int:
    """How many frames of a video can be read; as its head says, which is written last."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        return max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) if capture.isOpened() and capture.grab() else 0
    finally:
        capture.release()


def drawn_name(name: str) -> str:
    """The file that an image with its boxes is written to."""
    return name if Path(name).suffix.lower() in _DRAWN_SUFFIXES else f"{name}.jpg"


def as_file(canvas: Image, name: str) -> bytes:
    """A drawn image (BGR) as the bytes of its file."""
    import cv2

    suffix = Path(drawn_name(name)).suffix.lower()
    return encode(canvas, suffix, [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix in (".jpg", ".jpeg") else ())


def named(names: Sequence[str], index: int) -> str:
    """A class's name, or its number."""
    return names[index] if index < len(names) else str(index)


def is_own(folder: Path) -> bool:
    """Whether a folder holds predictions that repq wrote, and nothing else."""
    try:
        with (folder / PREDICTIONS).open(encoding="utf-8") as file:
            head = file.read(64)
        return f'"kind": "{KIND}"' in head and {entry.name for entry in folder.iterdir()} <= set(OWN)
    except (OSError, UnicodeDecodeError):
        return False


def _opened(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", newline="\n")
