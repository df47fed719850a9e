"""What a detector gives, as a value: whoever reads an output needs no other knowledge of it.

Arrays are of numpy or torch: only slices and arithmetic are used.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

BoxForm = Literal["centre", "corners"]


@dataclass(frozen=True)
class OutputLayout:
    """The columns of a detector's one output (B, N, columns), in pixels of the network input.

    The default is the form that most YOLO detectors have: centre x, y, width, height, objectness, class scores.

    Attributes:
        box_form: ``centre``: centre x, y, width, height; ``corners``: x1, y1, x2, y2.
        boxes: first of the four columns of the box.
        objectness: a column that the class scores are multiplied by; None: they stand for themselves.
        scores: first column of the class scores.
        unused: number of columns that mean nothing, such as a constant.
        columns_first: the output is (B, columns, N).
        one_per_object: no object is found twice: nothing is to be suppressed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    box_form: BoxForm = "centre"
    boxes: int = 0
    objectness: int | None = 4
    scores: int = 5
    unused: int = 0
    columns_first: bool = False
    one_per_object: bool = False

    @property
    def columns_beside_scores(self) -> int:
        return 4 + (self.objectness is not None) + self.unused

    def width(self, classes: int) -> int:
        """Number of columns."""
        return self.columns_beside_scores + classes

    def rows(self, output: Any) -> Any:
        """The output as (…, N, columns)."""
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

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> OutputLayout:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: the text is something else.
        """
        return _LAYOUTS.validate_json(text)


_LAYOUTS = TypeAdapter(OutputLayout)
