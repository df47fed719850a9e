"""Put quantizers into a fused model, at the layers' own paths, and read and write their state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from repq.errors import QuantizationError
from repq.layers import LayerId, QuantPlan
from repq.memory import copied
from repq.model.weighted import is_layer
from repq.printable import first_names
from repq.quant.convolution import QuantizedLayer, is_depthwise, is_quantized, set_quantizing, with_quantizers
from repq.quant.quantizer import Quantizer
from repq.recipe import PtqConfig
from repq.scales import LayerScales, ScaleTable, TensorScale

Model = TypeVar("Model", bound=nn.Module)


def insert_quantizers(fused: Model, plan: QuantPlan, config: PtqConfig) -> Model:
    """Return a copy of ``fused`` whose layers of ``plan.int8`` quantize their input and weight.

    Before: ``x -> Conv(w, b)``. After: ``x -> Q -> Conv(Q(w), b)``. The copy has to be calibrated before it runs.

    Raises:
        QuantizationError: a layer of the plan is not in the model, or is no float layer.
    """
    model = copied(fused)
    for layer in plan.int8:
        parent_path, _, name = layer.rpartition(".")
        try:
            parent = model.get_submodule(parent_path)
            module = model.get_submodule(layer)
        except AttributeError:
            raise QuantizationError(
                f"the plan names {layer}, which the model does not have",
                found="a model that is not fused, or a plan for another model",
                fix="fuse the model first (`repq fuse`) and make the plan for it",
            ) from None
        if is_quantized(module) or not is_layer(module):
            raise QuantizationError(
                f"{layer} cannot be quantized", found=type(module).__name__, fix="name float layers (`repq describe`)"
            )
        quantized = with_quantizers(module, layer, config.scheme, config.weight_granularity, config.reduce_range)
        setattr(parent, name, quantized)
    return model


def quantized_layers(model: nn.Module) -> dict[LayerId, QuantizedLayer]:
    """The layers that hold quantizers, in module order."""
    return {LayerId(name): module for name, module in model.named_modules() if is_quantized(module)}


def scale_table(model: nn.Module) -> ScaleTable:
    """The scales of every quantized layer, in module order.

    Raises:
        QuantizationError: a layer has no scale yet; its name is in the message.
    """
    table: dict[LayerId, LayerScales] = {}
    for name, layer in quantized_layers(model).items():
        inputs, weight = layer.input_quantizer.get_scale(), layer.weight_quantizer.get_scale()
        if inputs is None or weight is None:
            raise QuantizationError(
                f"{name} has no scales", found="a model that was not calibrated", fix="calibrate it before use"
            )
        fine = None if layer.fine_quantizer is None else layer.fine_quantizer.get_scale()
        table[name] = LayerScales(input=inputs, weight=weight, fine=fine)
    return table


def apply_scales(model: nn.Module, table: ScaleTable) -> None:
    """Set the scales of every quantized layer, in place. Nothing is set if anything does not fit.

    Raises:
        QuantizationError: the table's layers are not exactly the model's, a scale has another size, or a layer that is
            not depthwise has an input scale per channel.
    """
    layers = quantized_layers(model)
    missing, unknown = layers.keys() - table.keys(), table.keys() - layers.keys()
    if missing or unknown:
        raise QuantizationError(
            "the scales and the model's quantized layers are not the same set",
            found=f"layers without scales: {_listed(missing)}; scales without a layer: {_listed(unknown)}",
            fix="use the scales with the model and plan that they were calibrated for",
        )
    for name, layer in layers.items():
        _check_fit(name, table[name], layer)
    for name, layer in layers.items():
        layer.input_quantizer.set_scale(table[name].input, layer.weight.device)
        layer.weight_quantizer.set_scale(table[name].weight, layer.weight.device)
        set_fine_scale(layer, table[name].fine)


def set_fine_scale(layer: QuantizedLayer, scale: TensorScale | None) -> None:
    """Split the layer's weight into two INT8 tensors, the second with this scale; None: it is not split."""
    layer.fine_quantizer = None
    if scale is not None:
        layer.fine_quantizer = Quantizer(layer.weight_quantizer.name.replace("the weight", "the fine weight", 1))
        layer.fine_quantizer.set_scale(scale, layer.weight.device)


def keep_float_values(model: nn.Module) -> None:
    """Remember weights and biases, about to be corrected, for layers that ``quantizing`` runs in float."""
    for layer in quantized_layers(model).values():
        if layer.spare is None:  # else they were corrected before
            layer.spare = layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()


@contextmanager
def quantizing(model: nn.Module, layers: Iterable[LayerId]) -> Iterator[None]:
    """Within the block exactly ``layers`` quantize and every other layer runs in float: ``()`` is the float model.

    Float layers have the weights from before corrections, where the model remembers them.

    Raises:
        QuantizationError: a layer that holds no quantizers.
    """
    present = quantized_layers(model)
    chosen = set(layers)
    if unknown := chosen - present.keys():
        raise QuantizationError("not all of these layers hold quantizers", found=_listed(unknown))
    before = {name: layer.input_quantizer.enabled for name, layer in present.items()}
    try:
        for name, layer in present.items():
            set_quantizing(layer, name in chosen)
        yield
    finally:
        for name, layer in present.items():
            set_quantizing(layer, before[name])


@contextmanager
def switched(quantizers: Mapping[Quantizer, bool]) -> Iterator[None]:
    """Within the block each quantizer is on or off as it is told; then it is again as it was."""
    before = {quantizer: quantizer.enabled for quantizer in quantizers}
    try:
        for quantizer, enabled in quantizers.items():
            quantizer.enabled = enabled
        yield
    finally:
        for quantizer, enabled in before.items():
            quantizer.enabled = enabled


def _check_fit(name: LayerId, scales: LayerScales, layer: QuantizedLayer) -> None:
    axis = layer.weight_axis
    weights = () if axis is None else (layer.weight.shape[axis],)
    by_channel = scales.input.axis is not None and is_depthwise(layer)
    expected: list[tuple[str, TensorScale, int | None, tuple[int, ...]]] = [
        ("input", scales.input, 1 if by_channel else None, (layer.in_channels,) if by_channel else ()),
        ("weight", scales.weight, axis, weights),
    ]
    if scales.fine is not None:
        expected.append(("fine weight", scales.fine, axis, weights))
    for what, scale, axis, size in expected:
        if scale.axis != axis or scale.scale.shape != size or scale.zero_point.shape != size:
            raise QuantizationError(
                f"the {what} scale of {name} does not fit",
                found=f"axis {scale.axis}, shape {scale.scale.shape}; expected axis {axis}, shape {size}",
                fix="use the scales with the model that they were calibrated for",
            )


def _listed(names: Iterable[str]) -> str:
    return first_names(sorted(names), 8)
