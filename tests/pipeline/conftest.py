"""A detector of few blocks under the name that the recipes give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from repq.model.yolov6.specs import ARCHITECTURES


@pytest.fixture(scope="module", autouse=True)
def _few_blocks() -> Iterator[None]:
    """YOLOv6-N with one block a stage, and a stage with two: every run exports, builds and times it many times."""
    few = replace(ARCHITECTURES["yolov6n_v2"], depth=1 / 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "yolov6n_v2", few)
        yield
