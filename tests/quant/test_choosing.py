"""The tool's own choice of settings, and what a report says of each step."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from small_detectors import images, uneven

from repq.errors import QuantizationError
from repq.model import Detector
from repq.quant import quantize, quantize_at_best, quantize_in_steps, scale_table
from repq.quant.choosing import COSTLY_GAIN_DB, FREE_GAIN_DB, WITH_WEIGHTS
from repq.quant.corrections import asked_for
from repq.quant.similarity import head_snr_db, outputs_of
from repq.recipe import CalibrationConfig, CorrectionConfig, PtqConfig

CONFIG = PtqConfig(
    scheme="asymmetric", keep_float=("detect.cls_preds.*",), calibration=CalibrationConfig(bins=256),
    correct=CorrectionConfig(images=4), auto=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def lite() -> Detector:
    return uneven("yolov6lite_s")


def test_the_choice_is_the_best_that_was_tried_and_what_it_says(lite: Detector) -> None:
    held_out = [images(1, seed=5)]
    outcome = quantize_at_best(lite, [images()], held_out, CONFIG, ap_on_train=lambda model: 0.25)
    kept = [trial for trial in outcome.trials if trial.kept]
    snr = head_snr_db(outcome.model, held_out, outputs_of(lite, held_out))
    assert snr == pytest.approx(kept[-1].head_snr_db)
    first = max(trial.head_snr_db for trial in outcome.trials if trial.gain_db is None)
    assert kept[0].head_snr_db == first
    (weights,) = (number for number, trial in enumerate(outcome.trials) if trial.name == WITH_WEIGHTS)
    assert all(trial.inputs_alone == (number < weights) for number, trial in enumerate(outcome.trials))
    for before, after in itertools.pairwise(kept):
        assert after.gain_db == pytest.approx(after.head_snr_db - before.head_snr_db)
        if after.name == WITH_WEIGHTS:
            continue
        costly = "channel_inputs" in after.name or "split" in after.name
        assert after.head_snr_db >= before.head_snr_db + (COSTLY_GAIN_DB if costly else FREE_GAIN_DB)
    assert (outcome.trials[weights].ap_train, kept[-1].ap_train) == (0.25, 0.25)
    assert (outcome.config.scheme, outcome.config.keep_float) == (CONFIG.scheme, CONFIG.keep_float)
    assert not outcome.config.auto, "what was chosen, as one could have asked for it"
    # the settings that it reports make the same model
    again = quantize(lite, [images()], outcome.config)
    with torch.no_grad():
        assert torch.equal(again.model(images(1)), outcome.model(images(1)))


def test_without_images_to_judge_on_nothing_is_chosen(lite: Detector) -> None:
    with pytest.raises(QuantizationError, match="no images to compare"):
        quantize_at_best(lite, [images()], [], CONFIG)


def test_each_correction_that_was_asked_for_is_a_step(lite: Detector) -> None:
    correct = CorrectionConfig(channel_inputs=True, outputs="mean", images=4)
    config = CONFIG.model_copy(update={"correct": correct, "auto": False})
    outcome = quantize_in_steps(lite, [images()], config)
    assert [trial.name for trial in outcome.trials] == ["mse", "+ channel_inputs", "+ outputs=mean"]
    assert all(trial.kept for trial in outcome.trials)
    plain = quantize(lite, [images()], config)
    one, other = scale_table(outcome.model), scale_table(plain.model)
    assert all((one[layer].input.scale == other[layer].input.scale).all() for layer in one)
    with torch.no_grad():
        assert torch.equal(plain.model(images(1)), outcome.model(images(1)))


def test_where_nothing_is_lost_nothing_is_corrected(lite: Detector) -> None:
    """What acts on no layer leaves the float model's very outputs: an infinite SNR, of which no gain is a number."""
    config = CONFIG.model_copy(update={"keep_float": ("*",)})
    outcome = quantize_at_best(lite, [images()], [images(1, seed=5)], config)
    assert outcome.trials[0].head_snr_db == math.inf
    assert not any(math.isnan(trial.gain_db) for trial in outcome.trials if trial.gain_db is not None)
    assert not asked_for(outcome.config.correct)
