"""Looking at a model without running it on data: its layers, what TensorRT makes of it, what a device would do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.checkpoints import open_checkpoint
from repq.predictor import open_model
from repq.results import Estimate

if TYPE_CHECKING:
    from repq.graph import LintReport


def estimate_graph(onnx: Path, devices: Sequence[str], batches: Sequence[int], *, as_fp16: bool) -> list[Estimate]:
    """Estimate an ONNX file on devices that are not here.

    Args:
        as_fp16: estimate a graph in FP32 as if its float part had been exported as FP16.

    Raises:
        GraphError: the file is no ONNX model, or sizes in it are not known before the run.
        RepqError: a device is unknown, or has no unit for a precision of the graph.
    """
    from repq.estimate import estimate, find_device
    from repq.graph import load_onnx, to_fp16

    found = [find_device(name) for name in devices]
    model = load_onnx(onnx)
    if as_fp16:
        model, _ = to_fp16(model)
    return [estimate(model, device, batch=batch) for device in found for batch in batches]


def lint_graph(onnx: Path) -> LintReport:
    """Look at an ONNX file, repq's or another tool's, through TensorRT's eyes.

    Raises:
        GraphError: the file is no ONNX model.
    """
    from repq.graph import lint, load_onnx

    return lint(load_onnx(onnx))


def describe_model(path: Path, engine: Any, imgsz: tuple[int, int], threads: int | None) -> tuple[dict[str, Any], str]:
    """The layers of a model of any form: as values and as text."""
    from repq.report.text import engine_table, table_text

    if not path.is_dir() and path.suffix != ".onnx" and engine in (None, "torch"):
        from repq.model import count_macs, layer_ids
        from repq.quant import scale_table
        from repq.reparam import fuse

        opened = open_checkpoint(path)
        fused = opened.model if opened.quantized else fuse(opened.model)
        int8 = scale_table(fused) if opened.quantized else {}
        macs = count_macs(fused, imgsz)
        rows = [
            {"layer": layer, "precision": "int8" if layer in int8 else "float32", "macs": macs[layer],
             "weight_shape": list(fused.get_submodule(layer).weight.shape)}  # type: ignore[arg-type]
            for layer in layer_ids(fused)
        ]  # fmt: skip
        values = {"model": fused.spec.name, "classes": fused.spec.num_classes, "names": opened.names,
                  "notes": opened.notes, "layers": rows}  # fmt: skip
        cells = [[str(row[key]) for key in ("layer", "precision", "weight_shape", "macs")] for row in rows]
        title = f"{fused.spec.name}, {fused.spec.num_classes} classes, {imgsz[0]}x{imgsz[1]}"
        return values, table_text(title, ("layer", "precision", "weight", "multiply-adds"), cells, left=2)
    predictor = open_model(path, engine=engine, imgsz=imgsz, threads=threads)
    assert predictor.description is not None
    return predictor.description.values(), engine_table(predictor.description)
