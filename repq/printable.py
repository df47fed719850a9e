"""Text from files and file names as it may be shown: nothing in it can steer a terminal or turn a line around."""

from __future__ import annotations

import codecs
import shlex
import unicodedata
from collections.abc import Sequence

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # letters of Persian and emoji are written with them; they join and move nothing

SPELLED = "repq.spelled"
"""An error handler for encoding: signs of tables and sentences become their like in ASCII, other letters an escape."""
_LIKE = {
    "…": "...", "→": "->", "−": "-", "–": "-", "—": "-", "─": "-", "│": "|", "·": ".", "×": "x", "²": "^2", "≥": ">=",
    "≤": "<=", "ß": "ss", "’": "'", "±": "+-",
}  # fmt: skip


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_LIKE.get(one) or one.encode("ascii", "backslashreplace").decode() for one in missing), error.end


codecs.register_error(SPELLED, _spell)


def printable(text: object, limit: int = 500) -> str:
    r"""Return ``text`` with control, format and unassigned characters escaped (``\x1b``, ``\u202e``), and shortened.

    What is escaped: C0 and C1 controls, line breaks, marks of direction, surrogates, private and unassigned code
    points (Unicode categories C*, Zl, Zp). A byte of a file name that is no UTF-8 is shown as ``\xNN``. The result is
    encodable in UTF-8, and `printable` of it is the same text.

    Args:
        limit: characters that are kept, half from the beginning and half from the end; ``…`` stands for the rest.
    """
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-(limit - limit // 2 - 1) :]}"
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    """`printable` for a text whose line breaks are meant, without a limit."""
    return "\n".join(printable(line, max(len(line), 1)) for line in text.split("\n"))


def command_line(*words: object) -> str:
    """A command as one types it into a shell: words with blanks and the like in quotes."""
    return shlex.join(map(str, words))


def first_names(names: Sequence[str], show: int = 3) -> str:
    """The first few names, fit to be shown, and how many more there are."""
    more = f" and {len(names) - show} more" if len(names) > show else ""
    return (", ".join(printable(name, 120) for name in names[:show]) or "none") + more


def _shown(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python writes the byte of a name that it could not decode
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
