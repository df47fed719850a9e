"""Post-training quantization in one call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from repq.errors import QuantizationError
from repq.layers import QuantPlan
from repq.model import Detector, count_macs, layer_ids
from repq.progress import Progress, silent
from repq.quant.calibration import observe, set_scales
from repq.quant.calibration.observe import Images
from repq.quant.insertion import insert_quantizers
from repq.quant.rows import int8_macs_share, layer_rows
from repq.recipe import PtqConfig
from repq.results import LayerQuantization


@dataclass(frozen=True)
class QuantizedModel:
    """A calibrated model and what is known about it.

    Attributes:
        model: the detector with fake quantization, ready to run.
        plan: which layers quantize.
        layers: one row per layer of the model.
        images: number of calibration images.
        notes: what the user should know.
    """

    model: Detector
    plan: QuantPlan
    layers: tuple[LayerQuantization, ...]
    images: int
    notes: tuple[str, ...]

    @property
    def int8_macs_share(self) -> float:
        """Share of the multiply-adds that run in INT8."""
        return int8_macs_share(self.layers)


def quantize(
    fused: Detector, batches: Iterable[Images], config: PtqConfig, progress: Progress = silent
) -> QuantizedModel:
    """Quantize every layer that ``config.keep_float`` does not name, calibrated on ``batches``.

    The float layers are observed as well, so that their rows show the ranges that they would need.

    Args:
        fused: a fused model; it is not changed.
        batches: network inputs, float32 (B, 3, H, W) in 0..1, all of one size.

    Raises:
        QuantizationError: the model is not fused, there are no images, or values are not finite.
        SelectorError: an entry of ``keep_float`` matches no layer.
    """
    if not fused.deploy:
        raise QuantizationError(
            f"{fused.spec.name} cannot be quantized", found="a model that is not fused", fix="fuse it first"
        )
    layers = layer_ids(fused)
    plan = QuantPlan.keeping_float(layers, config.keep_float)
    model = insert_quantizers(fused, plan, config).eval()
    observation = observe(model, layers, batches, bins=config.calibration.bins, progress=progress)
    notes = set_scales(model, observation, config.calibration)
    rows = layer_rows(model, observation, count_macs(fused, observation.input_size))
    return QuantizedModel(model, plan, rows, observation.images, notes)
