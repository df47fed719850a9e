"""Quantization of fused models: quantizers, where they go, how their scales are found, and how they are stored.

The way through: ``insert_quantizers`` -> ``calibrate`` -> ``scale_table``; ``quantize`` is all of it in one call. Names
load when they are first used: the lists of calibrators and corrections are read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repq.lazy import lazy_names

if TYPE_CHECKING:
    from repq.quant.calibration.observation import calibrate as calibrate
    from repq.quant.calibration.observation import observe as observe
    from repq.quant.calibration.observation import set_scales as set_scales
    from repq.quant.choosing import quantize_at_best as quantize_at_best
    from repq.quant.choosing import quantize_in_steps as quantize_in_steps
    from repq.quant.convolution import QuantConv2d as QuantConv2d
    from repq.quant.convolution import QuantConvTranspose2d as QuantConvTranspose2d
    from repq.quant.ptq import QuantizedModel as QuantizedModel
    from repq.quant.ptq import on_device_of as on_device_of
    from repq.quant.ptq import quantize as quantize
    from repq.quant.quantizer import Quantizer as Quantizer
    from repq.quant.quantizer import fake_quantize as fake_quantize
    from repq.quant.rows import extra_macs_share as extra_macs_share
    from repq.quant.state import apply_scales as apply_scales
    from repq.quant.state import insert_quantizers as insert_quantizers
    from repq.quant.state import quantized_layers as quantized_layers
    from repq.quant.state import quantizing as quantizing
    from repq.quant.state import scale_table as scale_table
    from repq.quant.storage import Weights as Weights
    from repq.quant.storage import load_weights as load_weights
    from repq.quant.storage import save_quantized as save_quantized

_NAMES = {
    "calibration.observation": "calibrate observe set_scales",
    "choosing": "quantize_at_best quantize_in_steps",
    "convolution": "QuantConv2d QuantConvTranspose2d",
    "ptq": "QuantizedModel on_device_of quantize",
    "quantizer": "Quantizer fake_quantize",
    "rows": "extra_macs_share",
    "state": "apply_scales insert_quantizers quantized_layers quantizing scale_table",
    "storage": "Weights load_weights save_quantized",
}
__getattr__ = lazy_names(
    __name__, {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names.split()}
)
