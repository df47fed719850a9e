"""What a detector gives, as a value: whoever reads an output needs no other knowledge of it.

Arrays are of numpy or torch: what is used of either has one name in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from repq.box_codings import Cells, coding, library, like, sigmoid, softmax
from repq.errors import EngineError
from repq.json_value import JsonValue

BoxForm = Literal["centre", "corners"]


@dataclass(frozen=True)
class OutputLayout(JsonValue):
    """What a detector's outputs mean: how they become one array of detections, and the columns of that.

    The default is the form that most YOLO detectors have: one output (B, N, 5 + classes) in pixels of the network
    input: centre x, y, width, height, objectness, class scores.

    Attributes:
        box_form: ``centre``: centre x, y, width, height; ``corners``: x1, y1, x2, y2.
        boxes: first of the four columns of the box.
        objectness: a column that the class scores are multiplied by; None: they stand for themselves.
        scores: first column of the class scores.
        unused: number of columns that mean nothing, such as a constant.
        columns_first: the detections are (B, columns, N).
        grid: the boxes are raw and belong to the cells of levels of these strides, finest first.
        coding: how boxes are made of raw ones; a name in ``repq.box_codings.CODINGS``.
        anchors: for that, widths and heights in pixels, w, h, w, h and so on, of each level in ``grid``.
        bins: for that, number of bins of the distribution of a side.
        maps: the outputs are maps, one for each level, in any order: (B, anchors columns, h, w) or
            (B, anchors, h, w, columns).
        rows_alone: length of the first axis of an output of one image that has no axis of images.
        apart: numbers of the outputs with boxes (B, N, 4), or (B, N, 1, 4), and with scores (B, N, classes), which
            become columns.
        scores_first: the scores apart are (B, classes, N).
        activation: what makes probabilities of the scores apart; with ``softmax``, one class is that of no object, and
            with ``shares`` as well, where they are probabilities already.
        no_object: which class that is.
        normalized: boxes are in 0..1 of the input.
        ranked: with this number of classes, the output is (B, K, 6): corners, score, class, which become columns.
        labelled: numbers of the outputs with boxes (B, K, 4), scores (B, K) and classes (B, K), which become columns
            as with ``ranked``; one number twice: boxes and scores are one output (B, K, 5).
        first_label: the number of the first class in it; 1 where 0 is that of no object.
        counted: number of the output that says how many of these boxes there are; None: all.
        one_per_object: no object is found twice: nothing is to be suppressed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    box_form: BoxForm = "centre"
    boxes: int = 0
    objectness: int | None = 4
    scores: int = 5
    unused: int = 0
    columns_first: bool = False
    grid: tuple[int, ...] = ()
    coding: str = "exponential"
    anchors: tuple[tuple[float, ...], ...] = ()
    bins: int = 0
    maps: bool = False
    rows_alone: int = 0
    apart: tuple[int, int] | None = None
    scores_first: bool = False
    activation: Literal["none", "sigmoid", "softmax", "shares"] = "none"
    no_object: Literal["first", "last"] = "last"
    normalized: bool = False
    ranked: int | None = None
    labelled: tuple[int, int, int] | None = None
    first_label: int = 0
    counted: int | None = None
    one_per_object: bool = False

    def __post_init__(self) -> None:
        """Check that there can be such columns, outputs and levels, since layouts come from files.

        Raises:
            ValueError: there cannot, or raw boxes cannot be decoded.
        """
        outputs = (*(self.apart or ()), *(self.labelled or ()), self.counted or 0)
        columns = (self.boxes, self.objectness or 0, self.scores, self.unused)
        if min(*outputs, *columns, self.bins, self.rows_alone, self.first_label) < 0:
            raise ValueError("numbers of outputs, columns or rows below 0")
        if self.scores > self.columns_beside_scores:
            raise ValueError(f"scores from column {self.scores} on, {self.columns_beside_scores} columns beside them")
        if min(self.grid, default=1) < 1 or (self.ranked is not None and self.ranked < 1):
            raise ValueError(f"strides {self.grid}, {self.ranked} classes")
        if not all(0 < size < math.inf for level in self.anchors for size in level):
            raise ValueError(f"anchors {self.anchors}")
        wanted = coding(self.coding)
        sizes = {len(level) for level in self.anchors}
        if (wanted.anchored or self.anchors) and self.grid and (
            len(self.anchors) != len(self.grid) or len(sizes) != 1 or min(sizes) < 2 or min(sizes) % 2
        ):  # fmt: skip
            raise ValueError(f"anchors {self.anchors} for levels {self.grid}")
        if wanted.binned and self.grid and self.bins < 1:
            raise ValueError(f"{self.bins} bins")
        if self.labelled and not self.ranked:
            raise ValueError("class numbers without how many classes there are")

    @property
    def columns_beside_scores(self) -> int:
        return 4 + (self.objectness is not None) + self.unused

    def width(self, classes: int) -> int:
        """Number of columns."""
        return self.columns_beside_scores + classes

    @property
    def plain(self) -> bool:
        """Whether the first output is the detections."""
        return not (self.grid or self.apart or self.normalized or self.ranked or self.rows_alone)

    @property
    def decoded(self) -> OutputLayout:
        """The layout of what ``decode`` gives."""
        return OutputLayout(
            box_form=self.box_form, boxes=self.boxes, objectness=self.objectness, scores=self.scores,
            unused=self.unused, columns_first=self.columns_first, one_per_object=self.one_per_object,
        )  # fmt: skip

    def decode(self, outputs: Sequence[Any], imgsz: tuple[int, int]) -> Any:
        """Detections (B, N, columns), or (B, columns, N) with ``columns_first``, of a network's outputs.

        Args:
            outputs: arrays of numpy or torch, or tensors of a graph that is being made (`repq.graph.arrays`).
            imgsz: height and width of the network input.

        Raises:
            EngineError: the outputs are not those that this layout is of.
        """
        if self.plain:
            return outputs[0]
        try:
            return self._decode(outputs, imgsz)
        except (IndexError, ValueError) as error:
            raise EngineError(
                "the model's outputs do not fit its layout",
                found=f"outputs {', '.join(str(tuple(output.shape)) for output in outputs)}: {error}",
                fix="export the model again, or say what it gives with --layout",
            ) from error

    def _decode(self, outputs: Sequence[Any], imgsz: tuple[int, int]) -> Any:
        rows = self._rows_of(outputs)
        if self.grid:
            cells, strides, *anchors = (like(values, rows) for values in self._cells(imgsz))
            at = Cells(cells, strides, imgsz, anchors[0] if anchors else None, self.bins)
            rows = coding(self.coding).decode(rows, at)
        if self.normalized:
            size = like(np.array(imgsz[::-1] * 2), rows)
            boxes = rows[..., self.boxes : self.boxes + 4] * size
            rows = library(rows).concatenate((rows[..., : self.boxes], boxes, rows[..., self.boxes + 4 :]), -1)
        return self.rows(rows)

    def _rows_of(self, outputs: Sequence[Any]) -> Any:
        """The outputs as one array (B, N, columns) of what the network itself gives."""
        of = library(outputs[0])
        if self.apart is not None:
            boxes, scores = (outputs[number] for number in self.apart)
            boxes = boxes.reshape(*boxes.shape[:2], 4) if len(boxes.shape) == 4 else boxes
            scores = self._probabilities(scores.swapaxes(-1, -2) if self.scores_first else scores)
            return of.concatenate((boxes, scores), -1)
        if self.labelled is not None:
            boxes, score, label = (outputs[number] for number in self.labelled)
            score = boxes[..., 4:5] if self.labelled[0] == self.labelled[1] else score[..., None]
            if self.counted is not None:
                count = outputs[self.counted].reshape(-1, 1, 1)
                score = score * (like(np.arange(boxes.shape[-2])[:, None], count) < count)
            return self._of_classes(boxes[..., :4], score, label[..., None])
        if self.ranked is not None:
            return self._of_classes(outputs[0][..., :4], outputs[0][..., 4:5], outputs[0][..., 5:6])
        if self.maps:
            return of.concatenate([self._rows_of_map(level) for level in self.by_level(outputs)], -2)
        if self.rows_alone:
            return self.rows(outputs[0].reshape(-1, self.rows_alone, outputs[0].shape[-1]))
        return self.rows(outputs[0])

    def _of_classes(self, boxes: Any, score: Any, label: Any) -> Any:
        """Rows of a box and its score in the column of its class."""
        assert self.ranked is not None, "a class number says nothing without how many there are"
        scores = (label == like(np.arange(self.ranked) + self.first_label, label)) * score
        return library(boxes).concatenate((boxes, scores), -1)

    @staticmethod
    def by_level(outputs: Sequence[Any]) -> list[Any]:
        """Maps, finest first."""
        return sorted(outputs, key=lambda level: -math.prod(level.shape[2:4]))

    def _rows_of_map(self, level: Any) -> Any:
        """A map as rows (B, N, columns), the anchors of a cell one behind the other's cells."""
        anchors = len(self.anchors[0]) // 2 if self.anchors else 1
        if len(level.shape) == 5:
            return level.reshape(level.shape[0], math.prod(level.shape[1:4]), level.shape[4])
        images, columns, height, width = level.shape
        parts = level.reshape(images, anchors, columns // anchors, height * width).swapaxes(-1, -2)
        return parts.reshape(images, anchors * height * width, columns // anchors)

    def _cells(self, imgsz: tuple[int, int]) -> list[NDArray[Any]]:
        """Cells and strides of all rows; with anchors, those of a level once for each, and the sizes of these."""
        if not self.anchors:
            return list(cells_of(self.grid, imgsz))
        levels = []
        for stride, sizes in zip(self.grid, self.anchors, strict=True):
            places, strides = cells_of((stride,), imgsz)
            each = np.reshape(sizes, (-1, 2))
            levels.append((np.tile(places, (len(each), 1)), np.tile(strides, (len(each), 1)),
                           each.repeat(len(places), 0)))  # fmt: skip
        return [np.concatenate(parts) for parts in zip(*levels, strict=True)]

    @property
    def with_no_object(self) -> bool:
        """Whether the scores apart have a class of no object, which is left out."""
        return self.activation in ("softmax", "shares")

    def _probabilities(self, scores: Any) -> Any:
        if self.activation == "sigmoid":
            return sigmoid(scores)
        if self.activation == "softmax":
            scores = softmax(scores)
        if self.with_no_object:
            return scores[..., 1:] if self.no_object == "first" else scores[..., :-1]
        return scores

    def rows(self, output: Any) -> Any:
        """The output as (…, N, columns); rows as the output."""
        return output.swapaxes(-1, -2) if self.columns_first else output

    def boxes_of(self, output: Any) -> Any:
        """Boxes (…, N, 4) in ``box_form``."""
        return self.rows(output)[..., self.boxes : self.boxes + 4]

    def scores_of(self, output: Any) -> Any:
        """Scores (…, N, classes), with the objectness."""
        rows = self.rows(output)
        scores = rows[..., self.scores : self.scores + rows.shape[-1] - self.columns_beside_scores]
        return scores if self.objectness is None else scores * rows[..., self.objectness, None]

    def parts(self, output: Any) -> dict[str, Any]:
        """What is compared between two runs of one detector: ``boxes`` and ``scores``."""
        return {"boxes": self.boxes_of(output), "scores": self.scores_of(output)}

    def size(self, boxes: Any) -> Any:
        """Width and height (…, 2) of boxes (…, 4) in ``box_form``."""
        return boxes[..., 2:] if self.box_form == "centre" else boxes[..., 2:] - boxes[..., :2]

    def corners(self, boxes: Any) -> tuple[Any, Any]:
        """Left top and right bottom corners, (…, 2) each, of boxes (…, 4) in ``box_form``."""
        first, second = boxes[..., :2], boxes[..., 2:]
        if self.box_form == "corners":
            return first, second
        half = second / 2
        return first - half, first + half

    def values(self) -> dict[str, Any]:
        return asdict(self)


def demand_finite(outputs: Mapping[str, NDArray[Any]], source: str) -> None:
    """Refuse outputs, by their names, with NaN or infinities: neither boxes nor agreement can be measured of them.

    Args:
        source: which model in which runtime.

    Raises:
        EngineError: it names the output and the source.
    """
    for name, values in outputs.items():
        wrong = values.size - np.count_nonzero(np.isfinite(values))
        if wrong:
            raise EngineError(
                f"{source} gives values that are not finite", found=f"{wrong} of {values.size} of the output {name!r}",
                fix="look for the layer that makes them: NaN in a weight, or more than FP16 holds",
            )  # fmt: skip


@lru_cache(maxsize=16)
def cells_of(strides: tuple[int, ...], imgsz: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Column and row (N, 2) of every cell, level after level and row after row, and its stride (N, 1).

    A side that is no multiple of a stride has a cell more, which reaches beyond the image.
    """
    cells, sizes = [], []
    for stride in strides:
        rows, columns = np.mgrid[: -(-imgsz[0] // stride), : -(-imgsz[1] // stride)]
        cells.append(np.stack((columns, rows), -1).reshape(-1, 2))
        sizes.append(np.full((rows.size, 1), stride))
    return np.concatenate(cells), np.concatenate(sizes)
