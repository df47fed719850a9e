"""Both stages of RepOptimizer in the loop: a hyper-search, then plain blocks trained with its scales."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import QUICK, SIZE, interrupted_after, same_weights, tiny_model

from repq.errors import TrainingError
from repq.reparam.repopt import RepScales, extract_scales, load_scales, reinitialize, save_scales
from repq.train import Updater, train

SCALES = Path("scales.safetensors")  # only its content counts, which is given beside it
TARGET = QUICK.model_copy(update={"rep_scales": SCALES, "epochs": 3})


@pytest.fixture(scope="module")
def scales(data, tmp_path_factory: pytest.TempPathFactory) -> RepScales:
    search = tiny_model(name="yolov6n_v2_hs")
    before = {name: value.clone() for name, value in search.state_dict().items()}
    outcome = train(search, *data, SIZE, QUICK.model_copy(update={"epochs": 1, "learning_rate": 0.05}))
    path = tmp_path_factory.mktemp("scales") / SCALES
    save_scales(path, extract_scales(outcome.model))
    learnt = [name for name, value in outcome.model.state_dict().items() if not torch.equal(value, before[name])]
    assert any("scale_1x1" in name for name in learnt)
    return load_scales(path)


def target_model(seed: int = 0):
    return tiny_model(seed, name="yolov6n_v2_opt")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_target_training_resumes_to_the_same_bits(data, scales: RepScales, optimizer: str, tmp_path: Path) -> None:
    config = TARGET.model_copy(update={"optimizer": optimizer, "learning_rate": 0.001})
    whole = train(target_model(), *data, SIZE, config, scales=scales)
    assert whole.report.epochs[-1].losses["total"] < whole.report.epochs[0].losses["total"]
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(target_model(), *data, SIZE, config, scales=scales, state_path=path, progress=interrupted_after(7))
    resumed = train(target_model(), *data, SIZE, config, scales=scales, state_path=path)
    assert same_weights(whole, resumed)


def test_other_scales_are_another_training(data, scales: RepScales, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    config = TARGET.model_copy(update={"epochs": 1})
    train(target_model(), *data, SIZE, config, scales=scales, state_path=path)
    first, *_ = scales.blocks
    block = scales.blocks[first]
    other = RepScales(scales.model, {**scales.blocks, first: replace(block, point=block.point + 0.1)})
    with pytest.raises(TrainingError, match="different rep_scales"):
        train(target_model(), *data, SIZE, config, scales=other, state_path=path)
    moved = config.model_copy(update={"rep_scales": Path("elsewhere.safetensors")})
    train(target_model(), *data, SIZE, moved, scales=scales, state_path=path)


def test_only_fresh_weights_are_reinitialized(data, scales: RepScales) -> None:
    still = TARGET.model_copy(update={"epochs": 1, "learning_rate": 1e-12, "warmup_bias_learning_rate": 0.0})
    expected = target_model()
    reinitialize(expected, scales, seed=0)
    fresh = train(target_model(), *data, SIZE, still, scales=scales).model
    trained = train(
        target_model(), *data, SIZE, still.model_copy(update={"weights": Path("a.pt")}), scales=scales
    ).model
    kernel = "backbone.ERBlock_3.1.block.0.conv.weight"
    kernel = next(name for name in expected.state_dict() if name.endswith("conv.weight") and "ERBlock_3" in name)
    torch.testing.assert_close(fresh.state_dict()[kernel], expected.state_dict()[kernel], rtol=0, atol=1e-6)
    torch.testing.assert_close(trained.state_dict()[kernel], target_model().state_dict()[kernel], rtol=0, atol=1e-6)


def test_scales_and_settings_have_to_agree(data, scales: RepScales) -> None:
    with pytest.raises(TrainingError, match="rep_scales is set, but what it names is not given"):
        train(target_model(), *data, SIZE, TARGET)
    with pytest.raises(TrainingError, match="rep_scales is not set"):
        train(target_model(), *data, SIZE, QUICK, scales=scales)
    with pytest.raises(TrainingError, match="scales of a hyper-search"):
        train(target_model(), *data, SIZE, QUICK)


def test_the_updater_multiplies_the_gradients(scales: RepScales) -> None:
    plain = Updater(target_model(), QUICK, torch.device("cpu"))
    rep = Updater(target_model(), QUICK, torch.device("cpu"), scales=scales)
    assert not hasattr(plain.optimizer, "multipliers")
    assert len(rep.optimizer.multipliers) == len(scales.blocks)  # type: ignore[attr-defined]
