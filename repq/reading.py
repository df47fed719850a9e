"""Reading files that may be anything: regular files only, of bounded size, and YAML and JSON of bounded depth.

Every function takes ``error``, the class of the error that it raises: `repq.errors.RepqError` or one below it, with
what was found and what to do.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from repq.errors import RepqError, reason
from repq.printable import printable

MIB = 1 << 20
TEXT_LIMIT = 256 * MIB  # a list of two million images
YAML_LIMIT = 4 * MIB
JSON_LIMIT = 2048 * MIB  # COCO train2017 has 450 MiB
LIMIT_VARIABLE = "REPQ_MAX_FILE_MIB"

MAX_DEPTH = 64
MAX_VALUES = 1_000_000  # of a YAML file, with every alias written out
MAX_NUMBER = 1 << 64

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

_SYNTAX: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


# --- files -----------------------------------------------------------------------------------------------------------


def read_bytes(path: Path | str, limit: int, *, what: str = "", error: type[RepqError] = RepqError) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes, or as many as ``REPQ_MAX_FILE_MIB`` says.

    A folder, a pipe or a device is refused before it is opened.

    Args:
        what: what an error calls the file, such as "the manifest ".

    Raises:
        RepqError: of class ``error``, with the reason as ``found``.
    """
    own = os.environ.get(LIMIT_VARIABLE, "")
    given = whole(own, digits=9)
    limit = limit if given is None else given * MIB
    try:
        _demand_regular(os.stat(path).st_mode)  # noqa: PTH116 (faster, and data sets have many files)
        # A pipe that takes the file's place between the two calls must not block.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            return _read_whole(descriptor, limit)
        finally:
            os.close(descriptor)
    except _RefusedError as problem:
        fix = f"set {LIMIT_VARIABLE} if it is meant to be that large" if "MiB" in str(problem) else "give a file"
        raise error(f"cannot read {what}{printable(path)}", found=str(problem), fix=fix) from None
    except (OSError, ValueError) as problem:  # ValueError: a path that no file can have, such as one with a NUL
        raise error(f"cannot read {what}{printable(path)}", found=reason(problem), fix="check the path") from None


def _read_whole(descriptor: int, limit: int) -> bytes:
    status = os.fstat(descriptor)
    _demand_regular(status.st_mode)
    if status.st_size > limit:
        raise _RefusedError(f"{status.st_size / MIB:.0f} MiB, more than {limit // MIB}")
    blocks = [os.read(descriptor, status.st_size + 1)]
    if len(blocks[0]) != status.st_size or not status.st_size:  # it grows, or says nothing of its size, as in /proc
        while blocks[-1]:
            blocks.append(os.read(descriptor, MIB))
            if sum(map(len, blocks)) > limit:
                raise _RefusedError(f"more than {limit // MIB} MiB")
    return b"".join(blocks)


class _RefusedError(Exception):
    """A file that is not read, with the reason."""


def _demand_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise _RefusedError(f"{kind} and no file")


def expanded(text: str) -> Path:
    """A path as a user writes it, ``~`` and environment variables filled in; what is unknown stays as written."""
    return Path(os.path.expanduser(os.path.expandvars(text)))  # noqa: PTH111 (Path's raises on an unknown user)


# --- text ------------------------------------------------------------------------------------------------------------


def decode(content: bytes, errors: str = "strict") -> str:
    """UTF-8 with or without a byte order mark, or the UTF-16 or UTF-32 that the mark says.

    Raises:
        UnicodeDecodeError: it is neither, unless ``errors`` says otherwise.
    """
    encoding = next((name for mark, name in _BOMS if content.startswith(mark)), "utf-8")
    return content.decode(encoding, errors)


def read_text(
    path: Path,
    limit: int = TEXT_LIMIT,
    *,
    what: str = "",
    form: str = "text in UTF-8",
    errors: str = "strict",
    error: type[RepqError] = RepqError,
) -> str:
    """Return a text file's content; see `read_bytes` and `decode`.

    Args:
        form: what the file should be.

    Raises:
        RepqError: of class ``error``: the file cannot be read or decoded.
    """
    content = read_bytes(path, limit, what=what, error=error)
    try:
        return decode(content, errors)
    except UnicodeDecodeError as problem:
        raise error(
            f"{what}{printable(path)} is no {form}",
            found=f"the byte 0x{content[problem.start]:02x} in line {content.count(10, 0, problem.start) + 1}",
            fix="save it again as UTF-8",
        ) from None


def number(text: str) -> float | None:
    """The number that a text is; None where it is none, infinity where it is too large for a float.

    ASCII digits, a sign, a point and an exponent, with blanks around them. Python's ``float`` takes more: ``0_1``,
    ``nan``, ``inf`` and the digits of other scripts are no numbers here.
    """
    return float(text) if _NUMBER.fullmatch(text := text.strip()) else None


def whole(text: str, digits: int) -> int | None:
    """The whole number that at most so many ASCII digits, with blanks around them, are; None where they are none."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= digits else None


def lines(text: str) -> list[str]:
    """The lines of a text, whatever system wrote it. Other characters that Unicode breaks lines at belong to a line."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_json(path: Path, *, error: type[RepqError] = RepqError) -> Any:
    """Return the value of a JSON file.

    Raises:
        RepqError: of class ``error``: it cannot be read, is no JSON, is nested too deeply or has too long a number.
    """
    text = read_text(path, JSON_LIMIT, form="valid JSON", error=error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{printable(path)} is no valid JSON", found=_problem(problem), fix="write it again") from None


# --- YAML ------------------------------------------------------------------------------------------------------------


def read_yaml(path: Path, *, as_written: Collection[str] = (), error: type[RepqError] = RepqError) -> dict[str, Any]:
    """Return the mapping in a YAML file; see `parse_yaml`.

    Raises:
        RepqError: of class ``error``: the file cannot be read, is no YAML within the bounds, or holds no mapping.
    """
    text = read_text(path, YAML_LIMIT, form="valid YAML", error=error)
    values = parse_yaml(text, str(path), as_written=as_written, error=error)
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a value of type {type(values).__name__}"
        raise error(f"{printable(path)} holds no mapping", found=found, fix="write 'key: value' lines")
    return values


def parse_yaml(text: str, source: str, *, as_written: Collection[str] = (), error: type[RepqError] = RepqError) -> Any:
    """Return the value of a YAML text, of plain types only.

    Bounds: ``MAX_DEPTH`` levels, ``MAX_VALUES`` values with every alias written out, numbers of 64 bits. A key that is
    given twice is an error: one of the two would be lost.

    Args:
        source: what an error calls the text.
        as_written: keys at the top whose lists and mappings hold texts: ``no``, ``1.0`` and ``2001-01-01`` stay so.

    Raises:
        RepqError: of class ``error``.
    """
    try:
        _demand_bounded(text)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _keep_texts(root, as_written)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as e:
        raise error(f"{printable(source)} is no valid YAML", found=_problem(e), fix="correct the line named") from None


class _Loader(_SYNTAX):
    """Plain types. Errors: a number with ``_`` in it, one that is none or has more than 64 bits, a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {printable(key.value, 40)!r} is given twice", key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_number(self, node: yaml.Node) -> int | float:
        kind = node.tag.rpartition(":")[2]
        if "_" in str(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, f"{printable(node.value, 40)!r} is a number with '_' in it, or a text without quotes",
                node.start_mark,
            )  # fmt: skip
        try:
            value: int | float = getattr(yaml.SafeLoader, f"construct_yaml_{kind}")(self, node)
            if isinstance(value, float) or abs(value) < MAX_NUMBER:
                return value
        except (ValueError, ArithmeticError, LookupError):
            pass
        raise yaml.constructor.ConstructorError(
            None, None, f"{printable(node.value, 40)!r} is no number of 64 bits", node.start_mark
        )


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


def _demand_bounded(text: str) -> None:
    """Go through the events, which are made one by one, before anything is built of them.

    Raises:
        YAMLError: it is no YAML, is nested too deeply, has too many values, or an alias stands inside what it names.
    """
    named: dict[str, tuple[int, int]] = {}  # anchor to the values and the levels below it, aliases written out
    around: list[tuple[str | None, int]] = []  # the collections that are open: anchor, and the count before it
    levels = [0]  # below each of them, and below the document
    count = 0
    for event in yaml.parse(text, Loader=_SYNTAX):
        height = 0
        if isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in around):
                raise yaml.YAMLError(f"the alias {printable(event.anchor, 40)!r} stands inside what it names")
            values, height = named.get(str(event.anchor), (1, 0))
            count += values
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                named[event.anchor] = 1, 0
        elif isinstance(event, yaml.CollectionStartEvent):
            around.append((event.anchor, count))
            levels.append(0)
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = around.pop()
            height = levels.pop() + 1
            if anchor:
                named[anchor] = count - before, height
        levels[-1] = max(levels[-1], height)
        if len(around) + height > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} levels deep")
        if count > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values")


def _keep_texts(root: yaml.Node, keys: Collection[str]) -> None:
    """Make texts of all scalars below these keys of the mapping at the top."""
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if getattr(key, "value", None) in keys and isinstance(value, yaml.CollectionNode):
            for node in _scalars(value, set()):
                node.tag = "tag:yaml.org,2002:str"


def _scalars(node: yaml.Node, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for part in pair:
                yield from _scalars(part, seen)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _scalars(part, seen)


def _problem(problem: Exception) -> str:
    if isinstance(problem, RecursionError):
        return "nested too deeply"
    if "int string conversion" in str(problem):
        return "a number of thousands of digits"
    return printable(" ".join(str(problem).split()) or type(problem).__name__)
