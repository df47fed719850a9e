"""A diagnosis on models whose illness is known."""

from __future__ import annotations

import copy

import pytest
import torch
from small_detectors import images, uneven
from torch import nn

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.model import Detector
from repq.quant.diagnosis import TOO_LITTLE_DB, diagnose, local_snrs, weight_crest
from repq.quant.ptq import quantize
from repq.quant.sensitivity import local_errors
from repq.quant.similarity import head_snr_db, outputs_of, similarity
from repq.recipe import CalibrationConfig, PtqConfig
from repq.report.sections.quantization import ADVICE
from repq.report.text import diagnosis_table
from repq.results import Diagnosis

CONFIG = PtqConfig(calibration=CalibrationConfig(method="max", bins=256))
BLOWN = LayerId("backbone.ERBlock_4.1.block.0.rbr_reparam")


@pytest.fixture(scope="module")
def healthy() -> Detector:
    return uneven("yolov6n_v2", spread=0.0)


@pytest.fixture(scope="module")
def blown(healthy: Detector) -> Detector:
    """One tap in each row of a fused block dwarfs all others, as a blown-up identity branch leaves it."""
    model = copy.deepcopy(healthy)
    conv = model.get_submodule(BLOWN)
    assert isinstance(conv, nn.Conv2d)
    for channel in range(conv.out_channels):
        conv.weight.data[channel, channel, 1, 1] = 60.0
    return model


@pytest.fixture(scope="module")
def diagnosis(blown: Detector) -> Diagnosis:
    return diagnose(blown, [images()], [images(1, seed=5)], CONFIG)


def diagnosed_by_ap(model: Detector, lost: float) -> Diagnosis:
    """Corrections lose so much AP, plain INT8 0.02."""
    aps = iter([0.5, 0.5 - 0.02, 0.5 - lost, 0.5])  # float, plain, corrected, partial
    return diagnose(model, [images()], [images(1, seed=5)], CONFIG, ap=lambda model: next(aps), max_drop=0.005)


@pytest.fixture(scope="module")
def of_healthy(healthy: Detector) -> Diagnosis:
    return diagnosed_by_ap(healthy, 0.004)


def test_a_blown_up_weight_is_found_and_named(diagnosis: Diagnosis, of_healthy: Diagnosis) -> None:
    sick = {row.layer: row for row in diagnosis.layers}
    well = {row.layer: row for row in of_healthy.layers}
    assert "a few weights take the range" in sick[BLOWN].findings
    assert sick[BLOWN].weight_crest > 2 * well[BLOWN].weight_crest
    assert not [row.layer for row in well.values() if "a few weights take the range" in row.findings]


def test_the_advice_is_the_first_way_that_is_enough(diagnosis: Diagnosis) -> None:
    tried = [way for way in diagnosis.ways if way.head_snr_db is not None]
    assert [way.name for way in tried] == ["ptq", "corrected", "partial"]
    assert not any(way.sufficient for way in tried), "SNR alone approves of nothing"
    assert all((way.sufficient is False) == (way.head_snr_db < TOO_LITTLE_DB) for way in tried)  # type: ignore[operator]
    left = [way.name for way in tried[1:] if way.sufficient is None]
    assert diagnosis.advice in (left[:1] or ("repopt", "qat"))
    assert Diagnosis.model_validate_json(diagnosis.model_dump_json()) == diagnosis
    text = diagnosis_table(diagnosis)
    assert ADVICE[diagnosis.advice] in text
    assert BLOWN in text


def test_a_way_is_enough_by_the_ap_that_it_loses(healthy: Detector, of_healthy: Diagnosis) -> None:
    for found, enough in ((of_healthy, True), (diagnosed_by_ap(healthy, 0.006), False)):
        ways = {way.name: way for way in found.ways}
        assert ways["ptq"].ap_drop == pytest.approx(0.02) and ways["ptq"].sufficient is False
        assert ways["corrected"].sufficient is enough
        assert found.advice == ("corrected" if enough else "partial")


def test_the_crest_predicts_the_weight_error() -> None:
    """A channel's SNR after rounding is 52.9 dB less its crest, but for the few weights that set the range."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 1, 3)
    nn.init.normal_(conv.weight)
    rounded = (conv.weight / (step := conv.weight.abs().max() / 127)).round() * step
    snr = 20 * torch.log10(conv.weight.norm() / (conv.weight - rounded).norm())
    expected = 52.9 - 20 * torch.log10(torch.tensor(weight_crest(conv)))
    assert float(snr.detach()) == pytest.approx(float(expected), abs=0.5)


def test_separate_errors_add_up_to_the_layers_error(healthy: Detector) -> None:
    model = quantize(healthy, [images()], CONFIG).model
    layers = [layer for layer in local_snrs(model, [images()]) if layer.startswith("neck")]
    whole = local_errors(model, layers, [images()])
    for layer, (weight, inputs) in local_snrs(model, [images()]).items():
        if layer in whole and weight is not None and inputs is not None:
            both = 10 ** (-weight / 10) + 10 ** (-inputs / 10)
            found = 10 ** (-similarity([whole[layer]]).snr_db / 10)
            assert 0.5 * both < found < 2 * both


@pytest.mark.parametrize("part", ["everything", "the head's last layers"])
def test_of_a_constant_output_nothing_is_concluded(healthy: Detector, part: str) -> None:
    """INT8 keeps it without any error, which is no sign that INT8 is good enough."""
    model = copy.deepcopy(healthy)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if part == "everything" or "_pred" in name:
                values.zero_()
    with pytest.raises(QuantizationError, match=r"(?s)nothing can be concluded.*output is constant"):
        diagnose(model, [images()], [images(1, seed=5)], CONFIG, ap=lambda model: 0.3)


@pytest.fixture
def one_in_float(healthy: Detector) -> tuple[PtqConfig, Detector]:
    return CONFIG.model_copy(update={"keep_float": ("detect.stems.*",)}), healthy


def test_what_stays_in_float_stays_so_in_every_way(one_in_float: tuple[PtqConfig, Detector]) -> None:
    config, model = one_in_float
    judging = images(1, seed=5)
    found = diagnose(model, [images()], [judging], config)
    plain = quantize(model, [images()], config)
    kept = set(plain.plan.float_)
    ways = {way.name: way for way in found.ways}
    assert kept and ways["ptq"].head_snr_db == head_snr_db(plain.model, [judging], outputs_of(model, [judging]))
    rows = {row.layer: row for row in found.layers}
    assert set(rows) == {*plain.plan.int8, *kept}
    for layer in kept:
        assert rows[layer].weight_snr_db is None is rows[layer].activation_snr_db and not rows[layer].findings
    with pytest.raises(QuantizationError, match="nothing to diagnose"):
        diagnose(model, [images()], [judging], CONFIG.model_copy(update={"keep_float": ("*",)}))


@pytest.mark.parametrize(
    "settings", [{}, {"weight_granularity": "tensor"}, {"reduce_range": True, "scheme": "asymmetric"}]
)
def test_a_way_is_given_as_the_command_that_was_tried(
    healthy: Detector, diagnosis: Diagnosis, settings: dict[str, object]
) -> None:
    config = PtqConfig.model_validate({**CONFIG.model_dump(), **settings})
    found = diagnose(healthy, [images()], [images(1, seed=5)], config) if settings else diagnosis
    for way in found.ways[:3]:
        told = way.command.split(",")[0].split()
        for name, default in (("scheme", None), ("weight_granularity", "channel"), ("reduce_range", False)):
            value, flag = getattr(config, name), "--" + name.replace("_", "-")
            said = flag in told and (value is True or told[told.index(flag) + 1] == value)
            assert said is (value != default)


@pytest.mark.parametrize(("granularity", "tried"), [("channel", True), ("tensor", False)])
def test_only_corrections_that_apply_are_said_to_be_tried(granularity: str, tried: bool) -> None:
    config = PtqConfig.model_validate({**CONFIG.model_dump(), "weight_granularity": granularity})
    found = diagnose(uneven("yolov6lite_s"), [images()], [images(1, seed=5)], config)
    (corrected,) = [way for way in found.ways if way.name == "corrected"]
    assert ("channel inputs" in corrected.evidence) is tried
    assert "adaptive rounding" in corrected.evidence
