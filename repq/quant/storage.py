"""Quantized checkpoints: a fused checkpoint whose extra tensors are scales and whose metadata says how they came about.

Extra tensors per layer: ``LAYER.input.scale``, ``LAYER.input.zero_point``, ``LAYER.weight.scale`` and
``LAYER.weight.zero_point``, for split weights ``LAYER.fine.scale`` and so on; the zero point's type is the integer
type. The metadata entry ``quantization`` is JSON with the settings and the layers in INT8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from repq.errors import QuantizationError
from repq.layers import LayerId, QuantPlan
from repq.model import Checkpoint, Detector, layer_ids, load_checkpoint, save_checkpoint
from repq.quant.insertion import insert_quantizers
from repq.quant.state import apply_scales, scale_table
from repq.recipe import PtqConfig
from repq.scales import IntegerType, LayerScales, TensorScale

_KEY = "quantization"
_INTEGER_TYPES: dict[torch.dtype, IntegerType] = {torch.int8: "int8", torch.uint8: "uint8"}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    config: PtqConfig
    int8: tuple[str, ...]
    maxima: dict[str, float] = {}


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """A quantized model as read from a file: ready to run, with the settings that it was made with.

    ``maxima``: largest magnitude of each tensor of its float graph on the calibration images, where measured.
    """

    model: Detector
    plan: QuantPlan
    config: PtqConfig
    checkpoint: Checkpoint
    maxima: Mapping[str, float]


def save_quantized(
    path: Path,
    model: Detector,
    config: PtqConfig,
    *,
    names: tuple[str, ...] | None = None,
    metadata: Mapping[str, str] | None = None,
    maxima: Mapping[str, float] | None = None,
) -> None:
    """Write a calibrated model. Weights and scales come back bit for bit.

    Args:
        maxima: see ``QuantizedCheckpoint``.

    Raises:
        QuantizationError: a layer has no scale.
    """
    table = scale_table(model)
    extra: dict[str, Tensor] = {}
    for layer, scales in table.items():
        for role, value in (("input", scales.input), ("weight", scales.weight), ("fine", scales.fine)):
            if value is None:
                continue
            extra[f"{layer}.{role}.scale"] = torch.tensor(value.scale)
            extra[f"{layer}.{role}.zero_point"] = torch.tensor(value.zero_point)
    record = _Record(config=config, int8=tuple(table), maxima=dict(maxima or {}))
    save_checkpoint(
        path, model, names=names, metadata={**(metadata or {}), _KEY: record.model_dump_json()}, extra=extra
    )


def load_quantized(path: Path) -> QuantizedCheckpoint:
    """Read what ``save_quantized`` wrote.

    Raises:
        CheckpointError: the file is no checkpoint.
        QuantizationError: it is a float checkpoint, or its scales do not fit its model.
    """
    return restore_quantized(load_checkpoint(path))


def holds_quantization(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is of a quantized model."""
    return _KEY in checkpoint.metadata


def restore_quantized(checkpoint: Checkpoint) -> QuantizedCheckpoint:
    """Put the quantizers of a loaded checkpoint back into its model.

    Raises:
        QuantizationError: it is a float checkpoint, or its scales do not fit its model.
    """
    if not holds_quantization(checkpoint):
        raise QuantizationError(
            "this checkpoint holds no quantized model", found="float weights only", fix="quantize it first (`repq ptq`)"
        )
    try:
        record = _Record.model_validate_json(checkpoint.metadata[_KEY])
    except ValidationError as error:
        raise QuantizationError("the checkpoint's quantization settings cannot be read", found=str(error)) from None
    chosen = set(record.int8)
    layers = layer_ids(checkpoint.model)
    plan = QuantPlan(
        int8=tuple(LayerId(layer) for layer in record.int8),
        float_=tuple(layer for layer in layers if layer not in chosen),
    )
    model = insert_quantizers(checkpoint.model, plan, record.config).eval()
    apply_scales(model, {layer: _layer_scales(layer, checkpoint.extra) for layer in plan.int8})
    return QuantizedCheckpoint(model, plan, record.config, checkpoint, record.maxima)


def _layer_scales(layer: LayerId, extra: Mapping[str, Tensor]) -> LayerScales:
    return LayerScales(
        input=_tensor_scale(f"{layer}.input", extra),
        weight=_tensor_scale(f"{layer}.weight", extra),
        fine=_tensor_scale(f"{layer}.fine", extra) if f"{layer}.fine.scale" in extra else None,
    )


def _tensor_scale(name: str, extra: Mapping[str, Tensor]) -> TensorScale:
    scale, zero_point = extra.get(f"{name}.scale"), extra.get(f"{name}.zero_point")
    if scale is None or zero_point is None or zero_point.dtype not in _INTEGER_TYPES or scale.dtype != torch.float32:
        raise QuantizationError(
            f"the checkpoint has no usable scale for {name}",
            found="a missing entry or one of another type",
            fix="write the checkpoint again with `repq ptq`",
        )
    values: NDArray[np.float32] = scale.numpy()
    # Two channel axes are in use: the output channels of a Conv's weight and the channels of a depthwise Conv's input.
    axis = None if not values.ndim else 1 if name.endswith(".input") else 0
    return TensorScale(values, zero_point.numpy(), _INTEGER_TYPES[zero_point.dtype], axis)
