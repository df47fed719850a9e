"""What the outputs of a graph show, whichever layout they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repq.layout import OutputLayout, cells_of

Array = NDArray[Any]

_LEVELS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32), (8, 16), (16,), (32,), (8,), (8, 16, 32, 64, 128))
"""Strides that detectors have."""

_MOST_ANCHORS, _MOST_QUERIES = 9, 1000

SCORE_WORDS = ("score", "logit", "cls", "class", "conf", "prob")


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a graph gives for one image.

    Attributes:
        arrays: of one image each, by name.
        imgsz: height and width of the input.
        classes: how many there are, where it is known.
        classes_by: what says so.
        told: the layout was named: what the shapes allow is taken, also where they allow something else.
        anchors: widths and heights in pixels of all levels, finest first, where the settings say them.
    """

    arrays: Mapping[str, Array]
    imgsz: tuple[int, int]
    classes: int | None = None
    classes_by: str = "class names"
    told: bool = False
    anchors: tuple[float, ...] | None = None

    @property
    def listed(self) -> str:
        return ", ".join(f"{name} {tuple(array.shape)}" for name, array in self.arrays.items())

    @property
    def spans(self) -> str:
        """Least and largest value of each output."""
        return ", ".join(f"{name} {array.min():.4g} to {array.max():.4g}" for name, array in self.arrays.items())

    @property
    def without_images(self) -> str | None:
        """Name of the only output if it is rows of all cells without an axis of images; None: it is not."""
        (name, only), *further = self.arrays.items()
        alone = not further and only.ndim == 2 and min(only.shape) > 4
        return name if alone and any(self.levels(count) for count in only.shape) else None

    def levels(self, count: int, anchors: tuple[int, ...] = (1, 3)) -> tuple[int, ...]:
        """The strides of the levels that have so many cells in all, finest first; none: there are no such levels."""
        height, width = self.imgsz
        for strides in _LEVELS:
            cells = sum(-(-height // stride) * -(-width // stride) for stride in strides)
            if any(cells * each == count for each in anchors):
                return strides
        return ()

    def is_dense(self, count: int) -> bool:
        """Whether so many rows are those of the cells of an image, and not a few for the objects in it."""
        anchored = self.levels(count, anchors=tuple(range(1, _MOST_ANCHORS + 1)))
        return count > _MOST_QUERIES or bool(self.levels(count)) or len(anchored) > 1

    def cells(self, count: int) -> list[tuple[Array, Array]]:
        """Centres in pixels (N, 2) and strides (N, 1) of the cells of so many rows, in each order of the levels."""
        strides = self.levels(count, anchors=(1,))
        both = [cells_of(order, self.imgsz) for order in dict.fromkeys((strides, strides[::-1])) if order]
        return [((cells + 0.5) * sizes, sizes) for cells, sizes in both]


Fit = tuple[OutputLayout, int]
"""A layout and the number of classes."""


@dataclass(frozen=True)
class NamedLayout:
    """One layout.

    Attributes:
        name: what ``--layout`` calls it.
        title: what the outputs are.
        fit: the layout of these outputs and the number of classes; None: they are something else.
    """

    name: str
    title: str
    fit: Callable[[Outputs], Fit | None]


def only(outputs: Outputs) -> Array | None:
    """The one output (N, columns) or (columns, N); maps of anchors (1, A, h, w, columns) behind it are its raw form."""
    first, *further = outputs.arrays.values()
    only = first.ndim == 3 and min(first.shape[1:]) > 4 and all(array.ndim == 5 for array in further)
    return first[0] if only else None


def are_probabilities(outputs: Outputs, scores: Array) -> bool:
    """Whether scores lie in 0..1, which a named layout need not show."""
    return outputs.told or in_unit_range(scores)


def in_unit_range(array: Array) -> bool:
    return bool(array.min() >= -1e-6 and array.max() <= 1 + 1e-6)


def fits_classes(outputs: Outputs, width: int, beside: int) -> bool:
    return width > beside if outputs.classes is None else width == beside + outputs.classes


def columns_of(outputs: Outputs, rows: Array, columns_first: bool = False) -> OutputLayout:
    return OutputLayout(
        objectness=None, scores=4, columns_first=columns_first, box_form=box_form(outputs, rows),
        normalized=is_normalized(rows),
        one_per_object=not outputs.is_dense(len(rows)),
    )  # fmt: skip


def box_form(outputs: Outputs, rows: Array) -> Any:
    return form_by_cells(outputs, rows) or form_by_order(rows)


def form_by_cells(outputs: Outputs, rows: Array) -> Any:
    """Whether boxes lie around their cells by their first two numbers, or by the middle of both; None: neither."""
    scale = np.array(outputs.imgsz[::-1]) if is_normalized(rows) else 1
    points = rows[:, :2] * scale, (rows[:, :2] + rows[:, 2:4]) / 2 * scale
    if orders := outputs.cells(len(rows)):
        centre, corners = (min(np.median(np.abs(p - cells) / sizes) for cells, sizes in orders) for p in points)
        if centre != corners:
            return "centre" if centre < corners else "corners"
    return None


def form_by_order(rows: Array) -> Any:
    """Corners are in order; as centre and size, hardly a box would reach from the origin to beyond its centre."""
    ordered = (rows[:, 2] >= rows[:, 0]) & (rows[:, 3] >= rows[:, 1])
    return "corners" if ordered.mean() > 0.98 else "centre"


def is_normalized(rows: Array) -> bool:
    return bool(np.quantile(np.abs(rows[:, :4]), 0.95) <= 2)


def is_ranked(rows: Array) -> bool:
    """Whether scores fall and classes are whole."""
    if rows.shape[1] != 6:
        return False
    return bool((np.diff(rows[:, 4]) <= 1e-6).all() and (rows[:, 5] == np.rint(rows[:, 5])).all())
