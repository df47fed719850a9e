"""Where images come from: files, folders, globs and lists of them, videos, cameras and streams."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from repq.api.images import read_rgb
from repq.data import read_image
from repq.data.image_files import find_images, joined, name_below
from repq.data.images import IMAGE_SUFFIXES
from repq.errors import DataError
from repq.log import Log, quiet
from repq.printable import printable
from repq.reading import whole

Image = NDArray[np.uint8]
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".ogv", ".ts", ".vob", ".webm", ".wmv",
))  # fmt: skip
FORMS = "images, folders, globs, lists of images (.txt), videos, camera numbers such as 0, or addresses of streams"


@dataclass(frozen=True)
class Pending:
    """An image that is still to be decoded: ``read`` gives it, RGB (h, w, 3), or raises a `DataError`."""

    name: str
    read: Callable[[], Image]


@dataclass(frozen=True)
class Source:
    """Images that belong together.

    Attributes:
        name: of a video or camera; empty for image files.
        kind: ``images``; ``video``: frames that follow one another and have an end; ``camera``: without one.
        frames: the images, in order; to be gone through once.
        total: how many there are, where that is known.
        fps: frames in a second.
        paths: files that are read.
    """

    name: str
    kind: Literal["images", "video", "camera"]
    frames: Iterator[Pending]
    total: int | None = None
    fps: float = 25.0
    paths: tuple[Path, ...] = ()


def open_sources(places: Sequence[str], log: Log = quiet) -> tuple[Source, ...]:
    """Open what a user names; all image files are one source, and each video, camera or stream is one.

    Raises:
        DataError: nothing is there, a folder has no images, or a video, camera or stream cannot be opened.
    """
    images: list[Path] = []
    streams: list[Source] = []
    for place in places:
        found = _camera(place)
        if found is not None:
            streams.append(found)
            continue
        for path in _files(place, log):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                streams.append(_open_video(str(path), path.stem, "video", (path,)))
            else:
                images.append(path)
    sources = [_of_images(images, places)] if images else []
    taken: set[str] = set()
    for source in streams:
        name = next(name for name in _numbered(source.name) if name not in taken)
        taken.add(name)
        sources.append(replace(source, name=name, frames=_named_below(name, source.frames)))
    return tuple(sources)


def open_images(images: Sequence[str | Path | Image], log: Log = quiet) -> tuple[Source, ...]:
    """Open places, and arrays among them, in order.

    Raises:
        DataError: as `open_sources`; or an array is no RGB image.
    """
    sources: list[Source] = []
    for number, image in enumerate(images):
        if isinstance(image, (str, Path)):
            sources += open_sources([str(image)], log)
        else:
            decoded = Pending(str(number), partial(np.asarray, read_rgb(image)))
            sources.append(Source("", "images", iter([decoded]), 1))
    return tuple(sources)


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in range(2, 1 << 31))


def _named_below(name: str, frames: Iterator[Pending]) -> Iterator[Pending]:
    for frame in frames:
        yield replace(frame, name=f"{name}/{frame.name}")


# --- files -----------------------------------------------------------------------------------------------------------


def _files(place: str, log: Log) -> list[Path]:
    """Image and video files that a path or pattern stands for."""
    if not place:
        raise DataError("a SOURCE is empty", fix=f"give {FORMS}")
    path = Path(place)
    if path.is_dir() or path.suffix.lower() == ".txt":
        found = find_images((path,), path if path.is_dir() else path.parent)
        for note in found.notes():
            log(f"{printable(place)}: {note}")
        if not found.paths:
            raise DataError(f"there are no images in {printable(place)}", found="; ".join(found.notes()) or "none",
                            fix="give a folder with images; a video is named by its file")  # fmt: skip
        return sorted(found.paths)
    if os.path.lexists(path):
        if not path.is_file():
            raise DataError(f"{printable(place)} is no image and no video", fix=f"give {FORMS}")
        if path.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            suffix = path.suffix or "(none)"
            raise DataError(
                f"{printable(place)} is no image and no video", found=f"the suffix {suffix}", fix=f"give {FORMS}"
            )
        return [path]
    if any(letter in place for letter in "*?["):
        matches = [Path(match) for match in sorted(glob.glob(place, recursive=True))]  # noqa: PTH207 (takes whole paths)
        found_files = [
            one for one in matches if one.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and one.is_file()
        ]
        if found_files:
            return found_files
        raise DataError(f"no image or video matches {printable(place)}", found=f"{len(matches)} other files",
                        fix="put the pattern in quotes, and ** for folders below")  # fmt: skip
    raise DataError(f"there is nothing at {printable(place)}", fix=f"give {FORMS}")


def _of_images(paths: Sequence[Path], places: Sequence[str]) -> Source:
    """Named by their path below the one folder that was given, or below the folder that they have in common.

    A file that several places lead to is there once; one that is reached by a link counts as another.
    """
    only = Path(places[0]) if len(places) == 1 else None
    if only is not None and only.is_dir():
        root = only
    else:
        paths = list(dict.fromkeys(joined(Path.cwd(), path) for path in paths))
        root = Path(os.path.commonpath([path.parent for path in paths]))
    frames = (Pending(name_below(path, root), partial(read_image, path)) for path in paths)
    return Source("", "images", frames, len(paths), paths=tuple(paths))


# --- videos ----------------------------------------------------------------------------------------------------------


def _camera(place: str) -> Source | None:
    """The camera or stream that a text stands for, if it does."""
    if "://" in place:
        return _open_video(place, "stream", "camera")
    with suppress(OSError, ValueError):
        if stat.S_ISCHR(Path(place).stat().st_mode) and Path(place).name.startswith("video"):
            return _open_video(place, Path(place).name, "camera")
    number = whole(place.removeprefix("camera:"), digits=3)
    if number is not None and not os.path.lexists(place):
        return _open_video(number, f"camera{number}", "camera")
    return None


def _open_video(place: str | int, name: str, kind: Literal["video", "camera"], paths: tuple[Path, ...] = ()) -> Source:
    """Open a video, camera or stream.

    Raises:
        DataError: it cannot be opened.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what it would say is said below
    import cv2

    logging = cv2.utils.logging
    before = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        capture = cv2.VideoCapture(place)
        opened = capture.isOpened()
    except cv2.error:
        opened = False
    finally:
        logging.setLogLevel(before)
    if not opened:
        raise DataError(**_why_closed(place, paths))
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if kind == "video" else 0
    fps = capture.get(cv2.CAP_PROP_FPS)
    return Source(
        name, kind, _frames(capture), total if 0 < total < 1 << 31 else None, fps if 1 <= fps <= 1000 else 25.0,
        paths,
    )  # fmt: skip


def _why_closed(place: str | int, paths: tuple[Path, ...]) -> dict[str, str]:
    shown = printable(place)
    if isinstance(place, int) or place.startswith("/dev/"):
        there = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "no /dev/video*"
        return {"what": f"the camera {shown} does not open", "found": there,
                "fix": "plug it in, close what else uses it, and check who may read the device"}  # fmt: skip
    if not paths:
        return {"what": f"the stream {shown} does not open", "found": "no answer, or none that OpenCV can decode",
                "fix": "check the address, and that it plays elsewhere"}  # fmt: skip
    size = paths[0].stat().st_size
    return {"what": f"the video {shown} does not open",
            "found": f"{size} bytes: damaged, or in a form for which this OpenCV has no codec",
            "fix": "check that it plays, and convert it: ffmpeg -i VIDEO -c:v libx264 out.mp4"}  # fmt: skip


def _frames(capture: Any) -> Iterator[Pending]:
    import cv2

    number = 0
    try:
        while capture.grab():
            try:
                whole, pixels = capture.retrieve()
            except cv2.error:
                whole, pixels = False, None
            yield Pending(f"{number:06d}", partial(_frame, pixels if whole else None))
            number += 1
    finally:
        capture.release()


def _frame(pixels: Image | None) -> Image:
    import cv2

    if pixels is None or pixels.ndim != 3:
        raise DataError("cannot decode a frame", found="damaged data")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
