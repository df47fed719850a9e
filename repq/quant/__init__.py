"""Quantization of fused models: quantizers, where they go, how their scales are found, and how they are stored.

The way through: ``insert_quantizers`` -> ``calibrate`` -> ``scale_table``; ``quantize`` is all of it in one call.
"""

from repq.quant.calibration import Calibration, Histogram, Observation, activation_range, calibrate, observe, set_scales
from repq.quant.choosing import quantize_at_best, quantize_in_steps
from repq.quant.convolution import QuantConv2d, QuantConvTranspose2d, QuantizedLayer
from repq.quant.insertion import insert_quantizers, quantized_layers
from repq.quant.ptq import QuantizedModel, on_device_of, quantize
from repq.quant.quantizer import Quantizer, fake_quantize
from repq.quant.rows import extra_macs_share, int8_macs_share, layer_rows
from repq.quant.scaling import Scheme, asymmetric_scale, range_scale, symmetric_scale, weight_scale
from repq.quant.state import apply_scales, quantizing, scale_table
from repq.quant.storage import Weights, load_quantized, load_weights, save_quantized

__all__ = [
    "Calibration",
    "Histogram",
    "Observation",
    "QuantConv2d",
    "QuantConvTranspose2d",
    "QuantizedLayer",
    "QuantizedModel",
    "Quantizer",
    "Scheme",
    "Weights",
    "activation_range",
    "apply_scales",
    "asymmetric_scale",
    "calibrate",
    "extra_macs_share",
    "fake_quantize",
    "insert_quantizers",
    "int8_macs_share",
    "layer_rows",
    "load_quantized",
    "load_weights",
    "observe",
    "on_device_of",
    "quantize",
    "quantize_at_best",
    "quantize_in_steps",
    "quantized_layers",
    "quantizing",
    "range_scale",
    "save_quantized",
    "scale_table",
    "set_scales",
    "symmetric_scale",
    "weight_scale",
]
