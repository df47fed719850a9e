r"""The letterbox inside the graph: decoded images go in, the network's input is made on the device.

Before and after::

    images (UINT8, B, 3, H, W) -> Cast -> network
    images (UINT8, B, h, w, 3) -> Cast -> Transpose -> resize -> Pad (grey) -> network

The geometry is that of ``repq.data.letterbox``, in whole numbers: with rooms R_h, R_w (input less borders, at most the
inner size) the image becomes ``(R_h, floor(w R_h / h))`` or ``(floor(h R_w / w), R_w)``, whichever fits, in the middle.

Resizing is linear in the image, so for each axis it is a matrix A of few entries per row:

- shrinking: output pixel i averages what it covers, ``A[i, j] = |[i f, (i + 1) f] ∩ [j, j + 1]| / f`` with f = h / h';
- enlarging: linear interpolation between the two nearest centres.

A fixed source takes the cheapest operator that computes this: none where nothing is to be scaled, AveragePool for a
whole factor, Resize for enlarging, else two products ``A_v X A_h^T``. For a source of any size the graph computes both
matrices from the shape of its input; their rows outside the image are zero, which makes the grey border without Pad::

    A_v (X - grey) A_h^T + grey

Results are rounded to whole grey levels, as OpenCV's are. They differ from OpenCV's in the rounding alone: by one level
at most where an image shrinks or stays, by two at most where it is enlarged (OpenCV interpolates with 11-bit weights);
``tests/graph/test_letterbox_input.py`` checks that.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as with_changes

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from repq.errors import GraphError
from repq.graph.building import Adder
from repq.graph.first_layers import image_input
from repq.graph.index import GraphIndex, remove_unused, replace, sort_nodes
from repq.graph.letterbox_matrices import Rooms, canvas_by_matrices
from repq.graph.metadata import read_metadata, write_metadata
from repq.recipe import LetterboxConfig

Size = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """Height and width that an image of a fixed size gets in the input, and where it lies."""

    height: int
    width: int
    top: int
    left: int


def letterbox_input(model: ModelProto, config: LetterboxConfig, source: Size | None = None) -> ModelProto:
    """Return a copy of ``model`` that letterboxes decoded images itself.

    Args:
        model: takes letterboxed images as bytes (``uint8_input``).
        config: border, inner size, grey and whether small images are enlarged.
        source: height and width of the images; None: any, which costs two products with matrices computed at run time.

    Raises:
        GraphError: the graph takes floats, letterboxes already or has a dynamic size, or the letterbox does not fit.
    """
    result = ModelProto()
    result.CopyFrom(model)
    entry = image_input(result)
    imgsz = _network_size(entry)
    pixels = _pixel_tensors(result, entry)
    rooms = Rooms.of(imgsz, config)
    batch = entry.type.tensor_type.shape.dim[0]
    shape: list[int | str] = [batch.dim_value if batch.HasField("dim_value") else batch.dim_param or "batch"]
    shape += [*(source or ("source_height", "source_width")), 3]
    replacement = helper.make_tensor_value_info(entry.name, TensorProto.UINT8, shape)
    replace(result.graph.input, [replacement if old.name == entry.name else old for old in result.graph.input])
    add = Adder(result, "letterbox")
    planes = add.node("Transpose", add.node("Cast", entry.name, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    if source is None:
        canvas = canvas_by_matrices(add, entry.name, planes, rooms, config)
    else:
        canvas = _fixed(add, planes, source, rooms, config)
    for node in result.graph.node:
        replace(node.input, [canvas if name in pixels else name for name in node.input])
    remove_unused(result.graph)
    sort_nodes(result.graph)
    metadata = read_metadata(result)
    if metadata is not None:
        changed = metadata.preprocess.model_copy(update={"letterbox": config, "source": source})
        write_metadata(result, with_changes(metadata, preprocess=changed))
    return result


def placement(source: Size, rooms: Rooms, config: LetterboxConfig) -> Placement:
    """Where an image of this size goes."""
    height, width = source
    if rooms.width * height <= rooms.height * width:
        inner_h, inner_w = height * rooms.width // width, rooms.width
    else:
        inner_h, inner_w = rooms.height, width * rooms.height // height
    if not config.upscale:
        inner_h, inner_w = min(inner_h, height), min(inner_w, width)
    inner_h, inner_w = max(1, inner_h), max(1, inner_w)
    return Placement(inner_h, inner_w, (rooms.input[0] - inner_h) // 2, (rooms.input[1] - inner_w) // 2)


def area_matrix(size: int, inner: int) -> NDArray[np.float32]:
    """(inner, size) averaging weights of one axis."""
    factor = size / inner
    edge, pixel = np.arange(inner)[:, None] * factor, np.arange(size)[None]
    covered = np.minimum(edge + factor, pixel + 1) - np.maximum(edge, pixel)
    return (np.maximum(covered, 0) / factor).astype(np.float32)


def _fixed(add: Adder, planes: str, source: Size, rooms: Rooms, config: LetterboxConfig) -> str:
    place = placement(source, rooms, config)
    inner, factors = (place.height, place.width), (source[0] // place.height, source[1] // place.width)
    if inner == source:
        image = planes
    elif place.width >= source[1]:
        sizes = add.node("Concat", _first_two(add, planes), add.ints(*inner), axis=0)
        image = add.node("Resize", planes, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
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
    return add.node("Pad", image, pads, add.float(config.value), mode="constant")


def _first_two(add: Adder, planes: str) -> str:
    return add.node("Shape", planes, start=0, end=2)


def _network_size(entry: ValueInfoProto) -> Size:
    dims = entry.type.tensor_type.shape.dim
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    if len(sizes) != 4 or sizes[1] != 3 or sizes[2] is None or sizes[3] is None:
        raise GraphError(
            "the graph does not take letterboxed images of one size",
            found=f"input {entry.name!r} of shape {tuple(dim.dim_param or dim.dim_value for dim in dims)}",
            fix="start from a graph whose input is (batch, 3, H, W); one of (batch, h, w, 3) letterboxes already",
        )
    return sizes[2], sizes[3]


def _pixel_tensors(model: ModelProto, entry: ValueInfoProto) -> set[str]:
    """The float tensors that hold the input's pixels."""
    readers = [use.node for use in GraphIndex.of(model.graph).uses_of(entry.name)]
    casts = [node for node in readers if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT]
    if entry.type.tensor_type.elem_type != TensorProto.UINT8 or not casts or len(casts) < len(readers):
        raise GraphError(
            "the graph does not take pixels as bytes",
            found=TensorProto.DataType.Name(entry.type.tensor_type.elem_type),
            fix="fold the normalization first (uint8_input)",
        )
    return {node.output[0] for node in casts}
