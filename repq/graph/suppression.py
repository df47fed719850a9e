r"""Non-maximum suppression at the end of the graph.

Before and after, with N boxes and C classes, for the layout of most detectors::

    … -> detections (B, N, 5 + C)
    … -> detections -> corners (B, N, 4) ---------------\
                   \-> scores (B, N, C) -> NonMaxSuppression -> (k, 3) -> scores that survive -> TopK -> boxes (B, K, 6)

A row of ``boxes`` is x1, y1, x2, y2 in network pixels, score, class, best first; rows of score 0 stand for no box. K is
``max_detections``, or N C if that is less. NonMaxSuppression gives a list over all images; its scores go back to
their places in an array of zeros (B, N, C), so that TopK finds the best of every image at once, and of equal scores the
one of the earlier box, then of the earlier class.

The result is that of ``repq.evaluate.postprocess``: per class, a box falls if its IoU with a better one exceeds
``iou``; with ``multi_label`` a box may stand for several classes, else for its best. Two differences stay: IoU is
computed in float32 here, in float64 there; and there only the best 30,000 candidates enter. A box without area counts
on neither side.

NonMaxSuppression is ONNX's; TensorRT makes it an INMSLayer. Where the layout says that no object is found twice, there
is none: scores above the threshold go to TopK.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto

from repq.errors import GraphError
from repq.graph.arrays import decoded_outputs, in_float
from repq.graph.metadata import parse_metadata, update_metadata
from repq.graph.surgeon import Adder, export_graph, import_graph
from repq.layout import OutputLayout
from repq.recipe import NmsConfig

BOXES = "boxes"


def nms_output(model: ModelProto, config: NmsConfig) -> ModelProto:
    """Return ``model`` so that it ends with ``boxes`` (B, K, 6) instead of detections.

    What their columns mean is in the metadata; without any, they have the layout of most detectors.

    Raises:
        GraphError: the output has another shape, or the graph suppresses already.
    """
    graph = import_graph(model)
    suppress(graph, config)
    return export_graph(graph)


def suppress(graph: gs.Graph, config: NmsConfig) -> None:
    """``nms_output`` in place."""
    metadata = parse_metadata(graph.properties)
    layout = OutputLayout() if metadata is None else metadata.layout
    add = Adder(graph, "nms")
    detections, shape = _decoded(graph, add, layout)
    batch, count, classes = _sizes(graph, shape, layout)
    corners, size, scores = _corners_sizes_scores(add, detections, layout, classes)
    axis = add.ints(2)
    if not config.multi_label:
        scores = _best_class_only(add, scores, classes)
    scores = add.node("Mul", scores, _has_area(add, size))
    if layout.one_per_object:
        above = add.node("Greater", scores, add.float(config.confidence))
        survivors = add.node("Mul", scores, add.node("Cast", above, to=TensorProto.FLOAT))
    else:
        survivors = _survivors(add, corners, scores, config, count)
    best = min(config.max_detections, count * classes)
    score, rank = _best(graph, add, survivors, best, count * classes)
    box, class_id = add.node("Div", rank, add.int(classes)), add.node("Mod", rank, add.int(classes))
    corner = add.node("GatherND", corners, add.node("Unsqueeze", box, axis), batch_dims=1)
    found = add.node("Cast", add.node("Greater", score, add.float(0)), to=TensorProto.FLOAT)
    parts = [
        corner,
        *(add.node("Unsqueeze", part, axis) for part in (score, add.node("Cast", class_id, to=TensorProto.FLOAT))),
    ]
    if BOXES in (tensors := graph.tensors()):
        tensors[BOXES].name = f"{BOXES}/all"
    boxes = gs.Variable(BOXES, np.dtype(np.float32), [batch, best, 6])
    add.node("Mul", add.node("Concat", *parts, axis=2), add.node("Unsqueeze", found, axis), output=boxes)
    graph.outputs = [boxes]
    update_metadata(graph, lambda _: {"nms": config})


def _decoded(graph: gs.Graph, add: Adder, layout: OutputLayout) -> tuple[gs.Tensor, list[int | str]]:
    """The outputs as `OutputLayout.decode` makes one array of them, and its shape.

    Raises:
        GraphError: nothing is left to suppress, or the graph suppresses already.
    """
    outputs = graph.outputs
    if layout.ranked is not None or any(node.op == "NonMaxSuppression" for node in graph.nodes):
        raise GraphError("the graph suppresses already", found="boxes that are final", fix="leave --nms away")
    if layout.plain:
        return in_float(add, outputs[0]), list(outputs[0].shape or ())
    found = decoded_outputs(graph, add, layout)
    if found is None:
        raise _no_detections(graph)
    return found.tensor, found.shape


def _survivors(add: Adder, corners: gs.Tensor, scores: gs.Tensor, config: NmsConfig, count: int) -> gs.Tensor:
    """Scores (B, N, C), zero where a box is suppressed."""
    selected = add.node(
        "NonMaxSuppression", corners, add.node("Transpose", scores, perm=[0, 2, 1]),
        add.int(min(config.max_detections, count)), add.float(config.iou), add.float(config.confidence),
    )  # fmt: skip
    places = add.node("Gather", selected, add.ints(0, 2, 1), axis=1)  # image, box, class
    none = add.node("ConstantOfShape", add.node("Shape", scores))
    return add.node("ScatterND", none, places, add.node("GatherND", scores, places))


def _corners_sizes_scores(
    add: Adder, detections: gs.Tensor, layout: OutputLayout, classes: int
) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
    """(B, N, 4) corners, (B, N, 2) sizes and (B, N, C) scores of detections."""
    axis = add.ints(2)
    rows = add.node("Transpose", detections, perm=[0, 2, 1]) if layout.columns_first else detections

    def columns(first: int, count: int) -> gs.Tensor:
        return add.node("Slice", rows, add.ints(first), add.ints(first + count), axis)

    scores = columns(layout.scores, classes)
    if layout.objectness is not None:
        scores = add.node("Mul", scores, columns(layout.objectness, 1))
    if layout.box_form == "corners":
        low, high = columns(layout.boxes, 2), columns(layout.boxes + 2, 2)
        return columns(layout.boxes, 4), add.node("Sub", high, low), scores
    centre, size = columns(layout.boxes, 2), columns(layout.boxes + 2, 2)
    half = add.node("Mul", size, add.float(0.5))
    return add.node("Concat", add.node("Sub", centre, half), add.node("Add", centre, half), axis=2), size, scores


def _best_class_only(add: Adder, scores: gs.Tensor, classes: int) -> gs.Tensor:
    """Zero all scores of a box but the best; of equal ones the first stays."""
    best = add.node("ArgMax", scores, axis=2, keepdims=1)
    chosen = add.node("Equal", best, add.constant(np.arange(classes, dtype=np.int64)))
    return add.node("Mul", scores, add.node("Cast", chosen, to=TensorProto.FLOAT))


def _has_area(add: Adder, size: gs.Tensor) -> gs.Tensor:
    """(B, N, 1): 1 for a box whose width and height are positive, else 0."""
    sides = (add.node("Slice", size, add.ints(side), add.ints(side + 1), add.ints(2)) for side in (0, 1))
    least = add.node("Min", *sides)
    return add.node("Cast", add.node("Greater", least, add.float(0)), to=TensorProto.FLOAT)


def _best(graph: gs.Graph, add: Adder, survivors: gs.Tensor, best: int, length: int) -> tuple[gs.Tensor, gs.Tensor]:
    flat = add.node("Reshape", survivors, add.ints(-1, length))
    score, rank = gs.Variable("nms/score"), gs.Variable("nms/rank")
    graph.nodes.append(gs.Node("TopK", "nms/TopK", {"axis": 1}, [flat, add.ints(best)], [score, rank]))
    return score, rank


def _sizes(graph: gs.Graph, shape: list[int | str], layout: OutputLayout) -> tuple[int | str, int, int]:
    """Batch size, boxes and classes of detections of this shape."""
    behind = [] if not layout.plain else graph.outputs[1:]  # raw maps of anchors do not count
    if len(shape) == 3 and all(len(tensor.shape or ()) == 5 for tensor in behind):
        batch, *sizes = shape
        width, count = sizes if layout.columns_first else reversed(sizes)
        if isinstance(count, int) and isinstance(width, int) and width > layout.columns_beside_scores:
            return batch or "batch", count, width - layout.columns_beside_scores
    raise _no_detections(graph)


def _no_detections(graph: gs.Graph) -> GraphError:
    return GraphError(
        "the graph does not end with detections",
        found=", ".join(f"{tensor.name} {tuple(tensor.shape or ())}" for tensor in graph.outputs) or "no output",
        fix="suppression needs one output of shape (batch, boxes, 5 + classes), boxes and classes fixed",
    )
