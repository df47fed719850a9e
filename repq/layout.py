"""What a detector gives, as a value: whoever reads an output needs no other knowledge of it.

Arrays are of numpy or torch: what is used of either has one name in both.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

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
        grid: the boxes are raw and belong to the cells of levels of these strides, finest first:
            ``xy = (xy + cell) stride``, ``wh = exp(wh) stride`` (YOLOX, arXiv 2107.08430, section 2.1).
        apart: numbers of the outputs with boxes (B, N, 4) and with scores (B, N, classes), which become columns.
        scores_first: the scores apart are (B, classes, N).
        activation: what makes probabilities of the scores apart; with ``softmax``, one class is that of no object, and
            with ``shares`` as well, where they are probabilities already.
        no_object: which class that is.
        normalized: boxes are in 0..1 of the input.
        ranked: with this number of classes, the output is (B, K, 6): corners, score, class, which become columns.
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
    apart: tuple[int, int] | None = None
    scores_first: bool = False
    activation: Literal["none", "sigmoid", "softmax", "shares"] = "none"
    no_object: Literal["first", "last"] = "last"
    normalized: bool = False
    ranked: int | None = None
    one_per_object: bool = False

    @property
    def columns_beside_scores(self) -> int:
        return 4 + (self.objectness is not None) + self.unused

    def width(self, classes: int) -> int:
        """Number of columns."""
        return self.columns_beside_scores + classes

    @property
    def plain(self) -> bool:
        """Whether the first output is the detections."""
        return not (self.grid or self.apart or self.normalized or self.ranked)

    def decode(self, outputs: Sequence[Any], imgsz: tuple[int, int]) -> Any:
        """Detections (B, N, columns), or (B, columns, N) with ``columns_first``, of a network's outputs.

        Args:
            imgsz: height and width of the network input.
        """
        if self.plain:
            return outputs[0]
        library = _library(outputs[0])
        if self.apart is not None:
            boxes, scores = (outputs[number] for number in self.apart)
            scores = self._probabilities(scores.swapaxes(-1, -2) if self.scores_first else scores)
            rows = library.concatenate((boxes, scores), -1)
        elif self.ranked is not None:
            numbers = _like(np.arange(self.ranked), outputs[0])
            scores = (outputs[0][..., 5:6] == numbers) * outputs[0][..., 4:5]
            rows = library.concatenate((outputs[0][..., :4], scores), -1)
        else:
            rows = self.rows(outputs[0])
        first, second = rows[..., self.boxes : self.boxes + 2], rows[..., self.boxes + 2 : self.boxes + 4]
        if self.grid:
            cells, strides = (_like(values, rows) for values in cells_of(self.grid, imgsz))
            first, second = (first + cells) * strides, library.exp(second) * strides
        if self.normalized:
            size = _like(np.array(imgsz[::-1]), rows)
            first, second = first * size, second * size
        rows = library.concatenate((rows[..., : self.boxes], first, second, rows[..., self.boxes + 4 :]), -1)
        return self.rows(rows)

    @property
    def with_no_object(self) -> bool:
        """Whether the scores apart have a class of no object, which is left out."""
        return self.activation in ("softmax", "shares")

    def _probabilities(self, scores: Any) -> Any:
        library = _library(scores)
        if self.activation == "sigmoid":
            return 1 / (1 + library.exp(-scores))
        if self.activation == "softmax":
            powers = library.exp(scores - library.amax(scores, -1)[..., None])
            scores = powers / powers.sum(-1)[..., None]
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


def _library(array: Any) -> Any:
    return sys.modules[type(array).__module__.partition(".")[0]]


def _like(values: NDArray[Any], array: Any) -> Any:
    """The values with the library, type and place of an array."""
    return array.new_tensor(values) if hasattr(array, "new_tensor") else values.astype(array.dtype)


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
