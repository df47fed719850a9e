"""Export and lint as stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.exporting import write_onnx
from repq.recipe import ExportConfig
from repq.results import ExportReport

if TYPE_CHECKING:
    from repq.graph import LintReport


def export_checkpoint(
    model: Path,
    out: Path,
    imgsz: tuple[int, int],
    config: ExportConfig,
    *,
    maxima_from: Path | None = None,
) -> ExportReport:
    """Write a checkpoint as ONNX: Q/DQ nodes for a quantized one, plain float else (fused on the way).

    Args:
        maxima_from: a quantized checkpoint of the same model, whose activation maxima keep a float one in FP16 from
            overflowing; a quantized ``model`` carries its own.

    Raises:
        RepqError: the checkpoint cannot be read, or the size does not fit the model.
    """
    from repq.quant import load_weights

    maxima = None if maxima_from is None else load_weights(maxima_from).maxima
    return write_onnx(load_weights(model), out, imgsz, config, maxima)


def lint_graph(onnx: Path) -> LintReport:
    """Look at an ONNX file, repq's or another tool's, through TensorRT's eyes.

    Raises:
        GraphError: the file is no ONNX model.
    """
    from repq.graph import lint, load_onnx

    return lint(load_onnx(onnx))
