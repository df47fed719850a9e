"""All operators; importing this fills the table."""

from repq.model.onnx_graph.operators import (
    activations,
    arithmetic,
    norms,
    products,
    reductions,
    resizing,
    selection,
    shapes,
    windows,
)
from repq.model.onnx_graph.operators.table import OPERATORS, TORCH_TYPES, Operator, host_value

_ = activations, arithmetic, norms, products, reductions, resizing, selection, shapes, windows

__all__ = ["OPERATORS", "TORCH_TYPES", "Operator", "host_value"]
