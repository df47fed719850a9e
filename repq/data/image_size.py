"""How many pixels an image has, from the header of its file, before anything is decoded.

A file of some MiB can hold an image that takes gigabytes. Only what lies at the positions that each format's
specification names is read: no pixels, no metadata.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

_SEARCHED = 1 << 16  # bytes in which the boxes and lines of a header are looked for
_MAX_SEGMENTS = 20_000  # of a JPEG; cameras write some dozens
_MARKER = re.compile(rb"\xff[^\x00\xff]")  # of a run of fill bytes the last, so that a search stays linear
_TOKEN = re.compile(rb"(?:\s|#[^\n]*\n)*(\d{1,12})")
_PAM = re.compile(rb"^(WIDTH|HEIGHT)\s+(\d{1,12})\s*$", re.MULTILINE)
_RADIANCE = re.compile(rb"\n[+-]([XY]) (\d{1,12}) [+-][XY] (\d{1,12})\n")


def header_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height as the header says, before any turning; None if no format is recognized.

    PNG, JPEG, GIF, BMP, WebP, TIFF and BigTIFF, JPEG 2000, AVIF, PBM to PAM, Radiance, OpenEXR, Sun raster.

    Raises:
        ValueError: the header of a format that is recognized is damaged.
    """
    for signature, read in _FORMATS:
        if signature.match(data):
            try:
                return read(data)
            except (struct.error, IndexError, TypeError):
                raise ValueError("the header is cut off") from None
    return None


# --- JPEG ------------------------------------------------------------------------------------------------------------


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and offset of each segment up to the first scan (ITU-T T.81, annex B).

    Walking the segments steps over thumbnails, which are JPEGs with sizes and ends of their own. Bytes between
    segments are skipped, as decoders do.
    """
    at = 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None:
            return
        at, marker = found.end(), data[found.end() - 1]
        yield marker, at - 2
        if marker == 0xDA:
            return
        if not (marker == 0x01 or 0xD0 <= marker <= 0xD9):  # these have no content
            at += max(2, int.from_bytes(data[at : at + 2], "big"))


def _jpeg(data: bytes) -> tuple[int, int]:
    for marker, at in jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
    raise ValueError("no size")


# --- others ----------------------------------------------------------------------------------------------------------


def _at(form: str, offset: int) -> Callable[[bytes], tuple[int, int]]:
    """Width and height lie at one place."""

    def read(data: bytes) -> tuple[int, int]:
        width, height = struct.unpack_from(form, data, offset)
        return abs(width), abs(height)  # the height of a BMP that runs downwards is negative

    return read


def _both(width: bytes | int | None, height: bytes | int | None) -> tuple[int, int]:
    if width is None or height is None:
        raise ValueError("no size")
    return int(width), int(height)


def _bmp(data: bytes) -> tuple[int, int]:
    is_old = struct.unpack_from("<I", data, 14)[0] == 12
    return _at("<HH" if is_old else "<ii", 18)(data)


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no size")


def _tiff(data: bytes) -> tuple[int, int]:
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    start = struct.unpack_from(f"{order}Q", data, 8)[0] if is_big else struct.unpack_from(f"{order}I", data, 4)[0]
    entries = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", data, start)[0]
    first, step, value = (start + 8, 20, 12) if is_big else (start + 2, 12, 8)
    sizes: dict[int, int] = {}
    for number in range(min(entries, 1000)):
        tag, kind = struct.unpack_from(f"{order}HH", data, first + number * step)
        if tag in (256, 257):
            form = {3: "H", 4: "I", 16: "Q"}.get(kind, "B")
            sizes[tag] = struct.unpack_from(f"{order}{form}", data, first + number * step + value)[0]
    return _both(sizes.get(256), sizes.get(257))


def _boxes(name: bytes, skip: int, *, height_first: bool) -> Callable[[bytes], tuple[int, int]]:
    """The largest of the boxes of this name (ISO base media format)."""

    def read(data: bytes) -> tuple[int, int]:
        head, found = data[:_SEARCHED], []
        at = head.find(name)
        while at >= 0:
            pair = struct.unpack_from(">II", head, at + 4 + skip)
            found.append(pair[::-1] if height_first else pair)
            at = head.find(name, at + 4)
        return max(found, key=lambda size: size[0] * size[1])  # ValueError: there is none

    return read


def _portable(data: bytes) -> tuple[int, int]:
    width = _TOKEN.match(data, 2)
    height = _TOKEN.match(data, width.end()) if width else None
    return _both(width and width[1], height and height[1])


def _pam(data: bytes) -> tuple[int, int]:
    found = dict(_PAM.findall(data[:_SEARCHED]))
    return _both(found.get(b"WIDTH"), found.get(b"HEIGHT"))


def _radiance(data: bytes) -> tuple[int, int]:
    found = _RADIANCE.search(data[:_SEARCHED])
    axis, first, second = found.groups() if found else (b"", None, None)
    return _both(second, first) if axis == b"Y" else _both(first, second)


def _openexr(data: bytes) -> tuple[int, int]:
    at = data.find(b"dataWindow\0box2i\0", 0, _SEARCHED)
    if at < 0:
        raise ValueError("no size")
    left, top, right, bottom = struct.unpack_from("<iiii", data, at + 21)
    return right - left + 1, bottom - top + 1


_FORMATS: list[tuple[re.Pattern[bytes], Callable[[bytes], tuple[int, int]]]] = [
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _at(">II", 16)),
    (re.compile(rb"\xff\xd8"), _jpeg),
    (re.compile(rb"GIF8"), _at("<HH", 6)),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff),
    (re.compile(rb"\0\0\0\x0cjP  "), _boxes(b"ihdr", 0, height_first=True)),
    (re.compile(rb"\xff\x4f\xff\x51"), _at(">II", 8)),  # a bare JPEG 2000 stream
    (re.compile(rb"....ftyp", re.DOTALL), _boxes(b"ispe", 4, height_first=False)),
    (re.compile(rb"P[1-6]\s"), _portable),
    (re.compile(rb"P7\s"), _pam),
    (re.compile(rb"#\?R(?:ADIANCE|GBE)"), _radiance),
    (re.compile(rb"v/1\x01"), _openexr),
    (re.compile(rb"Y\xa6j\x95"), _at(">II", 4)),
]
