"""Operators whose output holds nothing but values of their input: quantization may pass through them unchanged.

With ``f(x) = dequantize(quantize(x))``, one scale for the whole tensor:

- Concat, Reshape, Transpose, Split, Slice, nearest Resize … copy values, so ``f(op(x)) = op(f(x))``.
- ``f`` never decreases, so ``f(max(x)) = max(f(x))``: MaxPool. An average does not commute with rounding, so
  AveragePool, linear Resize and everything that computes are no such operators.

Source: NVIDIA TensorRT Developer Guide, "Working with Quantized Types", on commuting layers.
"""

from __future__ import annotations

from onnx import NodeProto

from repq.graph.index import GraphIndex

_FIRST_INPUT_HOLDS_VALUES = frozenset(
    {
        "DepthToSpace",
        "Flatten",
        "MaxPool",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def copies_values(node: NodeProto, index: GraphIndex) -> bool:
    """Whether all outputs of ``node`` hold values of its computed inputs (``value_slots``) only."""
    if any(node.input[slot] in index.initializers for slot in value_slots(node)):
        return False
    if node.op_type == "Resize":
        mode = {a.name: a.s for a in node.attribute if a.name in ("mode", "coordinate_transformation_mode")}
        # tf_crop_and_resize fills the outside with a constant that would not be quantized
        return mode.get("mode", b"nearest") == b"nearest" and b"tf_crop_and_resize" not in mode.values()
    if node.op_type == "MaxPool":
        return len(node.output) == 1  # indices of the maximum may differ where rounding makes values equal
    return node.op_type == "Concat" or node.op_type in _FIRST_INPUT_HOLDS_VALUES


def value_slots(node: NodeProto) -> range:
    """The input slots that hold values; the others hold shapes, axes or scales."""
    if node.op_type == "Concat":
        return range(len(node.input))
    return range(min(1, len(node.input)))
