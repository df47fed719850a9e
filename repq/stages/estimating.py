"""Estimates as a stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repq.results import Estimate


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
