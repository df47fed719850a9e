r"""Equal graphs for a runtime whose convolutions write channels last, as OpenVINO's do on a CPU.

There a map (B, C, H, W) lies in memory as B, H, W, C. What takes maps apart or lays them flat in the order of their
axes has to turn them first, and turning costs as much as a layer. Three rewrites copy the same values otherwise; their
results are equal bit by bit.

- The rows of a head (OpenVINO 2026.4 takes 0.2 ms to turn 8400 rows of 80 classes back)::

      map -> Reshape (B, C, H W) \
                                  Concat (2) -> Transpose (0, 2, 1)
      map -> Reshape (B, C, H W) /

  become, where the new Transpose only says what lies there already::

      map -> Transpose (0, 2, 3, 1) -> Reshape (B, H W, C) \
                                                            Concat (1)
      map -> Transpose (0, 2, 3, 1) -> Reshape (B, H W, C) /

- A Split that parts what a Concat has joined goes; operators before and after it then run as one.
- A Split of a convolution's channels becomes a Gather for each part if a part is reshaped, as in a channel shuffle:
  the kernel of Split walks over such a map number by number. Where no part is reshaped, all stay channels last.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from repq.graph.extra_kernels import ELEMENTWISE
from repq.graph.surgeon import add_node, export_graph, import_graph, is_output, producer, redirect, title
from repq.layers import CONVOLUTIONS

_KEEPING = ELEMENTWISE | {"Concat", "DequantizeLinear", "QuantizeLinear"}
"""Operators that write a map as they read it; a Concat of maps joins channels."""
_IN_ORDER_OF_AXES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


def channels_last(model: ModelProto) -> ModelProto:
    """Return ``model`` with these rewrites, equal bit by bit. A second run changes nothing."""
    graph = import_graph(model, shapes=True)
    changed = [_rows_of_maps(graph), _without_rejoined_splits(graph), _gathered_parts(graph)]
    return export_graph(graph) if any(changed) else model


def _rows_of_maps(graph: gs.Graph) -> bool:
    changed = False
    for node in list(graph.nodes):
        if node.op != "Transpose" or list(node.attrs.get("perm", ())) != [0, 2, 1]:
            continue
        joined = producer(node.inputs[0])
        is_join = joined is not None and joined.op == "Concat" and _axis(joined, joined.outputs[0]) == 2
        parts = list(joined.inputs) if joined is not None and is_join else [node.inputs[0]]
        if not all(_is_read_once(graph, tensor) for tensor in (node.inputs[0], *parts)):
            continue
        if not all(map(_is_flat_map, parts)):
            continue
        rows, output, name = [_rows(graph, part) for part in parts], node.outputs[0], title(node)
        node.outputs.clear()
        if len(rows) > 1:
            graph.nodes.append(gs.Node("Concat", f"{name}/rows", {"axis": 1}, rows, [output]))
        else:
            rows[0].inputs[0].outputs = [output]
        changed = True
    return changed


def _is_flat_map(tensor: gs.Tensor) -> bool:
    """Whether a tensor (B, C, H W) is a convolution's map (B, C, H, W), reshaped."""
    node = producer(tensor)
    if node is None or node.op != "Reshape" or not _comes_from_convolution(node.inputs[0]):
        return False
    before, after = node.inputs[0].shape, tensor.shape
    if before is None or after is None or (len(before), len(after)) != (4, 3) or not isinstance(before[1], int):
        return False
    return before[0] is not None and list(before[:2]) == list(after[:2])


def _rows(graph: gs.Graph, flat: gs.Tensor) -> gs.Tensor:
    """The rows (B, H W, C) of a flat map."""
    reshape = flat.inputs[0]
    source, name = reshape.inputs[0], title(reshape)
    turned = add_node(graph, "Transpose", f"{name}/turn", [source], f"{flat.name}_turned", perm=[0, 2, 3, 1])
    shape = gs.Constant(f"{flat.name}_rows_shape", np.array([0, -1, source.shape[1]], np.int64))
    return add_node(graph, "Reshape", f"{name}/rows", [turned, shape], f"{flat.name}_rows")


def _without_rejoined_splits(graph: gs.Graph) -> bool:
    changed = False
    for node in graph.nodes:
        joined = producer(node.inputs[0]) if node.op == "Split" else None
        if joined is None or joined.op != "Concat":
            continue
        axis = _axis(node, node.inputs[0])
        if axis is None or axis != _axis(joined, node.inputs[0]):
            continue
        wanted, found = (_sizes(tensors, axis) for tensors in (node.outputs, joined.inputs))
        if wanted is not None and wanted == found and not any(is_output(graph, tensor) for tensor in node.outputs):
            for part, source in zip(list(node.outputs), list(joined.inputs), strict=True):
                changed = changed or bool(part.outputs)
                redirect(part, source)
    return changed


def _gathered_parts(graph: gs.Graph) -> bool:
    changed = False
    for node in list(graph.nodes):
        if node.op != "Split" or len(node.inputs[0].shape or ()) != 4 or _axis(node, node.inputs[0]) != 1:
            continue
        sizes, readers = _sizes(node.outputs, 1), {reader.op for part in node.outputs for reader in part.outputs}
        if sizes is None or not readers & _IN_ORDER_OF_AXES or not _comes_from_convolution(node.inputs[0]):
            continue
        source, parts, name = node.inputs[0], list(node.outputs), title(node)
        node.outputs.clear()
        for number, (part, end) in enumerate(zip(parts, np.cumsum(sizes), strict=True)):
            places = gs.Constant(f"{part.name}_channels", np.arange(end - sizes[number], end, dtype=np.int64))
            graph.nodes.append(gs.Node("Gather", f"{name}/{number}", {"axis": 1}, [source, places], [part]))
        changed = True
    return changed


def _comes_from_convolution(tensor: gs.Tensor) -> bool:
    """Whether a convolution wrote the tensor, directly or through operators that keep a map as it lies."""
    waiting, seen = [tensor], set[int]()
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen:
            continue
        if node.op in CONVOLUTIONS:
            return True
        seen.add(id(node))
        waiting += node.inputs if node.op in _KEEPING else []
    return False


def _is_read_once(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return len(tensor.outputs) == 1 and not is_output(graph, tensor)


def _axis(node: gs.Node, tensor: gs.Tensor) -> int | None:
    """The axis of a Concat or Split of this tensor, counted from the first; None: the tensor's rank is not known."""
    return None if tensor.shape is None else int(node.attrs.get("axis", 0)) % len(tensor.shape)


def _sizes(tensors: list[gs.Tensor], axis: int) -> list[int] | None:
    """Sizes along an axis; None: one is not known."""
    found = [None if tensor.shape is None else tensor.shape[axis] for tensor in tensors]
    return [size for size in found if isinstance(size, int)] if all(isinstance(s, int) for s in found) else None
