"""What trials share, what is kept and what runs part by part: the figures are those of doing everything anew."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_detectors import images, uneven
from torch import nn

from repq.errors import QuantizationError
from repq.machine.torch_threads import torch_threads
from repq.model import Detector, layer_ids
from repq.quant import quantize, quantize_at_best, quantize_in_steps, quantized_layers, scale_table
from repq.quant.calibration.observation import channel_ranges
from repq.quant.corrections import CORRECTIONS
from repq.quant.corrections.channel_inputs import takes_channel_scales
from repq.quant.corrections.equalize import equalize, find_chains
from repq.quant.corrections.outputs import channel_moments
from repq.quant.corrections.rounding import DAMPING, SWEEPS, best_rounding
from repq.quant.ptq import observe_model
from repq.quant.quantizer import CACHED, fake_quantize
from repq.quant.similarity import head_snr_db, outputs_of
from repq.recipe import CalibrationConfig, CorrectionConfig, PtqConfig

CALIBRATION = CalibrationConfig(bins=256)
ALONE: dict[str, dict[str, Any]] = {
    entry.name: {entry.name: entry.diagnosed or entry.tries[0]} for entry in CORRECTIONS
}


@pytest.fixture(scope="module")
def fused() -> Detector:
    return uneven("yolov6n_v2")


def demand_equal(one: nn.Module, other: nn.Module) -> None:
    """Weights, biases and scales, bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    scales = scale_table(other)
    for layer, own in scale_table(one).items():
        for part, same in ((own.input, scales[layer].input), (own.weight, scales[layer].weight)):
            assert np.array_equal(part.scale, same.scale) and np.array_equal(part.zero_point, same.zero_point)
        assert (own.fine is None) == (scales[layer].fine is None)


def plain(**corrections: Any) -> PtqConfig:
    return PtqConfig(
        scheme="asymmetric", auto=False, calibration=CALIBRATION, correct=CorrectionConfig(images=4, **corrections)
    )


@pytest.mark.parametrize("name", ALONE)
def test_a_step_gives_what_quantizing_anew_gives(fused: Detector, name: str) -> None:
    config = plain(**ALONE[name])
    demand_equal(quantize_in_steps(fused, [images()], config).model, quantize(fused, [images()], config).model)


def test_what_is_chosen_is_what_its_settings_give_anew() -> None:
    model = uneven("yolov6lite_s")
    few = ("neck.*", "backbone.lite_effiblock_[34]*")  # stay in float: it is a matter of seconds
    config = plain().model_copy(update={"auto": True, "keep_float": few})
    outcome = quantize_at_best(model, [images()], [images(1, seed=5)], config)
    anew = quantize(model, [images()], outcome.config)
    demand_equal(outcome.model, anew.model)
    assert outcome.layers == anew.layers, "the rows, which most trials are spared"


def test_equalization_needs_no_pass_of_its_own(fused: Detector) -> None:
    chains, equalized = find_chains(fused), copy.deepcopy(fused)
    equalize(equalized, chains, [images()])
    straightforward, found = quantize(equalized, [images()], plain()), quantize(fused, [images()], plain(equalize=True))
    changed = {after for _, after in chains.pairs}
    assert changed and changed < set(layer_ids(fused))
    wanted, scales = scale_table(straightforward.model), scale_table(found.model)
    for layer, module in quantized_layers(found.model).items():
        assert torch.equal(module.weight, straightforward.model.get_submodule(layer).weight)  # type: ignore[arg-type]
        assert np.array_equal(scales[layer].weight.scale, wanted[layer].weight.scale)
        if layer in changed:
            assert np.array_equal(scales[layer].input.scale, wanted[layer].input.scale)
        else:  # the same numbers but for the factors that were multiplied in and out again
            np.testing.assert_allclose(scales[layer].input.scale, wanted[layer].input.scale, rtol=1e-4)


def test_corrections_that_watch_together_see_the_calibration_images_alone() -> None:
    model = uneven("yolov6lite_s")
    depthwise = [layer for layer in layer_ids(model) if takes_channel_scales(model.get_submodule(layer))]
    alone = channel_ranges(model, depthwise, [images()])
    seen = observe_model(model, [images()], plain(), for_all=True).seen["channel_inputs"]
    assert seen.keys() == alone.keys()
    for layer, ranges in alone.items():
        assert all(map(np.array_equal, ranges.arrays(), seen[layer].arrays()))


def test_ap_of_a_model_is_measured_once(fused: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repq.quant.choosing.CORRECTIONS", [])  # there is one model
    measured: list[Detector] = []

    def ap(model: Detector) -> float:
        measured.append(model)
        return 0.5

    config = PtqConfig(calibration=CALIBRATION, auto=True)
    outcome = quantize_at_best(fused, [images()], [images(1, seed=5)], config, ap_on_train=ap)
    assert len(measured) == 1
    assert [trial.ap_train for trial in outcome.trials if trial.kept] == [None, 0.5]  # inputs alone, weights as well


@pytest.mark.parametrize("form", ["contiguous", "channels_last", "slice", "per_channel", "per_channel_last"])
def test_large_tensors_are_rounded_part_by_part_and_to_the_same(form: str) -> None:
    x = torch.randn(5, 6, 110, 101, generator=torch.Generator().manual_seed(0))
    assert x.numel() > CACHED
    if form.endswith("last"):
        x = x.to(memory_format=torch.channels_last)
    if form == "slice":
        x = torch.cat([x, x], dim=1)[:, 3:9]
    scale = torch.rand(1, 6, 1, 1) / 20 + 0.01 if form.startswith("per_channel") else torch.tensor(0.017)
    found = fake_quantize(x, scale, 3, 0, 255)
    wanted = x.div(scale).round().clamp(-3, 252).mul(scale)
    assert torch.equal(found, wanted)
    assert found.stride() == torch.empty_like(x).stride()


def test_moments_are_those_of_var_mean_in_double() -> None:
    y = torch.randn(3, 5, 17, 19, generator=torch.Generator().manual_seed(0)) + 100 * torch.arange(5).view(1, -1, 1, 1)
    y[:, 4] = 0.1  # a constant channel
    variance, mean = torch.var_mean(y.double(), dim=(0, 2, 3), correction=0)
    found = channel_moments(y)
    assert bool(((found[0] - mean).abs() <= 1e-7 * (mean.abs() + variance.sqrt())).all())
    torch.testing.assert_close(found[1], variance.float(), rtol=1e-6, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 5), groups=st.integers(1, 3), width=st.integers(1, 10), seed=st.integers(0, 2**16))
def test_rounding_is_coordinate_descent_to_the_last_bit(rows: int, groups: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * rows, width, 1, 1, generator=generator)
    scale = weight.abs().amax((1, 2, 3)) / 20
    x = torch.randn(groups, width, 3 * width, generator=generator).relu()
    gram = x @ x.transpose(1, 2)
    parts = weight.view(groups, rows, width), scale.view(groups, rows, 1)
    wanted = torch.stack([_descended(*part) for part in zip(*parts, gram, strict=True)])
    assert torch.equal(best_rounding(weight, scale, gram).view_as(wanted), wanted)


def _descended(weight: torch.Tensor, steps: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The module's formula, one group, a step at a time."""
    damped = gram + torch.diag_embed(DAMPING * gram.diagonal().mean().expand(len(gram)))
    exact = weight / steps
    current = exact.round().clamp(-128, 127)
    other = (current + (exact - current).sign()).clamp(-128, 127)
    slope = (current * steps - weight) @ damped
    for _ in range(SWEEPS):
        for j in range(len(gram)):
            move = (other[:, j] - current[:, j]) * steps[:, 0]
            better = move * (2 * slope[:, j] + move * damped[j, j]) < 0
            slope += torch.where(better, move, 0)[:, None] * damped[j]
            current[better, j], other[better, j] = other[better, j], current[better, j]
    return current * steps


@pytest.mark.parametrize("corrections", [{}, {"equalize": True, "channel_inputs": True}])
def test_what_is_seen_does_not_hang_on_who_adds_it(fused: Detector, corrections: dict[str, Any]) -> None:
    """With one thread the model's own adds what layers receive; with two, the other one does."""
    config, batches = plain(**corrections), [images(seed=seed) for seed in range(3)]
    with torch_threads(1):
        alone = observe_model(fused, batches, config, for_all=True)
    with torch_threads(2):
        behind = observe_model(fused, batches, config, for_all=True)
        assert torch.get_num_threads() == 2
    for layer, histogram in alone.observation.histograms.items():
        assert histogram.same_values(behind.observation.histograms[layer])
    for name, ranges in alone.seen.items():
        for layer, found in (ranges or {}).items():
            again = behind.seen[name][layer]
            assert all(np.array_equal(*pair) for pair in zip(found.arrays(), again.arrays(), strict=True))
    assert alone.macs == behind.macs


def test_an_activation_that_is_not_finite_is_named_whoever_adds_it(fused: Detector) -> None:
    broken = copy.deepcopy(fused)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    said = []
    for threads in (1, 2):
        with torch_threads(threads), pytest.raises(QuantizationError, match="is not finite") as raised:
            observe_model(broken, [images()], plain())
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_the_snr_does_not_hang_on_how_many_passes_go_on_at_once(fused: Detector) -> None:
    judging = [images(seed=seed) for seed in range(5)]
    quantized, found = quantize(fused, judging[:1], plain()).model, []
    for threads in (1, 2):
        with torch_threads(threads):
            found.append(head_snr_db(quantized, judging, outputs_of(fused, judging)))
    assert found[0] == found[1] and found[0] != head_snr_db(quantized, judging[:1], outputs_of(fused, judging[:1]))
