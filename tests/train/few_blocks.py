"""Models of the families with few blocks: what holds for one block of a kind holds for more of them.

Tests that take the same one share what torch exports of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from repq.model import Spec, get_spec
from repq.model.yolov6.specs import ARCHITECTURES

if TYPE_CHECKING:
    import pytest

_ONE_EACH = (1, 1, 1, 1)
_FEW: dict[str, dict[str, Any]] = {
    "yolov6n": {"backbone_repeats": (1, 1, 2, 1), "neck_repeats": _ONE_EACH},
    "yolov6lite": {"backbone_repeats": (1, 2, 1, 1)},  # the second of a stage keeps the size
    "yolox": {"repeats": _ONE_EACH},
}


def few_blocks(name: str, classes: int) -> Spec:
    """The spec of a named model with one block a stage, and a stage with two where that is another kind of block."""
    (changes,) = (changes for prefix, changes in _FEW.items() if name.startswith(prefix))
    return replace(get_spec(name, classes), **changes)


def give_few_blocks(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let the name of a YOLOv6 model with stages in a row stand for one of few blocks, for commands and recipes."""
    patch.setitem(ARCHITECTURES, name, replace(ARCHITECTURES[name], depth=1 / 9))
