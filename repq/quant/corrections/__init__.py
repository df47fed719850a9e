"""What can be done to a model beside choosing ranges, so that INT8 costs it less; one method a module.

Each takes a model, changes it in place and leaves a model of the same layers at the same paths.
"""

from repq.quant.corrections.equalize import Chains, equalize, find_chains
from repq.quant.corrections.outputs import channel_moments, correct_outputs
from repq.quant.corrections.rounding import adapt_rounding, best_rounding, input_grams
from repq.quant.corrections.split import split_layers, weight_snr_db

__all__ = [
    "Chains",
    "adapt_rounding",
    "best_rounding",
    "channel_moments",
    "correct_outputs",
    "equalize",
    "find_chains",
    "input_grams",
    "split_layers",
    "weight_snr_db",
]
