"""A detector of few blocks under the name that the recipes give, and reports without their drawings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest

from repq.model.yolov6.specs import ARCHITECTURES
from repq.report.blocks import Figure


@pytest.fixture(scope="module", autouse=True)
def _few_blocks() -> Iterator[None]:
    """YOLOv6-N with one block a stage, and a stage with two: every run exports, builds and times it many times."""
    few = replace(ARCHITECTURES["yolov6n_v2"], depth=1 / 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "yolov6n_v2", few)
        yield


@pytest.fixture(scope="module")
def not_drawn() -> Callable[..., AbstractContextManager[None]]:
    """Reports that are written within have their figures empty, but those of these titles: they take longest."""

    @contextmanager
    def without(*drawn: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "svg", property(lambda own: own.draw() if own.title in drawn else "<svg></svg>"))
            yield

    return without


@pytest.fixture
def undrawn(not_drawn: Callable[..., AbstractContextManager[None]]) -> Iterator[None]:
    """No report of the test has drawings: it looks at none."""
    with not_drawn():
        yield
