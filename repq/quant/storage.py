"""Quantized checkpoints: a fused checkpoint whose extra tensors are scales and whose metadata says how they came about.

Extra tensors per layer: ``LAYER.input.scale``, ``LAYER.input.zero_point``, ``LAYER.weight.scale`` and
``LAYER.weight.zero_point``, for split weights ``LAYER.fine.scale`` and so on; the zero point's type is the integer
type. The metadata entry ``quantization`` is JSON with the settings and the layers in INT8.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from repq.errors import QuantizationError
from repq.layers import LayerId, QuantPlan
from repq.log import Log, quiet
from repq.model import Checkpoint, Detector, layer_ids, load_checkpoint, load_graph, save_checkpoint
from repq.preprocessing import preset
from repq.quant.state import apply_scales, insert_quantizers, quantized_layers, scale_table
from repq.recipe import DeployConfig, GraphConfig, PtqConfig
from repq.scales import IntegerType, LayerScales, TensorScale

_KEY = "quantization"
_INTEGER_TYPES: dict[torch.dtype, IntegerType] = {torch.int8: "int8", torch.uint8: "uint8"}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    config: PtqConfig
    int8: tuple[str, ...]
    maxima: dict[str, float] = {}
    groups: tuple[tuple[LayerId, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Weights:
    """A detector with its weights, ready to run: float, or quantized and simulating INT8.

    Attributes:
        model: in eval mode.
        names: class names, where they are known.
        config: the settings that it was quantized with; None: it is float.
        maxima: largest magnitude of each tensor of the float graph on the calibration images, where measured.
        groups: layers whose inputs were declared to share one scale.
        notes: what was dropped, chosen or converted on the way in.
        metadata: further text of a file that repq wrote.
    """

    model: Detector
    names: tuple[str, ...] | None = None
    config: PtqConfig | None = None
    maxima: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[tuple[LayerId, ...], ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        return self.config is not None

    def with_thresholds(self, asked: DeployConfig, label: str, log: Log = quiet) -> Weights:
        """The same weights, of which other boxes count where they are used.

        Args:
            label: the file; where somebody set other thresholds in it, both values are logged.
        """
        model = copy.copy(self.model)
        model.spec = replace(model.spec, thresholds=model.spec.thresholds.changed(asked.model_dump(), label, log))
        return replace(self, model=model)

    @property
    def plan(self) -> QuantPlan:
        """Which layers of a fused model quantize."""
        quantized = quantized_layers(self.model)
        return QuantPlan(tuple(quantized), tuple(layer for layer in layer_ids(self.model) if layer not in quantized))


def save_quantized(
    path: Path,
    model: Detector,
    config: PtqConfig,
    *,
    names: tuple[str, ...] | None = None,
    metadata: Mapping[str, str] | None = None,
    maxima: Mapping[str, float] | None = None,
    groups: Iterable[Iterable[LayerId]] = (),
) -> None:
    """Write a calibrated model. Weights and scales come back bit for bit.

    Args:
        maxima, groups: see ``Weights``.

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
    record = _Record(config=config, int8=tuple(table), maxima=dict(maxima or {}), groups=tuple(map(tuple, groups)))
    save_checkpoint(
        path, model, names=names, metadata={**(metadata or {}), _KEY: record.model_dump_json()}, extra=extra
    )


def load_weights(path: Path, imgsz: tuple[int, int] | None = None, graph: GraphConfig = GraphConfig()) -> Weights:
    """Read a float or quantized checkpoint, or a float ONNX file.

    Args:
        imgsz: of an ONNX file that takes any size.
        graph: what the file does not say of itself.

    Raises:
        CheckpointError: the file cannot be read, is unsafe, or fits no known model.
        GraphError: the ONNX file cannot be used.
        QuantizationError: its scales do not fit its model.
    """
    checkpoint = load_graph(path, imgsz, graph) if path.suffix == ".onnx" else load_checkpoint(path)
    if graph.preset is not None:
        checkpoint.model.spec = replace(checkpoint.spec, preprocessing=preset(graph.preset))
    metadata = {key: value for key, value in checkpoint.metadata.items() if key != _KEY}
    float_ = Weights(checkpoint.model, checkpoint.names, notes=checkpoint.notes, metadata=metadata)
    return _quantized(float_, checkpoint) if _KEY in checkpoint.metadata else float_


def _quantized(float_: Weights, checkpoint: Checkpoint) -> Weights:
    """Put the quantizers of a checkpoint into its model."""
    try:
        record = _Record.model_validate_json(checkpoint.metadata[_KEY])
    except ValidationError as error:
        raise QuantizationError("the checkpoint's quantization settings cannot be read", found=str(error)) from None
    int8, chosen = tuple(LayerId(layer) for layer in record.int8), set(record.int8)
    plan = QuantPlan(int8, tuple(layer for layer in layer_ids(float_.model) if layer not in chosen))
    model = insert_quantizers(float_.model, plan, record.config).eval()
    axes = {layer: module.weight_axis for layer, module in quantized_layers(model).items()}
    apply_scales(model, {layer: _layer_scales(layer, axes[layer], checkpoint.extra) for layer in int8})
    return replace(float_, model=model, config=record.config, maxima=record.maxima, groups=record.groups)


def _layer_scales(layer: LayerId, axis: int | None, extra: Mapping[str, Tensor]) -> LayerScales:
    """The scales of a layer whose weight has its output channels along ``axis``."""
    return LayerScales(
        input=_tensor_scale(f"{layer}.input", 1, extra),  # the channels that a depthwise convolution reads
        weight=_tensor_scale(f"{layer}.weight", axis, extra),
        fine=_tensor_scale(f"{layer}.fine", axis, extra) if f"{layer}.fine.scale" in extra else None,
    )


def _tensor_scale(name: str, axis: int | None, extra: Mapping[str, Tensor]) -> TensorScale:
    scale, zero_point = extra.get(f"{name}.scale"), extra.get(f"{name}.zero_point")
    if scale is None or zero_point is None or zero_point.dtype not in _INTEGER_TYPES or scale.dtype != torch.float32:
        raise QuantizationError(
            f"the checkpoint has no usable scale for {name}",
            found="a missing entry or one of another type",
            fix="write the checkpoint again with `repq ptq`",
        )
    values: NDArray[np.float32] = scale.numpy()
    return TensorScale(values, zero_point.numpy(), _INTEGER_TYPES[zero_point.dtype], axis if values.ndim else None)
