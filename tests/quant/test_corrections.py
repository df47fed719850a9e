"""What corrections promise: equalization changes no output, rounding never does worse than nearest, and so on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper
from small_detectors import SIZE, images, uneven
from torch import Tensor, nn
from torch.nn import functional

from repq.errors import QuantizationError
from repq.export import export_float
from repq.graph import lint, propagate_qdq
from repq.graph.insertion import insert_qdq
from repq.layers import LayerId
from repq.model import Detector
from repq.quant import (
    QuantConv2d,
    apply_scales,
    extra_macs_share,
    load_weights,
    quantize,
    quantized_layers,
    quantizing,
    save_quantized,
    scale_table,
)
from repq.quant.convolution import is_depthwise, quantized_weight
from repq.quant.corrections.equalize import equalize, find_chains
from repq.quant.corrections.outputs import channel_moments, correct_outputs
from repq.quant.corrections.rounding import POSITIONS, adapt_rounding, best_rounding, input_grams, sampled_patches
from repq.quant.corrections.split import split_layers
from repq.quant.scaling import channel_scale
from repq.recipe import CalibrationConfig, CorrectionConfig, PtqConfig
from repq.scales import LayerScales, TensorScale


@pytest.fixture(scope="module", params=["yolov6n_v2", "yolov6lite_s"])
def fused(request: pytest.FixtureRequest) -> Detector:
    return uneven(request.param)


@pytest.fixture(scope="module")
def lite() -> Detector:
    return uneven("yolov6lite_s")


@pytest.fixture(scope="module")
def float_graph(lite: Detector) -> ModelProto:
    return export_float(lite, SIZE)


def exported(float_graph: ModelProto, model: Detector) -> ModelProto:
    """What ``export_quantized`` does with the float graph, which takes seconds, made but once."""
    graph = ModelProto()
    graph.CopyFrom(float_graph)
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    for tensor in graph.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return propagate_qdq(insert_qdq(graph, scale_table(model)))


MANY = 4
"""Images for means to 1 %: with fewer values per channel the order of float32 sums shows."""


@pytest.fixture
def _plain_sums() -> Iterator[None]:
    """Convolutions without oneDNN, whose kernels sum in an order that each kind of CPU has for itself."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def quantized(fused: Detector, scheme: str = "symmetric", count: int = 2, **corrections: object) -> Detector:
    config = PtqConfig(
        scheme=scheme,  # type: ignore[arg-type]
        calibration=CalibrationConfig(method="max", bins=256),
        correct=CorrectionConfig(**corrections),  # type: ignore[arg-type]
    )
    return quantize(fused, [images(count)], config).model


def compute(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def inputs_of(model: nn.Module, layers: list[LayerId], x: Tensor) -> dict[LayerId, Tensor]:
    found: dict[LayerId, Tensor] = {}
    handles = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _m, args, layer=layer: found.update({layer: args[0]})
        )
        for layer in layers
    ]
    compute(model, x)
    for handle in handles:
        handle.remove()
    return found


def outputs_of(model: nn.Module, x: Tensor) -> dict[LayerId, Tensor]:
    found: dict[LayerId, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _args, y, name=name: found.update({LayerId(name): y.clone()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]
    compute(model, x)
    for handle in handles:
        handle.remove()
    return found


# --- equalization


def test_equalization_changes_no_output(fused: Detector) -> None:
    chains = find_chains(fused)
    assert chains.pairs
    equalized = copy.deepcopy(fused)
    equalize(equalized, chains, [images()])
    before, after = compute(fused, images(2, seed=1)), compute(equalized, images(2, seed=1))
    assert float((before - after).abs().max()) < 1e-5 * float(before.abs().max())
    changed = [after for _, after in chains.pairs]
    same = [torch.equal(equalized.get_submodule(name).weight, fused.get_submodule(name).weight) for name in changed]  # type: ignore[arg-type]
    assert sum(same) < len(same) / 4, "only layers whose inputs are all dead have nothing to even out"


def test_equalization_evens_out_the_channels(fused: Detector) -> None:
    chains = find_chains(fused)
    equalized = copy.deepcopy(fused)
    equalize(equalized, chains, [images()])
    layers = [after for _, after in chains.pairs]

    def spread(model: Detector) -> float:
        found = inputs_of(model, layers, images())
        largest = [x.abs().amax((0, 2, 3)).numpy() for x in found.values()]
        return float(np.mean([np.std(np.log(values[values > 0])) for values in largest]))

    assert spread(equalized) < 0.9 * spread(fused)


def test_a_chain_is_two_layers_and_a_relu_that_nobody_else_reads() -> None:
    plain, lite = find_chains(uneven("yolov6n_v2")), find_chains(uneven("yolov6lite_s"))
    assert (LayerId("backbone.stem.rbr_reparam"), LayerId("backbone.ERBlock_2.0.rbr_reparam")) in plain.pairs
    assert any("silu" in reason for reason in plain.refused.values())
    assert any("others read" in reason for reason in plain.refused.values())
    # Hardswish is not positively homogeneous; a depthwise layer without activation before a pointwise one is linear
    assert "hardswish" in lite.refused[LayerId("backbone.lite_effiblock_1.0.conv_pw_3.block.conv")]
    first = LayerId("backbone.lite_effiblock_1.0.conv_dw_1.block.conv")
    assert (first, LayerId("backbone.lite_effiblock_1.0.conv_1.block.conv")) in lite.pairs
    model = uneven("yolov6n_v2")
    assert f"{len(plain.pairs)} layers are equalized" in plain.summary()
    assert "silu lies before it" in plain.summary()
    paired = {after for _, after in plain.pairs}
    assert paired.isdisjoint(plain.refused)
    assert paired | set(plain.refused) == set(outputs_of(model, images(1)))


# --- moments of the outputs


@pytest.mark.usefixtures("_plain_sums")
@pytest.mark.parametrize("what", ["mean", "moments"])
def test_correction_brings_every_channel_to_its_float_mean(fused: Detector, what: str) -> None:
    x = images(MANY)
    wanted = {layer: channel_moments(y) for layer, y in outputs_of(fused, x).items()}
    plain, corrected = quantized(fused, count=MANY), quantized(fused, count=MANY, outputs=what)
    before, after = outputs_of(plain, x), outputs_of(corrected, x)
    for layer, (mean, variance) in wanted.items():
        scale = float(variance.mean().sqrt()) + float(mean.abs().mean())
        errors = [(channel_moments(y[layer])[0] - mean).abs() for y in (before, after)]
        # float32 sums in another order tip a few values over an edge; hence not zero
        assert float(errors[1].norm()) <= float(errors[0].norm()) + 1e-3 * scale
        assert float(errors[1].max()) < 1e-2 * scale


def test_moments_leave_the_integers_alone(fused: Detector) -> None:
    plain, corrected = quantized(fused), quantized(fused, outputs="moments")
    for layer, module in quantized_layers(plain).items():
        other = corrected.get_submodule(layer)
        integers = [quantized_weight(m) / _aligned(m) for m in (module, other)]
        same = (integers[0].round() == integers[1].round()).float().mean()
        assert float(same) > 0.9999  # a weight halfway between two integers may fall to either side


@pytest.mark.parametrize("rounding", ["nearest", "adaptive"])
def test_a_corrected_model_still_holds_the_float_model(fused: Detector, rounding: str) -> None:
    model, x = quantized(fused, rounding=rounding, outputs="moments"), images(2)
    before = compute(model, x)
    with quantizing(model, ()):
        torch.testing.assert_close(compute(model, x), compute(fused, x), rtol=0, atol=0)
        with quantizing(model, list(quantized_layers(model))):
            torch.testing.assert_close(compute(model, x), before, rtol=0, atol=0)
    torch.testing.assert_close(compute(model, x), before, rtol=0, atol=0)


@pytest.mark.usefixtures("_plain_sums")
def test_correcting_twice_is_correcting_once(lite: Detector) -> None:
    model = quantized(lite, count=MANY, outputs="mean")
    again = copy.deepcopy(model)
    correct_outputs(again, lite, images(MANY), "mean")
    for layer, module in quantized_layers(model).items():
        bias, second = module.bias, again.get_submodule(layer).bias
        assert bias is not None
        assert isinstance(second, Tensor)
        # each layer's mean is right already; what is left is the order of float32 sums, and what it tips over an edge
        assert float((bias - second).detach().abs().max()) < 1e-2 * float(bias.detach().abs().max())


def _aligned(layer: nn.Module) -> Tensor:
    scale = layer.weight_quantizer.scale  # type: ignore[union-attr]
    assert isinstance(scale, Tensor)
    return scale.view(-1, 1, 1, 1) if scale.ndim else scale


# --- rounding


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6), groups=st.integers(1, 3), width=st.integers(1, 12), samples=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_adapted_rounding_is_next_to_the_weight_and_never_worse(
    rows: int, groups: int, width: int, samples: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * rows, width, 1, 1, generator=generator)
    scale = weight.abs().amax((1, 2, 3)) / 20
    mixed = torch.randn(groups, width, width, generator=generator)
    x = mixed @ torch.randn(groups, width, samples, generator=generator)
    gram = x @ x.transpose(1, 2)
    found = best_rounding(weight, scale, gram)
    steps = scale.view(-1, 1, 1, 1)
    nearest = (weight / steps).round() * steps
    assert float(((found - weight).abs() / steps).max()) <= 1 + 1e-5, "floor or ceiling"
    assert float((found / steps - (found / steps).round()).abs().max()) < 1e-4

    def error(rounded: Tensor) -> float:
        e = (rounded - weight).double().reshape(groups, rows, width)
        return float((e @ x.double()).square().sum())

    assert error(found) <= error(nearest) * (1 + 1e-5)
    assert torch.equal(best_rounding(found, scale, gram), found), "what is on the grid stays"


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(1, 1, 0, 1), (3, 1, 1, 1), ((5, 3), 2, (2, 1), 1), (3, (1, 2), (2, 3), (2, 3))],
)
def test_sampled_patches_are_columns_of_all(kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
    conv = nn.Conv2d(4, 4, kernel, stride, padding, dilation)
    image = torch.randn(4, 41, 37, generator=torch.Generator().manual_seed(0))
    found = sampled_patches(image, conv, torch.Generator().manual_seed(1))
    every = functional.unfold(image[None], conv.kernel_size, conv.dilation, padding, conv.stride)[0]  # type: ignore[arg-type]
    chosen = torch.randperm(every.shape[1], generator=torch.Generator().manual_seed(1))[:POSITIONS]
    assert torch.equal(found.flatten(0, 1), every[:, chosen])


def test_adapted_rounding_lowers_the_error_of_most_layers(lite: Detector) -> None:
    plain = quantized(lite)
    adapted = copy.deepcopy(plain)
    adapt_rounding(adapted, [images()])
    layers = {name: layer for name, layer in quantized_layers(plain).items() if isinstance(layer, QuantConv2d)}
    grams = input_grams(plain, layers, [images()], seed=0)
    better = 0
    for name, layer in layers.items():
        errors = []
        for rounded in (quantized_weight(layer), quantized_weight(adapted.get_submodule(name))):  # type: ignore[arg-type]
            e = (rounded - layer.weight).detach().reshape(len(grams[name]), -1, grams[name].shape[-1]).double()
            errors.append(float(((e @ grams[name].double()) * e).sum()))
        assert errors[1] <= errors[0] * (1 + 1e-4)
        better += errors[1] < 0.9 * errors[0]
    assert better > len(layers) / 2


# --- splitting


def test_a_split_layer_keeps_its_float_function_and_loses_next_to_nothing(fused: Detector) -> None:
    plain = quantized(fused)
    model = copy.deepcopy(plain)
    assert split_layers(model, below_db=60.0) == tuple(quantized_layers(model))
    with quantizing(model, ()):
        assert torch.equal(compute(model, images()), compute(fused, images()))
    for layer, module in quantized_layers(plain).items():
        before = (quantized_weight(module) - module.weight).detach().norm()
        after = (quantized_weight(model.get_submodule(layer)) - module.weight).detach().norm()  # type: ignore[arg-type]
        assert float(after) < float(before) / 50
    assert split_layers(model, below_db=60.0) == (), "twice is once: nothing is below any more"


def test_splitting_costs_what_the_report_says(lite: Detector, float_graph: ModelProto) -> None:
    outcome = quantize(lite, [images()], PtqConfig(correct=CorrectionConfig(split_below_db=200.0)))
    assert extra_macs_share(outcome.layers) == 1.0
    assert all(row.convolutions == 2 for row in outcome.layers)
    kinds = [node.op_type for node in exported(float_graph, outcome.model).graph.node]
    assert kinds.count("Conv") == 2 * len(outcome.layers)


# --- scales per channel


@settings(max_examples=60, deadline=None)
@given(
    low=st.lists(st.floats(-50, 1, width=32), min_size=1, max_size=8),
    high=st.floats(0, 100, width=32), scheme=st.sampled_from(["symmetric", "asymmetric"]),
)  # fmt: skip
def test_scales_per_channel_share_a_zero_point_and_cover_every_channel(
    low: list[float], high: float, scheme: str
) -> None:
    lows = np.array(low, np.float32)
    highs = np.maximum(lows, np.float32(high) / (1 + np.arange(len(low), dtype=np.float32)))
    scale = channel_scale(lows, highs, scheme)  # type: ignore[arg-type]
    assert scale.axis == 1
    assert np.unique(scale.zero_point).size == 1
    zero = int(scale.zero_point[0])
    reach = 1.0001 * scale.scale
    assert np.all(lows >= (scale.q_min - zero) * reach - 1e-12)
    assert np.all(highs <= (scale.q_max - zero) * reach + 1e-12)
    if scheme == "asymmetric" and np.all(lows >= 0):
        assert zero == 0
    width = np.maximum(highs, 0) - np.minimum(lows, 0)
    alive = width > max(1e-3 * width.max(), 1e-6)  # below, scales are kept from vanishing
    if scheme == "asymmetric" and alive.any():
        growth = np.square(255 * scale.scale[alive] / width[alive])
        assert growth.sum() <= 4.1 * alive.sum() + 0.1, "a zero point in the middle would do this"


def test_only_depthwise_inputs_have_a_scale_per_channel(lite: Detector) -> None:
    model = quantized(lite, channel_inputs=True)
    table = scale_table(model)
    for layer, module in quantized_layers(model).items():
        assert (table[layer].input.axis == 1) == is_depthwise(module)
    pointwise = next(layer for layer, module in quantized_layers(model).items() if module.in_channels == 3)
    wrong = TensorScale(np.ones(3, np.float32), np.zeros(3, np.int8), "int8", 1)
    with pytest.raises(QuantizationError, match=r"expected axis None"):
        apply_scales(model, {**table, pointwise: replace(table[pointwise], input=wrong)})


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_scales_per_channel_lose_less(lite: Detector, scheme: str) -> None:
    plain, by_channel = quantized(lite, scheme), quantized(lite, scheme, channel_inputs=True)
    layers = [layer for layer, module in quantized_layers(plain).items() if is_depthwise(module)]
    losses = []
    for model in (plain, by_channel):
        with quantizing(model, ()):
            seen = inputs_of(model, layers, images())
        ratios = [_relative_error(model.get_submodule(layer).input_quantizer, seen[layer]) for layer in layers]  # type: ignore[arg-type]
        losses.append(np.array(ratios))
    assert np.median(losses[1] / losses[0]) < 0.25
    assert np.all(losses[1] < 1.05 * losses[0])


def _relative_error(quantizer: nn.Module, x: Tensor) -> float:
    """Noise over signal of each channel, the mean over the channels."""
    with torch.no_grad():
        noise = (quantizer(x) - x).square().sum((0, 2, 3))
    signal = x.square().sum((0, 2, 3))
    return float((noise[signal > 0] / signal[signal > 0]).mean())


# --- what runs is what was simulated


METHODS: dict[str, dict[str, object]] = {
    "channel_inputs": {"channel_inputs": True},
    "split": {"split_below_db": 44.0},
    "moments": {"outputs": "moments"},
    "all": {"channel_inputs": True, "equalize": True, "split_below_db": 44.0, "rounding": "adaptive",
            "outputs": "moments"},
}  # fmt: skip


def powers_of_two(model: Detector) -> None:
    """Make every product and sum in the model's layers exact in float32, so that the order of sums does not matter."""

    def rounded(scale: TensorScale | None) -> TensorScale | None:
        if scale is None:
            return None
        return replace(scale, scale=np.exp2(np.ceil(np.log2(scale.scale))).astype(np.float32))

    table = {}
    for layer, scales in scale_table(model).items():
        inputs, weight, fine = rounded(scales.input), rounded(scales.weight), rounded(scales.fine)
        assert inputs is not None
        assert weight is not None
        table[layer] = LayerScales(inputs, weight, fine)
        conv = model.get_submodule(layer)
        grid = torch.from_numpy(np.atleast_1d(inputs.scale * weight.scale))
        bias = conv.bias
        assert isinstance(bias, Tensor)
        conv.bias = nn.Parameter(torch.round(bias.detach() / grid) * grid)
    apply_scales(model, table)


def run(graph: ModelProto, x: Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    (output,) = session.run(["detections"], {"images": x.numpy()})
    return output


GRAPHS = [(method, "asymmetric") for method in ("channel_inputs", "split", "moments", "all")]
GRAPHS += [(method, "symmetric") for method in ("channel_inputs", "split")]  # the others change numbers alone


@pytest.mark.parametrize(("method", "scheme"), GRAPHS)
def test_the_graph_computes_what_was_simulated(
    lite: Detector, float_graph: ModelProto, method: str, scheme: str
) -> None:
    model = quantized(lite, scheme, **METHODS[method])
    powers_of_two(model)
    x = images(1, seed=2)
    graph = exported(float_graph, model)
    expected, found = compute(model, x).numpy(), run(graph, x)
    # Squeeze-and-excitation and Hardswish multiply, so their last bits differ, and few values fall over an edge
    assert 20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(found - expected)) > 45
    twice = insert_qdq(graph, scale_table(model))
    assert [node.name for node in twice.graph.node] == [node.name for node in graph.graph.node]
    assert scheme == "asymmetric" or not lint(graph).at_least("error"), "it suits TensorRT"


def test_a_corrected_checkpoint_comes_back_exactly(lite: Detector, tmp_path: Path) -> None:
    config = PtqConfig(
        scheme="asymmetric", calibration=CalibrationConfig(method="max", bins=256),
        correct=CorrectionConfig(**METHODS["all"]),  # type: ignore[arg-type]
    )  # fmt: skip
    outcome = quantize(lite, [images()], config)
    save_quantized(tmp_path / "model.safetensors", outcome.model, config)
    read = load_weights(tmp_path / "model.safetensors")
    assert read.config == config
    assert any(scales.fine is not None for scales in scale_table(read.model).values())
    assert torch.equal(compute(read.model, images()), compute(outcome.model, images()))


def test_corrections_leave_the_given_model_alone(lite: Detector) -> None:
    before = {name: value.clone() for name, value in lite.state_dict().items()}
    quantized(lite, "asymmetric", **METHODS["all"])
    assert all(torch.equal(before[name], value) for name, value in lite.state_dict().items())


def test_float_layers_are_not_corrected(lite: Detector) -> None:
    config = PtqConfig(keep_float=("detect.*",), correct=CorrectionConfig(rounding="adaptive", outputs="moments"))
    state = quantize(lite, [images()], config).model.state_dict()
    changed = {name for name, value in lite.state_dict().items() if not torch.equal(state[name], value)}
    assert changed
    assert not [name for name in changed if name.startswith("detect.")]
