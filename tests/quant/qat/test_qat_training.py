"""Training wins back what quantization cost, leaves alone what it is told to, and resumes to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from few_blocks import few_blocks
from pydantic import ValidationError
from small_qat import QUICK, calibrated_model, float_model, images
from small_training import SIZE, interrupted_after
from torch import nn

from repq.data import batches
from repq.errors import QuantizationError, TrainingError
from repq.export import export_quantized
from repq.identity import hash_tensors
from repq.layers import LayerId
from repq.model import Detector, build, layer_ids
from repq.quant import apply_scales, load_weights, quantized_layers, quantizing, save_quantized, scale_table
from repq.quant.qat import QatOutcome, train_quantized
from repq.recipe import PtqConfig, QatConfig


def run(
    data, config: QatConfig = QUICK, keep: tuple[str, ...] = (), scheme: str = "symmetric", **options
) -> QatOutcome:
    teacher = float_model()
    return train_quantized(calibrated_model(teacher, keep, scheme), teacher, *data, SIZE, config, **options)


@pytest.fixture(scope="module")
def learned(data) -> QatOutcome:
    return run(data)


def weights_of(model: Detector) -> str:
    return hash_tensors(model.state_dict())


@pytest.mark.parametrize(("scheme", "scales"), [("symmetric", "frozen"), ("asymmetric", "learned")])
def test_it_comes_nearer_to_the_float_model(data, scheme: str, scales: str) -> None:
    teacher = float_model()
    x = torch.from_numpy(next(iter(batches(data[0], SIZE, 10))).images)
    start = calibrated_model(teacher, scheme=scheme)
    if scales == "learned":
        too_coarse = {
            layer: replace(scales, input=replace(scales.input, scale=scales.input.scale * np.float32(4)))
            for layer, scales in scale_table(start).items()
        }
        apply_scales(start, too_coarse)
    before = {layer: value.clone() for layer, value in start.state_dict().items()}
    still = {"flip": 0, "scale": (1.0, 1.0), "translate": 0, "hsv": (0, 0, 0)}
    config = QUICK.model_copy(update={"epochs": 10, "scales": scales, **still})
    if scales == "learned":
        config = config.model_copy(update={"learning_rate": 1e-4, "scale_rate": 300})
    outcome = train_quantized(start, teacher, *data, SIZE, config)
    losses = [row.losses["total"] for row in outcome.epochs]
    assert losses[-1] < 0.9 * losses[0]
    with torch.inference_mode():
        errors = [float((model(x) - teacher(x))[..., 5:].norm()) for model in (start, outcome.model)]
    assert errors[1] < 0.9 * errors[0]
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert list(outcome.model.state_dict()) == list(before)


def test_frozen_scales_stay_and_learned_ones_move(data, learned: QatOutcome) -> None:
    start = scale_table(calibrated_model(float_model()))
    frozen = run(data, QUICK.model_copy(update={"scales": "frozen", "epochs": 1}))
    for layer, scales in scale_table(frozen.model).items():
        for own, first in ((scales.input, start[layer].input), (scales.weight, start[layer].weight)):
            np.testing.assert_array_equal(own.scale, first.scale)
    assert {row.weight_ratio for row in frozen.scales} == {1.0}
    changed = [row for row in learned.scales if row.input_after != row.input_before and row.weight_ratio != 1]
    assert len(changed) > 0.9 * len(learned.scales)
    alone = run(data, QUICK.model_copy(update={"learn_weight_scales": False, "epochs": 1}))
    assert {row.weight_ratio for row in alone.scales} == {1.0}
    assert any(row.input_after != row.input_before for row in alone.scales)


def test_layers_in_float_stay_in_float_and_learn(data) -> None:
    outcome = run(data, keep=("detect.*", "backbone.stem*"))
    kept = [layer for layer in layer_ids(outcome.model) if layer.startswith(("detect.", "backbone.stem"))]
    assert kept
    assert not set(kept) & set(quantized_layers(outcome.model))
    teacher = float_model()
    for layer in kept:
        own, first = outcome.model.get_submodule(layer), teacher.get_submodule(layer)
        assert type(own) is nn.Conv2d
        assert not torch.equal(own.weight, first.weight)
        x = torch.randn(1, own.in_channels, 5, 5)
        assert torch.equal(own(x), own._conv_forward(x, own.weight, own.bias))
    x = images(1)
    with quantizing(outcome.model, ()):
        floating = outcome.model(x)
    assert not torch.equal(floating, outcome.model(x))


@pytest.mark.parametrize("scales", ["learned", "frozen"])
def test_resumes_to_the_same_bits(data, scales: str, tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"scales": scales, "eval_interval": 2, "task_weight": 0.5, "final_factor": 0.1})
    whole = run(data, config)
    path = tmp_path / "state"
    for steps in (4, 2) if scales == "learned" else (4,):
        with pytest.raises(KeyboardInterrupt):
            run(data, config, state_path=path, progress=interrupted_after(steps))
    resumed = run(data, config, state_path=path)
    assert weights_of(resumed.model) == weights_of(whole.model)
    assert resumed.scales == whole.scales
    assert [row.losses for row in resumed.epochs] == [row.losses for row in whole.epochs]
    assert [row.ap is None for row in whole.epochs] == [True, False, False]
    with pytest.raises(TrainingError, match="different learning_rate"):
        run(data, config.model_copy(update={"learning_rate": 0.1}), state_path=path)
    teacher = float_model()
    with pytest.raises(TrainingError, match="different start"):
        train_quantized(calibrated_model(teacher, ("detect.*",)), teacher, *data, SIZE, config, state_path=path)


def test_the_teacher_alone_needs_no_labels(data, learned: QatOutcome) -> None:
    train_set, val_set = data
    empty = {"labels": np.zeros((0, 5), np.float32), "areas": np.zeros(0, np.float32)}
    unlabelled = replace(train_set, records=tuple(replace(record, **empty) for record in train_set.records))
    blind = run((unlabelled, val_set))
    assert weights_of(learned.model) == weights_of(blind.model)
    assert set(learned.epochs[0].losses) == {"distill_features", "distill_class", "distill_box", "total"}
    taught = run(data, QUICK.model_copy(update={"task_weight": 1.0}))
    assert {"class", "iou"} < set(taught.epochs[0].losses)
    assert weights_of(taught.model) != weights_of(learned.model)


def test_a_larger_teacher_teaches_through_projectors_that_are_thrown_away(data, tmp_path: Path) -> None:
    teacher, path = build(few_blocks("yolov6n_v2", 2), deploy=True).eval(), tmp_path / "state"
    config = QUICK.model_copy(update={"epochs": 2, "projector_weight": 1.0})

    def taught(**options) -> QatOutcome:
        return train_quantized(calibrated_model(float_model()), teacher, *data, SIZE, config, **options)

    whole = taught()
    assert {"distill_features", "distill_projected"} < set(whole.epochs[0].losses)
    assert list(whole.model.state_dict()) == list(calibrated_model(float_model()).state_dict())
    with pytest.raises(KeyboardInterrupt):
        taught(state_path=path, progress=interrupted_after(4))
    assert weights_of(taught(state_path=path).model) == weights_of(whole.model)


def test_a_single_image_is_enough(data) -> None:
    train_set, val_set = data
    one = replace(train_set, records=train_set.records[:1])
    assert len(run((one, val_set), QUICK.model_copy(update={"epochs": 1})).epochs) == 1


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_the_checkpoint_reads_back_and_onnx_runtime_computes_the_same(data, scheme: str, tmp_path: Path) -> None:
    trained = run(data, QUICK.model_copy(update={"epochs": 1}), ("detect.*_preds.*",), scheme).model
    path = tmp_path / "trained.safetensors"
    save_quantized(path, trained, PtqConfig(scheme=scheme, keep_float=("detect.*_preds.*",)))
    found, x = load_weights(path).model, images(1)
    with torch.inference_mode():
        expected = trained(x)
        assert torch.equal(found(x), expected)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(export_quantized(found, SIZE).SerializeToString(), options)
    (computed,) = session.run(["detections"], {"images": x.numpy()})
    # Sums in another order let a value on an edge fall to the other side; quantization's own noise is far larger.
    with quantizing(trained, ()), torch.inference_mode():
        noise = (trained(x) - expected)[..., 5:].norm()
    assert (torch.from_numpy(computed) - expected)[..., 5:].norm() < 0.2 * noise


def test_what_does_not_fit_is_refused(data) -> None:
    teacher = float_model()
    with pytest.raises(QuantizationError, match="no layer of the model quantizes"):
        train_quantized(teacher, teacher, *data, SIZE, QUICK)
    with pytest.raises(TrainingError, match="3 classes in the teacher"):
        train_quantized(calibrated_model(teacher), build(few_blocks("yolov6n_v2", 3)), *data, SIZE, QUICK)
    with pytest.raises(ValidationError, match="nothing to learn from"):
        QatConfig(feature_weight=0, class_weight=0, box_weight=0)


def test_a_loss_that_is_not_finite_stops_with_a_word(data) -> None:
    teacher = float_model()
    start = calibrated_model(teacher)
    with torch.no_grad():
        start.get_submodule(LayerId(layer_ids(start)[5])).bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite at step 1"):
        train_quantized(start, teacher, *data, SIZE, QUICK)
