"""What a checkpoint holds."""

from __future__ import annotations

from repq.results.base import Result


class LayerDescription(Result):
    """One convolution of the fused model."""

    layer: str
    precision: str  # int8 (simulated), float32
    macs: int  # multiply-adds for one image
    weight_shape: tuple[int, ...]


class WeightsDescription(Result):
    """A checkpoint, layer by layer, as it is deployed."""

    model: str
    classes: int
    names: tuple[str, ...] | None
    notes: tuple[str, ...]
    layers: tuple[LayerDescription, ...]
