"""ONNX graph passes: each takes a model and returns a new one. Nothing here knows torch."""

from repq.graph.bgr_input import bgr_input
from repq.graph.extra_kernels import ExtraKernel, QdqCounts, count_qdq, predict_extra_kernels
from repq.graph.files import load_onnx, save_onnx
from repq.graph.for_serving import for_serving
from repq.graph.fp16 import Fp16Report, nodes_beyond_fp16, to_fp16
from repq.graph.insert_qdq import insert_qdq
from repq.graph.layer_nodes import layer_nodes
from repq.graph.letterbox_input import letterbox_input
from repq.graph.lint import RULES, LintedLayer, LintReport, lint
from repq.graph.lint_scan import Finding
from repq.graph.merge_scales import MergedGroup, MergeReport, merge_scales
from repq.graph.metadata import GraphMetadata, parse_metadata, read_metadata, write_metadata
from repq.graph.nms_output import nms_output
from repq.graph.propagate_qdq import propagate_qdq
from repq.graph.quantize_residuals import ResidualReport, quantize_residuals, residual_operands
from repq.graph.scale_groups import layer_groups, scale_groups
from repq.graph.tensor_maxima import tensor_maxima
from repq.graph.uint8_input import uint8_input

__all__ = [
    "RULES",
    "ExtraKernel",
    "Finding",
    "Fp16Report",
    "GraphMetadata",
    "LintReport",
    "LintedLayer",
    "MergeReport",
    "MergedGroup",
    "QdqCounts",
    "ResidualReport",
    "bgr_input",
    "count_qdq",
    "for_serving",
    "insert_qdq",
    "layer_groups",
    "layer_nodes",
    "letterbox_input",
    "lint",
    "load_onnx",
    "merge_scales",
    "nms_output",
    "nodes_beyond_fp16",
    "parse_metadata",
    "predict_extra_kernels",
    "propagate_qdq",
    "quantize_residuals",
    "read_metadata",
    "residual_operands",
    "save_onnx",
    "scale_groups",
    "tensor_maxima",
    "to_fp16",
    "uint8_input",
    "write_metadata",
]
