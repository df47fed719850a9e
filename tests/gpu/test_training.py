"""Training on a GPU: what it is on the CPU in float32, AMP, RepOptimizer, QAT, and going on after a stop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_training import QUICK, interrupted_after, tiny_model

from repq.data import DetectionDataset, ImageCache, load_dataset
from repq.layers import QuantPlan
from repq.model import TrainOutput, build, layer_ids
from repq.quant import calibrate, insert_quantizers, quantize
from repq.quant.qat import train_quantized
from repq.recipe import CalibrationConfig, DistillConfig, PtqConfig, QatConfig, TrainConfig
from repq.reparam import fuse
from repq.reparam.repopt import extract_scales
from repq.train import TrainOutcome, Updater, train
from repq.train.loader import TrainBatch, training_batches
from repq.train.trainer import moved

SIZE = (64, 64)
AMP = QUICK.model_copy(update={"precision": "auto", "epochs": 6})
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def data(demo: Path) -> tuple[DetectionDataset, DetectionDataset]:
    return load_dataset(demo, "train"), load_dataset(demo, "val")


def first_batch(data: tuple[DetectionDataset, DetectionDataset], config: TrainConfig = QUICK) -> TrainBatch:
    return next(training_batches(ImageCache(data[0].records, SIZE, 1 << 24), SIZE, config, seed=0, epoch=0))


@pytest.mark.parametrize("name", ["yolov6n_v2", "yolov6n_v2_hs", "yolov6lite_s", "yolov6s", "yolox_nano"])
def test_gradients_of_a_network_are_those_of_the_cpu(data, name: str) -> None:
    torch.manual_seed(0)
    model, found = build(name, 3).train(), []
    for device in (torch.device("cpu"), CUDA):
        updater = Updater(moved(copy.deepcopy(model), device), QUICK, device)
        answer = updater.answer(updater.pixels(first_batch(data)))
        generator = torch.Generator().manual_seed(0)
        slopes = [torch.randn(part.shape, generator=generator).to(device) for part in answer[1:3]]
        torch.autograd.backward(answer[1:3], slopes)
        parts = [parameter.grad for parameter in updater.model.parameters() if parameter.grad is not None]
        found.append(torch.cat([part.flatten().cpu() for part in parts]))
    assert (found[1] - found[0]).norm() < 5e-3 * found[0].norm()


@pytest.mark.parametrize("warm_up", [False, True])
@pytest.mark.parametrize("name", ["yolov6n_v2", "yolov6s"])
def test_the_loss_of_an_answer_is_that_of_the_cpu(data, name: str, warm_up: bool) -> None:
    """Not with SimOTA: many points of an untrained model cost the same, and devices do not take the same of them."""
    torch.manual_seed(0)
    model, batch = build(name, 3).train(), first_batch(data)
    on_cpu = Updater(model, QUICK, torch.device("cpu"))
    answer = on_cpu.answer(on_cpu.pixels(batch))
    losses, slopes = [], []
    for device in (torch.device("cpu"), CUDA):
        updater = Updater(moved(copy.deepcopy(model), device), QUICK, device)
        leaves = [None if part is None else part.detach().to(device).requires_grad_() for part in answer[1:]]
        own = TrainOutput(tuple(part.detach().to(device) for part in answer.features), *leaves)
        loss = updater.objective.loss(own, updater.objects(batch), updater.grid(*SIZE), warm_up=warm_up, progress=0.5)
        loss.total.backward()
        losses.append({part: float(value) for part, value in loss.sums.items()})
        slopes.append([leaf.grad.cpu() for leaf in leaves if leaf is not None and leaf.grad is not None])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for wanted, found in zip(*slopes, strict=True):
        assert (found - wanted).norm() <= 1e-3 * wanted.norm()


def close(first: TrainOutcome, second: TrainOutcome) -> bool:
    """Some sums in CUDA have no fixed order, so bits may differ; a training that lost its state is far off."""
    values = second.model.state_dict()
    return all(
        torch.allclose(value.float(), values[name].float(), rtol=0.02, atol=2e-3)
        for name, value in first.model.state_dict().items()
    )


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_it_learns_and_goes_on_after_a_stop(data, precision: str, tmp_path: Path) -> None:
    config = AMP.model_copy(update={"precision": precision})
    whole = train(tiny_model(classes=3), *data, SIZE, config, device="cuda")
    losses = [row.losses["total"] for row in whole.report.epochs]
    assert losses[-1] < losses[0]
    assert all(value.device.type == "cpu" for value in whole.model.state_dict().values())
    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(
            tiny_model(classes=3), *data, SIZE, config, device="cuda", state_path=state, progress=interrupted_after(9)
        )
    resumed = train(tiny_model(classes=3), *data, SIZE, config, device="cuda", state_path=state)
    assert close(whole, resumed)


def test_multi_scale_and_a_teacher(data) -> None:
    config = AMP.model_copy(
        update={"multi_scale": (0.5, 1.5), "distill": DistillConfig(teacher=Path("teacher.pt")), "epochs": 3}
    )
    outcome = train(tiny_model(classes=3), *data, SIZE, config, device="cuda", teacher=tiny_model(1, classes=3).eval())
    losses = [row.losses["total"] for row in outcome.report.epochs]
    assert losses[-1] < losses[0]


def test_rep_optimizer(data) -> None:
    search = train(tiny_model(name="yolov6n_v2_hs", classes=3), *data, SIZE, AMP, device="cuda")
    scales = extract_scales(search.model)
    config = AMP.model_copy(update={"rep_scales": Path("scales.safetensors")})
    outcome = train(tiny_model(name="yolov6n_v2_opt", classes=3), *data, SIZE, config, device="cuda", scales=scales)
    losses = [row.losses["total"] for row in outcome.report.epochs]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("scales", ["learned", "frozen"])
def test_qat_learns_and_goes_on_after_a_stop(data, scheme: str, scales: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = fuse(train(tiny_model(classes=3), *data, SIZE, QUICK, device="cuda").model).eval()
    settings = PtqConfig(scheme=scheme, calibration=CalibrationConfig(method="max"))  # type: ignore[arg-type]

    def start():
        model = insert_quantizers(teacher, QuantPlan(layer_ids(teacher)), settings)
        pixels = torch.from_numpy(first_batch(data).images).permute(0, 3, 1, 2).float() / 255
        calibrate(model, [pixels.contiguous().numpy()], settings.calibration)
        return model

    still = {"flip": 0, "scale": (1.0, 1.0), "translate": 0, "hsv": (0, 0, 0)}
    config = QatConfig(epochs=6, batch=4, workers=0, scales=scales, ema_ramp_steps=5, ema_decay=0.9, **still)  # type: ignore[arg-type]
    whole = train_quantized(start(), teacher, *data, SIZE, config, device="cuda")
    losses = [row.losses["total"] for row in whole.epochs]
    assert losses[-1] < losses[0]
    state = tmp_path / "state.safetensors"
    stopped = interrupted_after(9)
    with pytest.raises(KeyboardInterrupt):
        train_quantized(start(), teacher, *data, SIZE, config, device="cuda", state_path=state, progress=stopped)
    resumed = train_quantized(start(), teacher, *data, SIZE, config, device="cuda", state_path=state)
    again = [row.losses["total"] for row in resumed.epochs]
    assert again == pytest.approx(losses, rel=0.02)


def test_quantize_stays_on_the_device(data) -> None:
    model = fuse(tiny_model(classes=3)).eval().to("cuda")
    pixels = torch.from_numpy(first_batch(data).images).permute(0, 3, 1, 2).float() / 255
    outcome = quantize(model, [pixels.numpy()], PtqConfig(auto=False))
    assert all(value.is_cuda for value in outcome.model.state_dict().values())
