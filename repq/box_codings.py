"""How boxes are made of what a network gives raw: one function for each way, and the list of all.

Arrays are of numpy or torch, or tensors of a graph that is being made: what is used of them has one name in all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def library(array: Any) -> Any:
    """The functions for such arrays."""
    return sys.modules[type(array).__module__.partition(".")[0]] if not hasattr(array, "library") else array.library


def like(values: NDArray[Any], array: Any) -> Any:
    """The values with the library, type and place of an array."""
    return array.new_tensor(values) if hasattr(array, "new_tensor") else values.astype(array.dtype)


def sigmoid(array: Any) -> Any:
    of = library(array)
    return of.sigmoid(array) if hasattr(of, "sigmoid") else 1 / (1 + of.exp(-array))


def softmax(array: Any) -> Any:
    """Over the last axis."""
    of = library(array)
    if hasattr(of, "softmax"):
        return of.softmax(array, -1)
    powers = of.exp(array - of.amax(array, -1)[..., None])
    return powers / powers.sum(-1)[..., None]


@dataclass(frozen=True, eq=False)
class Cells:
    """What raw boxes are relative to.

    Attributes:
        places: column and row of each one's cell (N, 2).
        strides: of each one's level (N, 1), in pixels.
        imgsz: height and width of the network input.
        anchors: width and height of each one's anchor (N, 2), in pixels; None: there are none.
        bins: number of bins of the distribution of a side.
    """

    places: Any
    strides: Any
    imgsz: tuple[int, int]
    anchors: Any = None
    bins: int = 0


@dataclass(frozen=True)
class Coding:
    """One way.

    Attributes:
        name: what layouts call it.
        decode: raw rows (B, N, columns) to rows that begin with a box in pixels.
        anchored: it needs anchors.
        binned: it needs to know how many bins a side has.
    """

    name: str
    decode: Callable[[Any, Cells], Any]
    anchored: bool = False
    binned: bool = False


def _exponential(rows: Any, at: Cells) -> Any:
    """``xy = (xy + cell) stride``, ``wh = exp(wh) stride`` (YOLOX, arXiv 2107.08430, section 2.1).

    Columns: box, and any that stay.
    """
    of = library(rows)
    centre, size = (rows[..., :2] + at.places) * at.strides, of.exp(rows[..., 2:4]) * at.strides
    return of.concatenate((centre, size, rows[..., 4:]), -1)


def _tanh(rows: Any, at: Cells) -> Any:
    """``xy = (tanh(xy) + cell) stride``, ``wh = sigmoid(wh)`` of the input (FastestDet).

    Columns: objectness, box, classes; they become box, objectness, classes.
    """
    of = library(rows)
    centre = (of.tanh(rows[..., 1:3]) + at.places) * at.strides
    size = sigmoid(rows[..., 3:5]) * like(np.array(at.imgsz[::-1]), rows)
    return of.concatenate((centre, size, rows[..., :1], rows[..., 5:]), -1)


def _anchors(rows: Any, at: Cells) -> Any:
    """With ``s = sigmoid(row)``: ``xy = (2 s - 0.5 + cell) stride``, ``wh = (2 s)^2 anchor`` (YOLOv5, YOLOv7).

    Columns: box, objectness, classes.
    """
    shares = sigmoid(rows)
    centre = (shares[..., :2] * 2 - 0.5 + at.places) * at.strides
    doubled = shares[..., 2:4] * 2
    return library(rows).concatenate((centre, doubled * doubled * at.anchors, shares[..., 4:]), -1)


def _distances(rows: Any, at: Cells, offset: float = 0.0) -> Any:
    """Corners lie ``stride`` times the mean of a distribution over bins 0, 1, … away (GFL, arXiv 2006.04388).

    Columns: classes, then the bins of left, top, right, bottom; they become corners, classes.

    Args:
        offset: where in its cell the point lies that the distances are from.
    """
    sides, of = 4 * at.bins, library(rows)
    classes, raw = rows[..., : rows.shape[-1] - sides], rows[..., rows.shape[-1] - sides :]
    bins = softmax(raw.reshape(*raw.shape[:2], 4, at.bins))
    away = (bins * like(np.arange(at.bins), rows)).sum(-1) * at.strides
    point = (at.places + offset) * at.strides
    return of.concatenate((point - away[..., :2], point + away[..., 2:], classes), -1)


CODINGS: list[Coding] = [
    Coding("exponential", _exponential),
    Coding("tanh", _tanh),
    Coding("anchors", _anchors, anchored=True),
    Coding("distances", _distances, binned=True),
    Coding("distances-from-centre", lambda rows, at: _distances(rows, at, 0.5), binned=True),
]


def coding(name: str) -> Coding:
    """The way of this name.

    Raises:
        ValueError: there is none; files that say so are damaged.
    """
    for entry in CODINGS:
        if entry.name == name:
            return entry
    raise ValueError(f"boxes are coded in no way named {name!r}")
