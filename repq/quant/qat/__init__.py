"""Quantization-aware training: a calibrated model learns to answer as its float model does."""

from repq.quant.qat.learned import LearnedQuantizer, fix_scales, learn_scales
from repq.quant.qat.training import QatOutcome, demand_labels, train_quantized
from repq.quant.qat.update import QatUpdater

__all__ = [
    "LearnedQuantizer",
    "QatOutcome",
    "QatUpdater",
    "demand_labels",
    "fix_scales",
    "learn_scales",
    "train_quantized",
]
