# ruff: noqa: F401
"""ONNX graph passes: each takes a model and returns another one. Nothing here knows torch."""

from typing import TYPE_CHECKING

from repq.lazy import lazy_names

if TYPE_CHECKING:
    from repq.graph.activations import smooth_activations
    from repq.graph.anchors import anchor_maxima
    from repq.graph.extra_kernels import ExtraKernel, count_qdq
    from repq.graph.files import load_onnx, save_onnx
    from repq.graph.first_layers import bgr_input, uint8_input
    from repq.graph.fp16 import nodes_beyond_fp16, to_fp16
    from repq.graph.grouping import layer_groups
    from repq.graph.insertion import insert_qdq
    from repq.graph.integer_concat import concat_integers
    from repq.graph.layer_join import layer_nodes
    from repq.graph.letterbox import letterbox_input
    from repq.graph.lint_rules import RULES
    from repq.graph.linting import lint
    from repq.graph.maxima import tensor_maxima
    from repq.graph.metadata import GraphMetadata, parse_metadata, read_metadata, write_metadata
    from repq.graph.passes import PASSES, run_passes
    from repq.graph.propagation import propagate_qdq
    from repq.graph.residuals import quantize_residuals
    from repq.graph.scale_merging import merge_scales
    from repq.graph.suppression import nms_output

_HOMES = {
    "activations": ("smooth_activations",),
    "anchors": ("anchor_maxima",),
    "integer_concat": ("concat_integers",),
    "extra_kernels": ("ExtraKernel", "count_qdq"),
    "files": ("load_onnx", "save_onnx"),
    "first_layers": ("bgr_input", "uint8_input"),
    "fp16": ("nodes_beyond_fp16", "to_fp16"),
    "insertion": ("insert_qdq",),
    "layer_join": ("layer_nodes",),
    "letterbox": ("letterbox_input",),
    "linting": ("lint",),
    "lint_rules": ("RULES",),
    "scale_merging": ("merge_scales",),
    "metadata": ("GraphMetadata", "parse_metadata", "read_metadata", "write_metadata"),
    "suppression": ("nms_output",),
    "passes": ("PASSES", "run_passes"),
    "propagation": ("propagate_qdq",),
    "residuals": ("quantize_residuals",),
    "grouping": ("layer_groups",),
    "maxima": ("tensor_maxima",),
}

__all__ = [name for names in _HOMES.values() for name in names]
__getattr__ = lazy_names(__name__, {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names})
