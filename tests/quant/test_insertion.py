"""Inserting, calibrating and switching quantizers on small networks."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repq.errors import QuantizationError
from repq.layers import LayerId, QuantPlan
from repq.model import layer_ids
from repq.quant import (
    QuantConv2d,
    QuantConvTranspose2d,
    apply_scales,
    calibrate,
    insert_quantizers,
    observe,
    quantized_layers,
    quantizing,
    scale_table,
    set_scales,
)
from repq.quant.rows import int8_macs_share, layer_rows
from repq.recipe import CalibrationConfig, PtqConfig
from repq.scales import LayerScales


class Net(nn.Module):
    """Every kind of layer there is: strided, grouped, transposed, with and without bias; two layers share an input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.right = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Sequential(nn.Conv2d(4, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.up(nn.functional.silu(self.left(x) + self.right(x))))


METHODS = ("max", "percentile", "mse", "entropy")


def images(count: int = 8, seed: int = 0, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def config(method: str = "mse", scheme: str = "symmetric", bins: int = 512) -> PtqConfig:
    return PtqConfig(
        scheme=scheme,  # type: ignore[arg-type]
        calibration=CalibrationConfig(method=method, bins=bins),  # type: ignore[arg-type]
    )


def inserted(settings: PtqConfig, keep: tuple[str, ...] = ()) -> Net:
    net = Net().eval()
    return insert_quantizers(net, QuantPlan.keeping_float(layer_ids(net), keep), settings)


def calibrated(settings: PtqConfig, keep: tuple[str, ...] = ()) -> Net:
    model = inserted(settings, keep)
    calibrate(model, [images()], settings.calibration)
    return model


def assert_same_scales(a: Net, b: Net) -> None:
    first, second = scale_table(a), scale_table(b)
    assert first.keys() == second.keys()
    for layer, scales in first.items():
        for one, other in ((scales.input, second[layer].input), (scales.weight, second[layer].weight)):
            assert (one.dtype, one.axis) == (other.dtype, other.axis)
            np.testing.assert_array_equal(one.scale, other.scale)
            np.testing.assert_array_equal(one.zero_point, other.zero_point)


def test_paths_and_state_dict_stay_and_the_original_is_untouched() -> None:
    net = Net()
    before = {name: type(module) for name, module in net.named_modules()}
    model = insert_quantizers(net, QuantPlan.keeping_float(layer_ids(net), ["left"]), config())
    assert {name: type(module) for name, module in net.named_modules()} == before
    assert layer_ids(model) == layer_ids(net)
    assert list(model.state_dict()) == list(net.state_dict())
    assert type(model.left) is nn.Conv2d
    assert isinstance(model.up, QuantConvTranspose2d)
    assert tuple(quantized_layers(model)) == ("stem", "right", "up", "head.0")


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_switched_off_it_is_the_float_model_bit_for_bit(scheme: str) -> None:
    model = calibrated(config(scheme=scheme))
    with quantizing(model, ()):
        assert torch.equal(model(images()), Net()(images()))
    assert not torch.equal(model(images()), Net()(images()))


def test_transposed_convolution_keeps_its_options() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, padding=1, output_padding=1, groups=2, dilation=2, bias=False))
    model = insert_quantizers(net, QuantPlan((LayerId("0"),)), config())
    x = torch.randn(1, 4, 5, 7)
    with quantizing(model, ()):
        assert torch.equal(model(x), net(x))
        assert torch.equal(model[0](x, output_size=[11, 15]), net[0](x, output_size=[11, 15]))


def test_scales_have_the_promised_axes_and_formula() -> None:
    model = calibrated(config("max"))
    table = scale_table(model)
    assert table[LayerId("stem")].weight.axis == 0
    assert table[LayerId("stem")].weight.scale.shape == (8,)
    assert table[LayerId("up")].weight.axis is None
    for layer, scales in table.items():
        weight = model.get_submodule(layer).weight.detach().numpy()
        amax = np.abs(weight).max(axis=(1, 2, 3)) if layer != "up" else np.abs(weight).max()
        np.testing.assert_array_equal(scales.weight.scale, amax / np.float32(127))
        assert scales.input.scale.shape == ()
        assert scales.input.scale.dtype == np.float32
        assert not scales.input.zero_point.any()
    assert table[LayerId("stem")].input.scale == images().max().numpy() / np.float32(127)


def test_asymmetric_inputs_are_unsigned_and_weights_stay_symmetric() -> None:
    table = scale_table(calibrated(config("max", "asymmetric")))
    for scales in table.values():
        assert scales.input.dtype == "uint8"
        assert scales.weight.dtype == "int8"
        assert not scales.weight.zero_point.any()
    assert table[LayerId("left")].input.zero_point == 0  # after ReLU
    assert table[LayerId("up")].input.zero_point > 0  # after SiLU


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_layers_that_share_an_input_share_its_scale(method: str, scheme: str) -> None:
    table = scale_table(calibrated(config(method, scheme)))
    left, right = table[LayerId("left")].input, table[LayerId("right")].input
    assert (left.scale, left.zero_point) == (right.scale, right.zero_point)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_images_and_batch_size_do_not_matter(method: str) -> None:
    """The histograms are order-free, so only the convolutions' own float rounding is left between batch sizes."""
    settings = config(method)
    tables = []
    for batches in (images().split(8), images().split(3), images().flip(0).split(1)):
        model = inserted(settings)
        calibrate(model, batches, settings.calibration)
        tables.append(scale_table(model))
    for table in tables[1:]:
        for layer, scales in table.items():
            np.testing.assert_allclose(scales.input.scale, tables[0][layer].input.scale, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_quantized_output_is_near_the_float_output(method: str, scheme: str) -> None:
    expected = Net()(images(seed=1))
    difference = calibrated(config(method, scheme))(images(seed=1)) - expected
    # Five layers of 8 bits: well above 20 dB; a wrong zero point or axis falls far below.
    assert 20 * float(torch.log10(expected.norm() / difference.norm()).detach()) > 20


def stream(count: int) -> Iterator[Tensor]:
    for seed in range(count // 4):
        yield images(4, seed, size=64) * (1 + seed)  # the range keeps growing


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    held, peaks = [], []
    layers = layer_ids(Net())
    for count in (32, 512):
        tracemalloc.start()
        observation = observe(Net(), layers, stream(count), bins=2048)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert observation.images == count
        held.append(sum(histogram.nbytes for histogram in observation.histograms.values()))
    assert held[0] == held[1] == len(layers) * 8 * (2 * 2048 + 1)
    # tracemalloc sees Python's side, which would grow if a list of batches or values were kept.
    assert peaks[1] < peaks[0] + 100_000


def test_observing_keeps_no_activation_alive() -> None:
    alive: list[int] = []

    def counted() -> Iterator[Tensor]:
        references: list[weakref.ref[Tensor]] = []
        for seed in range(6):
            batch = images(2, seed)
            references.append(weakref.ref(batch))
            yield batch
            del batch
            alive.append(sum(reference() is not None for reference in references))

    observe(Net(), layer_ids(Net()), counted())
    assert max(alive) <= 1  # the loop variable of the batch in work


def test_observing_leaves_the_model_as_it_was() -> None:
    model = calibrated(config()).train()
    observe(model, tuple(quantized_layers(model)), [images()])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(layer.input_quantizer.enabled for layer in quantized_layers(model).values())


def test_numpy_batches_are_taken() -> None:
    settings = config()
    model = inserted(settings)
    calibrate(model, [images().numpy()], settings.calibration)
    assert_same_scales(model, calibrated(settings))


def test_an_uncalibrated_model_fails_by_name() -> None:
    model = inserted(config())
    with pytest.raises(QuantizationError, match="the input of stem has no scale"):
        model(images())
    with pytest.raises(QuantizationError, match="stem has no scales"):
        scale_table(model)


def test_no_images_is_an_error() -> None:
    with pytest.raises(QuantizationError, match="nothing to calibrate on"):
        calibrate(inserted(config()), [], CalibrationConfig())


def test_no_quantizers_is_an_error() -> None:
    with pytest.raises(QuantizationError, match="without quantizers"):
        calibrate(Net(), [images()], CalibrationConfig())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_activations_name_the_first_layer(bad: float) -> None:
    model = inserted(config())
    with torch.no_grad():
        model.left.weight[0] = bad
    with pytest.raises(QuantizationError, match="the input of up is not finite"):
        calibrate(model, [images()], CalibrationConfig())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_bad_last_weight_is_named() -> None:
    model = inserted(config())
    with torch.no_grad():
        model.head[0].weight[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match=r"the weight of head\.0 is not finite"):
        calibrate(model, [images()], CalibrationConfig())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_an_input_of_zeros_gets_a_safe_scale_and_a_note(method: str, scheme: str) -> None:
    settings = config(method, scheme)
    model = inserted(settings)
    with torch.no_grad():
        model.stem.weight.zero_()
        model.stem.bias.fill_(-1)
    result = calibrate(model, [images()], settings.calibration)
    assert [note.split(":")[0] for note in result.notes] == ["left", "right"]
    assert torch.isfinite(model(images())).all()
    assert scale_table(model)[LayerId("left")].input.scale > 1e-3


def test_a_plan_that_does_not_fit_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"names neck\.conv, which"):
        insert_quantizers(Net(), QuantPlan((LayerId("neck.conv"),)), config())
    with pytest.raises(QuantizationError, match="head cannot be quantized"):
        insert_quantizers(Net(), QuantPlan((LayerId("head"),)), config())
    with pytest.raises(QuantizationError, match="stem cannot be quantized"):
        insert_quantizers(inserted(config()), QuantPlan((LayerId("stem"),)), config())


def test_one_layer_alone_can_quantize() -> None:
    model = calibrated(config())
    alone = calibrated(config(), keep=("left", "right", "up", "head.0"))
    with quantizing(model, [LayerId("stem")]):
        assert torch.equal(model(images()), alone(images()))
    with pytest.raises(QuantizationError, match="nowhere"), quantizing(model, [LayerId("nowhere")]):
        pass


def test_scales_move_between_models_exactly() -> None:
    model, other = calibrated(config(scheme="asymmetric")), inserted(config(scheme="asymmetric"))
    apply_scales(other, scale_table(model))
    assert_same_scales(model, other)
    assert torch.equal(model(images()), other(images()))


def test_scales_that_do_not_fit_are_refused_and_change_nothing() -> None:
    table = dict(scale_table(calibrated(config())))
    other = inserted(config())
    stem = table.pop(LayerId("stem"))
    with pytest.raises(QuantizationError, match="layers without scales: stem; scales without a layer: elsewhere"):
        apply_scales(other, {**table, LayerId("elsewhere"): stem})
    with pytest.raises(QuantizationError, match="the weight scale of stem does not fit"):
        apply_scales(other, {**table, LayerId("stem"): LayerScales(stem.input, table[LayerId("up")].weight)})
    assert all(layer.input_quantizer.scale is None for layer in quantized_layers(other).values())


def test_gradients_reach_every_weight_and_bias() -> None:
    model = calibrated(config()).train()
    model(images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0, name


def test_rows_say_what_was_seen_and_decided() -> None:
    settings = config("max")
    net = Net().eval()
    layers = layer_ids(net)
    model = insert_quantizers(net, QuantPlan.keeping_float(layers, ["head.*"]), settings)
    observation = observe(model, layers, [images()], bins=2048)
    set_scales(model, observation, settings.calibration)
    macs = dict(zip(layers, (13824, 4608, 4096, 8192, 5120), strict=True))
    rows = layer_rows(model, observation, macs)
    assert [row.layer for row in rows] == list(layers)
    assert [row.precision for row in rows] == ["int8"] * 4 + ["float"]
    assert isinstance(model.stem, QuantConv2d)
    assert rows[0].macs == 13824
    assert int8_macs_share(rows) == pytest.approx(1 - rows[-1].macs / sum(row.macs for row in rows))
    assert rows[0].activation_range == (float(images().min()), float(images().max()))
    # Exact SNR of the first input and weight, from their values.
    x, weight = images().double(), net.stem.weight.detach()
    scale = scale_table(model)[LayerId("stem")]
    noise = x - torch.fake_quantize_per_tensor_affine(images(), float(scale.input.scale), 0, -128, 127)
    exact = 10 * float(torch.log10(x.square().sum() / noise.square().sum()))
    assert rows[0].activation_snr_db == pytest.approx(exact, abs=0.1)  # from a histogram of 2048 bins
    noise = weight - model.stem.weight_quantizer(weight)
    exact = 10 * float(torch.log10(weight.square().sum() / noise.square().sum()))
    assert rows[0].weight_snr_db == pytest.approx(exact, abs=1e-3)
    assert rows[-1].activation_scale is None
    assert rows[-1].weight_snr_db is None
    assert rows[-1].activation_range[1] > 0


def test_asymmetric_activation_snr_is_that_of_the_values() -> None:
    settings = config("max", "asymmetric")
    net = Net().eval()
    model = insert_quantizers(net, QuantPlan(layer_ids(net)), settings)
    observation = observe(model, layer_ids(net), [images()])
    set_scales(model, observation, settings.calibration)
    row = layer_rows(model, observation, {LayerId("up"): 1})[0]
    x = net.left(net.stem(images()).relu()) + net.right(net.stem(images()).relu())
    x = nn.functional.silu(x).detach()
    noise = x - model.up.input_quantizer(x)
    exact = 10 * float(torch.log10(x.square().sum() / noise.square().sum()))
    assert row.activation_snr_db == pytest.approx(exact, abs=0.1)  # from a histogram of 2048 bins
