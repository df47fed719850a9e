"""Commands as README and the pages show them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SIZE = 64
"""Of the images at the desk, in pixels."""
ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Shown:
    """A command of a code block.

    Attributes:
        page: the file, relative to the repository.
        words: without variables before it and redirections behind it.
        needs: what the text says that it needs; empty: it runs anywhere.
    """

    page: str
    words: tuple[str, ...]
    needs: str

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"

    @property
    def at_the_desk(self) -> bool:
        """Whether it can run on what the tests have: no models that a reader has to bring, no other machine."""
        return not self.needs and not any(word.startswith(("yolox_", "yolov8", "coco.")) for word in self.words)

    @property
    def repq(self) -> tuple[str, ...]:
        """What follows ``repq``, also where torchrun starts it; empty for other programs."""
        if self.words[0] == "repq":
            return self.words[1:]
        joined = " ".join(self.words)
        return tuple(joined.partition(" -m repq ")[2].split()) if " -m repq " in joined else ()


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands() -> Iterator[Shown]:
    for page in PAGES:
        plain = [f"repq {rest}" for rest in re.findall(r"^repq (.*)$", "\n".join(blocks(page, "")), re.MULTILINE)]
        for block in (*blocks(page, "sh"), *plain):
            for line in block.replace("\\\n", " ").splitlines():
                lexer = shlex.split(line, comments=True)
                words = [word for word in lexer if not re.fullmatch(r"[A-Z_]+=.*", word)]
                words = words[: next((at for at, word in enumerate(words) if word in (">", ">>")), len(words))]
                needs = re.search(r"#.*\b(needs .*)", line)
                if words:
                    yield Shown(str(page.relative_to(ROOT)), tuple(words), needs[1] if needs else "")


def spans() -> Iterator[tuple[str, str]]:
    """Code within the text: the page, and what stands between the ticks."""
    for page in PAGES:
        text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
        for span in _SPAN.findall(text):
            yield str(page.relative_to(ROOT)), " ".join(span.split())
