r"""The letterbox inside the graph: decoded images go in, the network's input is made on the device.

Before and after::

    images (UINT8, B, 3, H, W) -> Cast -> network
    images (UINT8, B, h, w, 3) -> Cast -> Transpose -> resize -> Pad (grey) -> network

The geometry is that of ``repq.data.letterbox``, in whole numbers: with rooms R_h, R_w (input less borders, at most the
inner size) the image becomes ``(R_h, floor(w R_h / h))`` or ``(floor(h R_w / w), R_w)``, whichever fits, where the
model's preprocessing says; ``stretch`` makes it (R_h, R_w).

Resizing is linear in the image, so for each axis it is a matrix A of few entries per row:

- by area: output pixel i averages what it covers, ``A[i, j] = |[i f, (i + 1) f] ∩ [j, j + 1]| / f`` with f = h / h';
- enlarging, or where the preprocessing says ``linear``: interpolation between the two nearest centres.

A fixed source takes the cheapest operator that computes this: none where nothing is to be scaled, AveragePool for a
whole factor, Resize for interpolation, else two products ``A_v X A_h^T``. For a source of any size the graph computes
both matrices from the shape of its input; their rows outside the image are zero, which makes the grey border without
Pad::

    A_v (X - grey) A_h^T + grey

Results are rounded to whole grey levels, as OpenCV's are. They differ from OpenCV's in the rounding alone: by one level
at most where an image shrinks by area or stays, by two at most where pixels are interpolated (OpenCV does so with
11-bit weights); ``tests/graph/test_letterbox_input.py`` checks that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from repq.errors import GraphError
from repq.graph.first_layers import image_input
from repq.graph.metadata import preprocessing_of, update_metadata
from repq.graph.surgeon import Adder, element_type, export_graph, import_graph, redirect
from repq.preprocessing import Preprocessing
from repq.recipe import LetterboxConfig

Size = tuple[int, int]


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


@dataclass(frozen=True)
class Placement:
    """Height and width that an image of a fixed size gets in the input, and where it lies."""

    height: int
    width: int
    top: int
    left: int


def letterbox_input(model: ModelProto, config: LetterboxConfig, source: Size | None = None) -> ModelProto:
    """Return ``model`` so that it letterboxes decoded images itself.

    Args:
        model: takes letterboxed images as bytes (``uint8_input``).
        config: border, inner size and whether small images are enlarged.
        source: height and width of the images; None: any, which costs two products with matrices computed at run time.

    Raises:
        GraphError: the graph takes floats, letterboxes already or has a dynamic size, or the letterbox does not fit.
    """
    graph = import_graph(model)
    letterbox(graph, config, source)
    return export_graph(graph)


def letterbox(graph: gs.Graph, config: LetterboxConfig, source: Size | None = None) -> None:
    """``letterbox_input`` in place."""
    images = image_input(graph)
    form, rooms = preprocessing_of(graph), Rooms.of(_network_size(images), config)
    floats = _pixel_tensors(images)
    images.shape = [images.shape[0] or "batch", *(source or ("source_height", "source_width")), 3]
    add = Adder(graph, "letterbox")
    planes = add.node("Transpose", add.node("Cast", images, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    if source is None:
        canvas = _canvas_by_matrices(add, images, planes, rooms, config, form)
    else:
        canvas = _fixed(add, planes, source, rooms, config, form)
    for tensor in floats:
        redirect(tensor, canvas)
    update_metadata(
        graph, lambda old: {"preprocess": old.preprocess.model_copy(update={"letterbox": config, "source": source})}
    )


def placement(source: Size, rooms: Rooms, config: LetterboxConfig, form: Preprocessing = Preprocessing()) -> Placement:
    """Where an image of this size goes."""
    height, width = source
    if rooms.width * height <= rooms.height * width:
        inner_h, inner_w = height * rooms.width // width, rooms.width
    else:
        inner_h, inner_w = rooms.height, width * rooms.height // height
    if not config.upscale:
        inner_h, inner_w = min(inner_h, height), min(inner_w, width)
    inner_h, inner_w = (rooms.height, rooms.width) if form.stretch else (max(1, inner_h), max(1, inner_w))
    if form.placement == "top_left":
        return Placement(inner_h, inner_w, config.border, config.border)
    return Placement(inner_h, inner_w, (rooms.input[0] - inner_h) // 2, (rooms.input[1] - inner_w) // 2)


def area_matrix(size: int, inner: int) -> NDArray[np.float32]:
    """(inner, size) averaging weights of one axis."""
    factor = size / inner
    edge, pixel = np.arange(inner)[:, None] * factor, np.arange(size)[None]
    covered = np.minimum(edge + factor, pixel + 1) - np.maximum(edge, pixel)
    return (np.maximum(covered, 0) / factor).astype(np.float32)


def _fixed(
    add: Adder, planes: gs.Tensor, source: Size, rooms: Rooms, config: LetterboxConfig, form: Preprocessing
) -> gs.Tensor:
    place = placement(source, rooms, config, form)
    inner, factors = (place.height, place.width), (source[0] // place.height, source[1] // place.width)
    if inner == source:
        image = planes
    elif form.resize == "linear" or place.width >= source[1] or place.height > source[0]:
        sizes = add.node("Concat", _first_two(add, planes), add.ints(*inner), axis=0)
        image = add.node(
            "Resize", planes, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel"
        )
    elif source == (inner[0] * factors[0], inner[1] * factors[1]):
        image = add.node("AveragePool", planes, kernel_shape=factors, strides=factors)
    else:
        rows, columns = (area_matrix(size, part) for size, part in zip(source, inner, strict=True))
        image = add.node("MatMul", planes, add.constant(np.ascontiguousarray(columns.T)))
        image = add.node("MatMul", add.constant(rows), image)
    if image is not planes:
        image = add.node("Floor", add.node("Add", image, add.float(0.5)))
    below, right = rooms.input[0] - place.height - place.top, rooms.input[1] - place.width - place.left
    if not any((place.top, place.left, below, right)):
        return image
    pads = add.ints(0, 0, place.top, place.left, 0, 0, below, right)
    return add.node("Pad", image, pads, add.float(form.pad), mode="constant")


def _first_two(add: Adder, planes: gs.Tensor) -> gs.Tensor:
    if add.opset < 15:  # Shape has no bounds yet
        return add.node("Slice", add.node("Shape", planes), add.ints(0), add.ints(2))
    return add.node("Shape", planes, start=0, end=2)


def _canvas_by_matrices(
    add: Adder, images: gs.Tensor, planes: gs.Tensor, rooms: Rooms, config: LetterboxConfig, form: Preprocessing
) -> gs.Tensor:
    """``A_v (X - grey) A_h^T + grey`` in whole grey levels, for images whose size only the run knows.

    All sizes are int64, so nothing is lost in ``floor(h R_w / w)``.

    Args:
        images: the input (B, h, w, 3), for its shape.
        planes: its pixels (B, 3, h, w) as float32.
    """
    shape = add.node("Shape", images)
    height, width = (add.node("Gather", shape, add.int(axis), axis=0) for axis in (1, 2))
    inner_h, inner_w = _inner(add, height, width, rooms, config, form)
    averages = None
    if form.resize == "area":
        averages = add.node("And", add.node("Less", inner_w, width), add.node("LessOrEqual", inner_h, height))
    border = config.border if form.placement == "top_left" else None
    rows = _matrix(add, height, inner_h, rooms.input[0], border, averages)
    columns = add.node("Transpose", _matrix(add, width, inner_w, rooms.input[1], border, averages), perm=[1, 0])
    grey = add.float(form.pad)
    image = add.node("MatMul", rows, add.node("MatMul", add.node("Sub", planes, grey), columns))
    return add.node("Floor", add.node("Add", image, add.float(form.pad + 0.5)))


def _inner(
    add: Adder, height: gs.Tensor, width: gs.Tensor, rooms: Rooms, config: LetterboxConfig, form: Preprocessing
) -> tuple[gs.Tensor, gs.Tensor]:
    room_h, room_w = add.int(rooms.height), add.int(rooms.width)
    if form.stretch:
        return room_h, room_w
    across, down = add.node("Mul", room_w, height), add.node("Mul", room_h, width)
    wide = add.node("LessOrEqual", across, down)
    inner_h = add.node("Where", wide, add.node("Div", across, width), room_h)
    inner_w = add.node("Where", wide, room_w, add.node("Div", down, height))
    if not config.upscale:
        inner_h, inner_w = add.node("Min", inner_h, height), add.node("Min", inner_w, width)
    return add.node("Max", inner_h, add.int(1)), add.node("Max", inner_w, add.int(1))


def _matrix(
    add: Adder, size: gs.Tensor, inner: gs.Tensor, canvas: int, border: int | None, averages: gs.Tensor | None
) -> gs.Tensor:
    """(canvas, size) weights of one axis; rows outside the image are zero.

    Args:
        border: before the image; None: the image is in the middle.
        averages: whether the image shrinks by area; None: never.
    """
    margin = add.node("Sub", add.int(canvas), inner)
    offset = add.node("Div", margin, add.int(2)) if border is None else add.int(border)
    length, part = (add.node("Cast", value, to=TensorProto.FLOAT) for value in (size, inner))
    factor = add.node("Div", length, part)
    line = add.constant(np.arange(canvas, dtype=np.int64)[:, None])
    line = add.node("Cast", add.node("Sub", line, offset), to=TensorProto.FLOAT)
    pixel = add.node("Range", add.int(0), size, add.int(1))
    pixel = add.node("Cast", pixel, to=TensorProto.FLOAT)
    linear = _linear(add, line, pixel, factor, length, part)
    return linear if averages is None else add.node("Where", averages, _area(add, line, pixel, factor), linear)


def _area(add: Adder, line: gs.Tensor, pixel: gs.Tensor, factor: gs.Tensor) -> gs.Tensor:
    one, zero = add.float(1), add.float(0)
    end = add.node("Min", add.node("Mul", add.node("Add", line, one), factor), add.node("Add", pixel, one))
    covered = add.node("Sub", end, add.node("Max", add.node("Mul", line, factor), pixel))
    return add.node("Div", add.node("Max", covered, zero), factor)


def _linear(
    add: Adder, line: gs.Tensor, pixel: gs.Tensor, factor: gs.Tensor, length: gs.Tensor, part: gs.Tensor
) -> gs.Tensor:
    half, one, zero = add.float(0.5), add.float(1), add.float(0)
    centre = add.node("Sub", add.node("Mul", add.node("Add", line, half), factor), half)
    centre = add.node("Min", add.node("Max", centre, zero), add.node("Sub", length, one))
    distance = add.node("Abs", add.node("Sub", centre, pixel))
    weight = add.node("Max", add.node("Sub", one, distance), zero)
    inside = add.node("And", add.node("GreaterOrEqual", line, zero), add.node("Less", line, part))
    return add.node("Where", inside, weight, zero)


def _network_size(images: gs.Variable) -> Size:
    shape = list(images.shape or ())
    if len(shape) == 4 and shape[1] == 3 and all(isinstance(size, int) for size in shape[2:]):
        return shape[2], shape[3]
    raise GraphError(
        "the graph does not take letterboxed images of one size",
        found=f"input {images.name!r} of shape {tuple(shape)}",
        fix="start from a graph whose input is (batch, 3, H, W); one of (batch, h, w, 3) letterboxes already",
    )


def _pixel_tensors(images: gs.Variable) -> list[gs.Tensor]:
    """The float tensors that hold the input's pixels."""
    casts = [node for node in images.outputs if node.op == "Cast" and node.attrs["to"] == TensorProto.FLOAT]
    if element_type(images) != TensorProto.UINT8 or not casts or len(casts) < len(images.outputs):
        raise GraphError(
            "the graph does not take pixels as bytes",
            found=TensorProto.DataType.Name(element_type(images)),
            fix="fold the normalization first (uint8_input)",
        )
    return [node.outputs[0] for node in casts]
