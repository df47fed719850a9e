"""The letterbox of an image whose size only the run knows, as two products with matrices that the graph computes.

See ``repq.graph.letterbox_input`` for the equations. All sizes are int64, so nothing is lost in ``floor(h R_w / w)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from repq.errors import GraphError
from repq.graph.building import Adder
from repq.recipe import LetterboxConfig


@dataclass(frozen=True)
class Rooms:
    """Height and width of the network's input, and what an image may take of them."""

    input: tuple[int, int]
    height: int
    width: int

    @classmethod
    def of(cls, imgsz: tuple[int, int], config: LetterboxConfig) -> Rooms:
        """Input less borders, at most the inner size.

        Raises:
            GraphError: border and inner size leave no room in the input.
        """
        height, width = (size - 2 * config.border for size in imgsz)
        if min(height, width) < 1 or (config.inner_size or 1) > max(height, width):
            raise GraphError(
                f"the letterbox does not fit into an input of {imgsz[0]}x{imgsz[1]}",
                found=f"border {config.border}, inner_size {config.inner_size}",
                fix="make the border or the inner size smaller: inner_size + 2 * border may not exceed the input",
            )
        limit = config.inner_size or max(height, width)
        return cls(imgsz, min(height, limit), min(width, limit))


def canvas_by_matrices(add: Adder, images: str, planes: str, rooms: Rooms, config: LetterboxConfig) -> str:
    """``A_v (X - grey) A_h^T + grey`` in whole grey levels.

    Args:
        images: the input (B, h, w, 3), for its shape.
        planes: its pixels (B, 3, h, w) as float32.
    """
    shape = add.node("Shape", images)
    height, width = (add.node("Gather", shape, add.int(axis), axis=0) for axis in (1, 2))
    inner_h, inner_w = _inner(add, height, width, rooms, config)
    shrinks = add.node("Less", inner_w, width)
    rows = _matrix(add, height, inner_h, rooms.input[0], shrinks)
    columns = add.node("Transpose", _matrix(add, width, inner_w, rooms.input[1], shrinks), perm=[1, 0])
    grey = add.float(config.value)
    image = add.node("MatMul", rows, add.node("MatMul", add.node("Sub", planes, grey), columns))
    return add.node("Floor", add.node("Add", image, add.float(config.value + 0.5)))


def _inner(add: Adder, height: str, width: str, rooms: Rooms, config: LetterboxConfig) -> tuple[str, str]:
    room_h, room_w = add.int(rooms.height), add.int(rooms.width)
    across, down = add.node("Mul", room_w, height), add.node("Mul", room_h, width)
    wide = add.node("LessOrEqual", across, down)
    inner_h = add.node("Where", wide, add.node("Div", across, width), room_h)
    inner_w = add.node("Where", wide, room_w, add.node("Div", down, height))
    if not config.upscale:
        inner_h, inner_w = add.node("Min", inner_h, height), add.node("Min", inner_w, width)
    return add.node("Max", inner_h, add.int(1)), add.node("Max", inner_w, add.int(1))


def _matrix(add: Adder, size: str, inner: str, canvas: int, shrinks: str) -> str:
    """(canvas, size) weights of one axis; rows outside the image are zero."""
    offset = add.node("Div", add.node("Sub", add.int(canvas), inner), add.int(2))
    length, part = (add.node("Cast", value, to=TensorProto.FLOAT) for value in (size, inner))
    factor = add.node("Div", length, part)
    line = add.constant(np.arange(canvas, dtype=np.int64)[:, None])
    line = add.node("Cast", add.node("Sub", line, offset), to=TensorProto.FLOAT)
    pixel = add.node("Range", add.int(0), size, add.int(1))
    pixel = add.node("Cast", pixel, to=TensorProto.FLOAT)
    return add.node("Where", shrinks, _area(add, line, pixel, factor), _linear(add, line, pixel, factor, length, part))


def _area(add: Adder, line: str, pixel: str, factor: str) -> str:
    one, zero = add.float(1), add.float(0)
    end = add.node("Min", add.node("Mul", add.node("Add", line, one), factor), add.node("Add", pixel, one))
    covered = add.node("Sub", end, add.node("Max", add.node("Mul", line, factor), pixel))
    return add.node("Div", add.node("Max", covered, zero), factor)


def _linear(add: Adder, line: str, pixel: str, factor: str, length: str, part: str) -> str:
    half, one, zero = add.float(0.5), add.float(1), add.float(0)
    centre = add.node("Sub", add.node("Mul", add.node("Add", line, half), factor), half)
    centre = add.node("Min", add.node("Max", centre, zero), add.node("Sub", length, one))
    distance = add.node("Abs", add.node("Sub", centre, pixel))
    weight = add.node("Max", add.node("Sub", one, distance), zero)
    inside = add.node("And", add.node("GreaterOrEqual", line, zero), add.node("Less", line, part))
    return add.node("Where", inside, weight, zero)
