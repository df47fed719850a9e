"""Put quantizers into a fused model, at the convolutions' own paths."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from repq.errors import QuantizationError
from repq.layers import LayerId, QuantPlan
from repq.quant.convolution import QuantizedLayer, is_quantized, with_quantizers
from repq.recipe import PtqConfig

Model = TypeVar("Model", bound=nn.Module)


def insert_quantizers(fused: Model, plan: QuantPlan, config: PtqConfig) -> Model:
    """Return a copy of ``fused`` whose layers of ``plan.int8`` quantize their input and weight.

    Before: ``x -> Conv(w, b)``. After: ``x -> Q -> Conv(Q(w), b)``. The copy has to be calibrated before it runs.

    Raises:
        QuantizationError: a layer of the plan is not in the model, or is no convolution.
    """
    model = copy.deepcopy(fused)
    for layer in plan.int8:
        parent_path, _, name = layer.rpartition(".")
        try:
            parent = model.get_submodule(parent_path)
            conv = model.get_submodule(layer)
        except AttributeError:
            raise QuantizationError(
                f"the plan names {layer}, which the model does not have",
                found="a model that is not fused, or a plan for another model",
                fix="fuse the model first (`repq fuse`) and make the plan for it",
            ) from None
        if is_quantized(conv) or not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
            raise QuantizationError(
                f"{layer} cannot be quantized", found=type(conv).__name__, fix="name float Conv or ConvTranspose layers"
            )
        setattr(parent, name, with_quantizers(conv, layer, config.scheme))
    return model


def quantized_layers(model: nn.Module) -> dict[LayerId, QuantizedLayer]:
    """The convolutions that hold quantizers, in module order."""
    return {LayerId(name): module for name, module in model.named_modules() if is_quantized(module)}
