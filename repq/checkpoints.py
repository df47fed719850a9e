"""Checkpoints of any kind, opened for use: as a model that runs, and as an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from repq.errors import CheckpointError
from repq.log import Log, quiet
from repq.recipe import ExportConfig

if TYPE_CHECKING:
    from onnx import ModelProto

    from repq.model import Detector


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint as a model that runs; ``quantized`` if it carries scales and simulates INT8.

    ``maxima``: largest magnitude of each tensor on the calibration images, where a quantized one carries them.
    """

    model: Detector
    names: tuple[str, ...] | None
    notes: tuple[str, ...]
    quantized: bool
    maxima: Mapping[str, float] = field(default_factory=dict)


def open_checkpoint(path: Path) -> OpenedCheckpoint:
    """Read a float or quantized checkpoint.

    Raises:
        CheckpointError: the file cannot be read, is unsafe, or fits no known model.
        QuantizationError: its scales do not fit its model.
    """
    from repq.model import load_checkpoint
    from repq.quant import holds_quantization, restore_quantized

    checkpoint = load_checkpoint(path)
    if holds_quantization(checkpoint):
        restored = restore_quantized(checkpoint)
        return OpenedCheckpoint(restored.model, checkpoint.names, checkpoint.notes, True, restored.maxima)
    return OpenedCheckpoint(checkpoint.model, checkpoint.names, checkpoint.notes, False)


def open_float(path: Path, log: Log = quiet) -> OpenedCheckpoint:
    """Read a float checkpoint and log its notes.

    Raises:
        CheckpointError: the file cannot be read, or is quantized already.
    """
    opened = open_checkpoint(path)
    for note in opened.notes:
        log(f"{path.name}: {note}")
    if opened.quantized:
        raise CheckpointError(
            f"{path} is quantized already", fix="start from the float checkpoint that it was made from"
        )
    return opened


def to_onnx(opened: OpenedCheckpoint, imgsz: tuple[int, int], config: ExportConfig) -> ModelProto:
    """Export a quantized checkpoint with Q/DQ nodes, any other in float, fused on the way.

    Raises:
        RepqError: the size does not fit the model.
    """
    from repq.export import export_float, export_quantized
    from repq.reparam import fuse

    if opened.quantized:
        return export_quantized(opened.model, imgsz, config, names=opened.names, maxima=opened.maxima)
    return export_float(fuse(opened.model), imgsz, config, names=opened.names)
