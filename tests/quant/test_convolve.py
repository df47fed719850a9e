"""One step of a quantized convolution is two quantizers and a convolution: to the bit, and backwards to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repq.quant import Quantizer, convolve
from repq.quant import convolution as module
from repq.quant.convolution import QuantConv2d, QuantConvTranspose2d, QuantizedLayer, with_quantizers
from repq.quant.qat import LearnedQuantizer
from repq.quant.scaling import asymmetric_scale, symmetric_scale
from repq.scales import TensorScale

CPU = torch.device("cpu")
LAYERS: dict[str, nn.Conv2d | nn.ConvTranspose2d] = {
    "3x3": nn.Conv2d(6, 4, 3, padding=1),
    "strided without bias": nn.Conv2d(6, 4, 3, 2, 1, bias=False),
    "grouped": nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(6, 6, 5, padding=2, groups=6),
    "depthwise, twice the channels": nn.Conv2d(6, 12, 3, padding=1, groups=6),
    "transposed": nn.ConvTranspose2d(6, 4, 2, 2),
    "transposed, odd size": nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1),
}
INPUTS = {
    "symmetric": symmetric_scale(1.5),
    "asymmetric": asymmetric_scale(-0.4, 2.0),
    "per channel": symmetric_scale(np.linspace(0.5, 2.0, 6, dtype=np.float32), axis=1),
}


def quantized(conv: nn.Conv2d | nn.ConvTranspose2d, inputs: TensorScale, *, learned: bool) -> QuantizedLayer:
    """In float64, with scales a little beside where learning starts."""
    layer = with_quantizers(conv, "conv", "symmetric")
    axis = layer.weight_axis
    amax = np.full(conv.out_channels if axis is not None else (), 0.1, np.float32)  # some weights are clipped
    layer.input_quantizer.set_scale(inputs, CPU)
    layer.weight_quantizer.set_scale(symmetric_scale(amax, axis), CPU)
    if learned:
        layer.input_quantizer = LearnedQuantizer(layer.input_quantizer, batched=True)
        layer.weight_quantizer = LearnedQuantizer(layer.weight_quantizer, batched=False)
        for parameter in (layer.input_quantizer.log_ratio, layer.weight_quantizer.log_ratio):
            parameter.data.fill_(0.02)
    return layer.double()


def values_and_gradients(layer: QuantizedLayer, x: Tensor) -> tuple[bool, dict[str, Tensor]]:
    y = layer(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    leaves = {"x": x, **dict(layer.named_parameters())}
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(y, list(wanted.values()), upstream)
    in_one_step = type(y.grad_fn).__name__ == "_ConvolveBackward"
    return in_one_step, {"y": y.detach(), **dict(zip(wanted, gradients, strict=True))}


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("from_input", [True, False])
def test_one_step_is_quantizers_and_a_convolution(
    kind: str, inputs: str, learned: bool, from_input: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = quantized(LAYERS[kind], INPUTS[inputs], learned=learned)
    x = torch.randn(2, 6, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_(from_input)
    one_step, found = values_and_gradients(layer, x)
    monkeypatch.setattr(module, "is_one_step", lambda _: False)
    again, expected = values_and_gradients(layer, x)
    assert not again
    assert one_step == (inputs != "per channel" or kind.startswith("depthwise"))
    assert found.keys() == expected.keys()
    assert torch.equal(found["y"], expected["y"])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)
    if learned:
        assert found["input_quantizer.log_ratio"].abs().min() > 0


@pytest.mark.parametrize("kind", ["3x3", "transposed"])
def test_gradients_do_not_depend_on_the_form_in_which_the_input_is_kept(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = quantized(LAYERS[kind], INPUTS["asymmetric"], learned=True)
    x = torch.randn(2, 6, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    _, expected = values_and_gradients(layer, x)
    monkeypatch.setattr(convolve, "kept_in_steps", lambda *_: True)  # as on CUDA
    _, found = values_and_gradients(layer, x)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", [QuantConv2d, QuantConvTranspose2d])
def test_split_weights_layers_in_float_and_what_needs_no_gradient_take_the_plain_way(kind: Any) -> None:
    conv = LAYERS["3x3" if kind is QuantConv2d else "transposed"]
    layer = quantized(conv, INPUTS["symmetric"], learned=False)
    assert isinstance(layer, kind)
    assert module.is_one_step(layer)
    with torch.no_grad():
        assert not module.is_one_step(layer)
    layer.fine_quantizer = Quantizer("fine")
    assert not module.is_one_step(layer)
    layer.fine_quantizer = None
    layer.input_quantizer.enabled = False
    assert not module.is_one_step(layer)


def test_the_layout_stays() -> None:
    """A network whose layers answer in turns in one layout and in another is several times slower."""
    layer = quantized(nn.Conv2d(6, 4, 1), INPUTS["symmetric"], learned=True).to(memory_format=torch.channels_last)
    x = torch.randn(2, 6, 1, 1, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    with torch.no_grad():
        expected = layer(x).stride()
    assert layer(x).stride() == expected == (4, 1, 4, 4)
