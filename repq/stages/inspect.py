"""Looking at a model without running it on data: its layers, what TensorRT makes of it, what a device would do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repq.api.opening import load
from repq.recipe import EngineName
from repq.results import Estimate, LintReport, WeightsDescription


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
    model = load_onnx(onnx, beside=True)
    if as_fp16:
        model, _ = to_fp16(model)
    return [estimate(model, device, batch=batch) for device in found for batch in batches]


def lint_graph(onnx: Path, target: EngineName | None = None) -> LintReport:
    """Look at an ONNX file, repq's or another tool's, with the rules of the runtime that it is for, or of ``target``.

    Raises:
        GraphError: the file is no ONNX model.
    """
    from repq.graph import lint, load_onnx

    return lint(load_onnx(onnx, beside=True), target)


def describe_model(path: Path, engine: Any, imgsz: tuple[int, int], threads: int | None) -> tuple[dict[str, Any], str]:
    """The layers of a model of any form: as values and as text."""
    from repq.report.text import engine_table, layer_table

    model = load(path, engine=engine, imgsz=imgsz, threads=threads)
    size = model.size(imgsz)
    found = model.describe(imgsz=size if model.weights is not None else None)
    if isinstance(found, WeightsDescription):
        title = f"{found.model}, {found.classes} classes, {imgsz[0]}x{imgsz[1]}"
        return found.values(), layer_table(title, [row.values() for row in found.layers])
    return found.values(), engine_table(found)
