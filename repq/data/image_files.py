"""Which files belong to a data set, and where the labels of an image lie.

Paths stay as they are written: a linked folder has the name of the link, so that its labels are looked for beside it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repq.data.images import IMAGE_SUFFIXES
from repq.errors import DataError
from repq.printable import first_names, printable
from repq.reading import TEXT_LIMIT, expanded, lines, read_text

_TOOLS_FOLDERS = ("@eaDir", "__MACOSX")  # thumbnails of a file server, and what a Mac puts into archives
_COMPANIONS = frozenset((".cache", ".csv", ".json", ".md", ".npy", ".txt", ".xml", ".yaml", ".yml"))  # of labels


# --- paths -----------------------------------------------------------------------------------------------------------


def below(folder: Path, text: str) -> Path:
    r"""Join a path from a file to a folder as the file system does, without ``..``; links keep their names.

    ``~`` and environment variables are filled in. Backslashes separate folders if nothing has that name as it stands.
    """
    path = joined(folder, expanded(text))
    if "\\" in text and not os.path.lexists(path):
        return joined(folder, expanded(text.replace("\\", "/")))
    return path


def joined(folder: Path, path: Path) -> Path:
    """Join a path to a folder as the file system does, without ``..``; links keep their names."""
    if path.is_absolute():
        folder = Path(path.anchor)
    if ".." not in path.parts:
        return folder / path
    for part in path.parts[1:] if path.is_absolute() else path.parts:
        if part != "..":
            folder = folder / part
        else:  # out of the folder that a link leads to, as the system has it
            folder = Path(os.path.realpath(folder)).parent if os.path.islink(folder) else folder.parent  # noqa: PTH114
    return folder


def folder_of(file: Path) -> Path:
    """The folder that paths in a file are relative to: its own; if the file is a link, the one of what it leads to."""
    return Path(os.path.realpath(file) if os.path.islink(file) else os.path.abspath(file)).parent  # noqa: PTH114, PTH100


def name_below(path: Path | str, root: Path) -> str:
    """The name of an image: its path relative to the root, with ``/`` between folders."""
    start = f"{root}{os.sep}"
    text = str(path)
    relative = text[len(start) :] if text.startswith(start) else os.path.relpath(text, root)
    return relative.replace(os.sep, "/")


def place(root: Path, name: str) -> str:
    """The path of an image from its name, which may lead out of the root (``../other/a.jpg``)."""
    path = os.path.join(root, name)  # noqa: PTH118 (data sets have many)
    return os.path.normpath(path) if ".." in name else path


# --- images ----------------------------------------------------------------------------------------------------------


@dataclass
class FoundImages:
    """Image files of a split, in no particular order, and what was seen beside them and not taken."""

    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)

    @property
    def paths(self) -> list[Path]:
        return [Path(file) for file in self.files]

    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind of thing that was not taken."""
        kinds = ", ".join(
            f"{count} {printable(suffix, 40) or 'without suffix'}" for suffix, count in self.other.items()
        )
        said = (
            (self.hidden, "with a name that begins with a dot, or in such a folder or one of a tool, are not read"),
            (self.again, "lead to a folder that is read already and are not followed"),
            (self.unread, "cannot be read"),
        )
        texts = [f"{_counted(names)} {what}: {first_names(names)}" for names, what in said if names]
        return (*texts, f"beside the images lie files of other kinds, not read: {kinds}") if kinds else tuple(texts)


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} {'entry' if len(names) == 1 else 'entries'}"


def find_images(sources: Sequence[Path], root: Path) -> FoundImages:
    """Return the image files in folders (searched to the bottom, links followed once) and list files.

    Files and folders whose names begin with a dot are not read. A line of a list file is relative to the list file's
    folder, or to ``root`` if it is not found there; what it names is taken whatever its name.

    Raises:
        DataError: a folder or list file does not exist or is neither of the two.
    """
    found = FoundImages()
    for source in sources:
        if os.path.isdir(source):  # noqa: PTH112 (Path's raises on names that are too long)
            _search(source, root, found)
        elif source.suffix.lower() == ".txt" and os.path.isfile(source):  # noqa: PTH113
            found.files += map(str, _read_list(source, root))
        else:
            raise DataError(
                f"{printable(source)} is no image folder and no list file",
                found="another kind of file" if os.path.lexists(source) else "nothing there",
                fix="name a folder, or a .txt file with one image path a line",
            )
    return found


def _search(source: Path, root: Path, found: FoundImages) -> None:
    """Go through a folder: first what lies in it, then what links lead to, each folder once."""
    seen: set[tuple[int, int]] = set()
    waiting: list[str] = [str(source)]
    links: list[str] = []
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                found.again.append(name_below(Path(folder), root))
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            found.unread.append(name_below(Path(folder), root))
            continue
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            is_hidden = entry.name.startswith(".") or entry.name in _TOOLS_FOLDERS
            if _is_dir(entry):
                if is_hidden:
                    found.hidden += [name_below(Path(entry.path), root)]
                else:
                    (links if entry.is_symlink() else waiting).append(entry.path)
            elif is_hidden:
                if suffix in IMAGE_SUFFIXES:
                    found.hidden.append(name_below(Path(entry.path), root))
            elif suffix in IMAGE_SUFFIXES:
                found.files.append(entry.path)
            elif suffix not in _COMPANIONS:
                found.other[suffix] += 1


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for instance: what cannot be read is said when it is opened
        return False


def _read_list(path: Path, root: Path) -> Iterator[Path]:
    """The images that a list file names; bytes that are no UTF-8 are those of a file's name."""
    folder = folder_of(path)
    for line in lines(read_text(path, TEXT_LIMIT, errors="surrogateescape", error=DataError)):
        entry = line.strip()
        if entry:
            near = below(folder, entry)
            yield near if os.path.lexists(near) else below(root, entry)


# --- labels ----------------------------------------------------------------------------------------------------------


def label_paths(images: Iterable[str]) -> list[str]:
    """`label_path` of many images; each folder of labels is listed once, in place of asking for each file."""
    listed: dict[str, frozenset[str]] = {}
    found = []
    for image in images:
        written = _label_beside(image)
        folder, _, name = written.rpartition(os.sep)
        if folder not in listed:
            listed[folder] = _names_in(folder)
        found.append(written if name in listed[folder] else label_path(image))
    return found


def _names_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder or os.sep))  # noqa: PTH208 (names are wanted, of many files)
    except OSError:  # it is not there, for instance
        return frozenset()


def label_path(image: str) -> str:
    """Return where an image's labels lie: the last folder ``images`` becomes ``labels``, the suffix ``.txt``.

    Without such a folder the label file lies beside the image. If there is none and the image is reached by a link,
    the place belongs to what the link leads to.
    """
    written = _label_beside(image)
    if not os.path.lexists(written):
        real = os.path.realpath(image)
        if real != image:
            other = _label_beside(real)
            if os.path.lexists(other):
                return other
    return written


def _label_beside(image: str) -> str:
    stem = os.path.splitext(image)[0]  # noqa: PTH122
    before, images, name = stem.rpartition(f"{os.sep}images{os.sep}")
    return f"{before}{os.sep}labels{os.sep}{name}.txt" if images else f"{stem}.txt"
