"""Partial forward passes and the measures that are made of them, against whole forward passes."""

from __future__ import annotations

import pytest
import torch
from few_blocks import few_blocks
from torch import Tensor, nn

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.machine.torch_device import network_input
from repq.model import Detector, build, layer_ids
from repq.quant import quantize, quantized_layers, quantizing
from repq.quant.sensitivity.layer_errors import end_to_end_similarity, local_errors
from repq.quant.sensitivity.sweep import UNCHANGED, changed_outputs
from repq.quant.similarity import ErrorSums, similarity
from repq.quant.tape import record
from repq.recipe import CalibrationConfig, PtqConfig


def images(count: int = 2, seed: int = 0) -> Tensor:
    return network_input(torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed)), "cpu")


def calibrated(name: str, scheme: str = "symmetric") -> Detector:
    torch.manual_seed(0)
    fused = build(few_blocks(name, 3), deploy=True).eval()
    for module in fused.modules():  # activations that keep their size: a change of any layer reaches the outputs
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            inputs = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            nn.init.normal_(module.weight, 0, (2 / inputs) ** 0.5)
    config = PtqConfig(scheme=scheme, calibration=CalibrationConfig(method="max", bins=128))  # type: ignore[arg-type]
    return quantize(fused, [images(4, seed=1)], config).model


@pytest.fixture(scope="module", params=[("yolov6lite_s", "symmetric"), ("yolov6n", "asymmetric")], ids=["lite", "n"])
def model(request: pytest.FixtureRequest) -> Detector:
    return calibrated(*request.param)


def whole(model: Detector, int8: set[LayerId], inputs: Tensor) -> tuple[Tensor, ...]:
    features: list[Tensor] = []
    hook = model.detect.register_forward_pre_hook(lambda _, given: features.extend(given[0]))
    with torch.no_grad(), quantizing(model, int8):
        detections = model(inputs)
    hook.remove()
    return (*features, detections)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("change", ["only_int8", "only_float"])
def test_replay_equals_a_whole_forward_pass_bit_for_bit(
    model: Detector, change: str, memory: torch.memory_format
) -> None:
    planes = memory is torch.contiguous_format
    layers = layer_ids(model) if planes else layer_ids(model)[::2]
    items = (UNCHANGED, *layers)
    inputs = images().contiguous(memory_format=memory)
    differing = 0
    reference: tuple[Tensor, ...] = ()
    for item, outputs in changed_outputs(model, change, items, inputs):  # type: ignore[arg-type]
        chosen = {item} - {UNCHANGED}
        expected = whole(model, chosen if change == "only_int8" else set(layer_ids(model)) - chosen, inputs)
        compared = (*outputs[:-3], outputs[-1])  # boxes and scores are parts of the detections
        assert all(torch.equal(a, b) for a, b in zip(compared, expected, strict=True)), item
        reference = reference or outputs
        differing += not torch.equal(outputs[-1], reference[-1])
    least = 0.9 if planes else 0.85  # sums in another order round more of them away
    assert differing > least * len(layers)  # the comparison above is not one of equal things
    assert all(quantizer.enabled for layer in quantized_layers(model).values() for quantizer in layer.children())


def test_several_layers_may_change_at_once(model: Detector) -> None:
    layers, inputs = layer_ids(model), images()
    modules = quantized_layers(model)
    with quantizing(model, ()):
        tape = record(lambda x: (*model.features(x), model(x)), inputs, modules, layers)
    chosen = set(layers[1::7])
    with torch.no_grad(), quantizing(model, chosen):
        outputs = tape.replay(chosen)
    assert all(torch.equal(a, b) for a, b in zip(outputs, whole(model, chosen, inputs), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tape.outputs, whole(model, set(), inputs), strict=True))


def test_only_what_comes_after_the_layer_runs() -> None:
    model = calibrated("yolov6n")
    layers, ran = layer_ids(model), []
    with quantizing(model, ()):
        tape = record(lambda x: (model(x),), images(), quantized_layers(model), layers)
    hooks = [
        m.register_forward_hook(lambda m, i, o, name=n: ran.append(name)) for n, m in quantized_layers(model).items()
    ]
    with torch.no_grad():
        tape.replay({layers[-1]})
    assert ran == [layers[-1]]
    ran.clear()
    with torch.no_grad():
        tape.replay({layers[0]})
    assert set(ran) == set(layers)
    for hook in hooks:
        hook.remove()


def test_an_operator_in_place_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True))
    with pytest.raises(QuantizationError, match="in place"):
        record(lambda x: (net(x),), torch.ones(1, 1, 2, 2), {LayerId("0"): net[0]}, [LayerId("0")])


def test_the_measures_are_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3, 50, dtype=torch.float64, generator=generator)
    q = y + 1e-4 * torch.randn(3, 50, dtype=torch.float64, generator=generator)
    moments = ErrorSums()
    for a, b in zip(y, q, strict=True):
        moments.add(a, b)
    found = similarity([moments])
    noise = (q - y).square()
    assert found.mse == pytest.approx(float(noise.mean()), rel=1e-12)
    assert found.snr_db == pytest.approx(float(10 * torch.log10(y.square().sum() / noise.sum())), rel=1e-12)
    cosine = torch.nn.functional.cosine_similarity(y.flatten(), q.flatten(), dim=0)
    assert found.cosine == pytest.approx(float(cosine), abs=1e-15)
    equal = ErrorSums()
    equal.add(y, y)
    assert similarity([equal]).model_dump() == {"mse": 0.0, "snr_db": float("inf"), "cosine": 1.0}


def test_local_measures_of_one_pass_are_those_of_each_layer_alone(model: Detector) -> None:
    layers, batch = layer_ids(model), images()
    found = local_errors(model, layers, [batch, images(seed=3)])
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        expected = ErrorSums()
        for inputs in (batch, images(seed=3)):
            seen: list[tuple[Tensor, Tensor]] = []
            module = quantized_layers(model)[layer]
            hook = module.register_forward_hook(lambda m, i, o, seen=seen: seen.append((i[0], o)))
            whole(model, set(), inputs)
            hook.remove()
            with torch.no_grad():
                expected.add(seen[0][1], module(seen[0][0]))
        assert found[layer] == expected


def test_end_to_end_measures_compare_the_outputs() -> None:
    model = calibrated("yolov6lite_s")
    layers, batch = layer_ids(model), images()
    backbone, head = layers[3], layers[-1]
    assert head.startswith("detect.")
    found = end_to_end_similarity(model, (backbone, head), [batch[:1], batch[1:]])
    float_, changed = whole(model, set(), batch), whole(model, {backbone}, batch)
    ratios = [float((b - a).square().sum() / a.square().sum()) for a, b in zip(float_[:-1], changed[:-1], strict=True)]
    neck, _ = found[backbone]
    assert 10 ** (-neck.snr_db / 10) == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)  # float32 sums
    assert found[head][0].snr_db == float("inf") and found[head][1].snr_db < 200


def test_values_that_are_not_finite_name_the_layer() -> None:
    model = calibrated("yolov6n")
    layers = layer_ids(model)
    broken = quantized_layers(model)[layers[5]]
    broken.bias.data[0] = float("nan")
    with pytest.raises(QuantizationError, match=layers[5].replace(".", r"\.")):
        local_errors(model, layers, [images()])
    with pytest.raises(QuantizationError, match="not finite"):
        end_to_end_similarity(model, layers[:1], [images()])
    with pytest.raises(QuantizationError, match="no images"):
        local_errors(model, layers, [])
