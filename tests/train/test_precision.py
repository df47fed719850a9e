"""bfloat16: where it runs, what stays float32, and that a training in it is one like another."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from small_training import QUICK, SIZE, interrupted_after, same_weights, tiny_model
from torch import nn
from two_processes import all_end_well

from repq.cli import main
from repq.data import ImageCache, make_demo_set
from repq.errors import RecipeError, TrainingError
from repq.identity import hash_tensors
from repq.machine import cpu
from repq.machine.precision import settled_precision, with_precision
from repq.model import Detector, build, get_spec
from repq.model.detector import in_float32
from repq.model.geometry import anchor_points
from repq.recipe import DemoConfig, DistillConfig, EvalConfig, QatConfig, Recipe, TrainConfig
from repq.recipe.reader import parse_recipe, parse_settings
from repq.stages import STAGES
from repq.train import Rates, Updater, train
from repq.train.job import TrainJob
from repq.train.loader import TrainBatch, training_batches
from repq.train.precision import computing_in, gradient_scaler, restore_scaler, scaler_state

CPU = torch.device("cpu")
BFLOAT16 = QUICK.model_copy(update={"precision": "bfloat16"})
RATES = Rates(0.01, 0.01, 0.9)
CHANNELS = ("backbone_channels", "top_down_channels", "bottom_up_channels")
multiplies_bfloat16 = pytest.mark.skipif(
    not cpu.has_bfloat16(), reason=f"this CPU multiplies no bfloat16: {', '.join(cpu.cpu_features())}"
)


def first_batch(data, config: TrainConfig = QUICK, size: tuple[int, int] = SIZE) -> TrainBatch:
    return next(training_batches(ImageCache(data[0].records, size, 1 << 24), size, config, seed=0, epoch=0))


# --- where it runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def older_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the system named no instructions for bfloat16."""
    monkeypatch.setattr(cpu, "cpu_features", lambda: ("avx2", "avx512f", "avx512_vnni"))


@pytest.mark.usefixtures("older_cpu")
def test_a_cpu_without_bfloat16_is_refused(data, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        train(tiny_model(), *data, SIZE, BFLOAT16)
    assert f"found: {cpu.cpu_name()} with avx2, avx512f, avx512_vnni" in str(caught.value)
    assert "fix: leave precision at auto or float32" in str(caught.value)
    out = tmp_path / "out"
    command = ["train", "--data", str(tmp_path / "missing.yaml"), "-o", str(out), "--precision", "bfloat16"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "needs a processor that multiplies it" in result.output
    assert not out.exists()
    with pytest.raises(TrainingError, match="needs a processor"):
        STAGES_BY_NAME["train"].identity(recipe(precision="bfloat16"), {}, lambda split: None)


@pytest.mark.parametrize("features", [("avx2",), ("avx2", "avx512_bf16"), ("amx_bf16", "avx512f")])
def test_auto_is_bfloat16_on_cpus_that_multiply_it(features: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_features", lambda: features)
    assert cpu.has_bfloat16() == (len(features) > 1)
    assert settled_precision("float32", "cpu") == "float32"
    assert settled_precision("auto", "cpu") == ("bfloat16" if len(features) > 1 else "float32")
    assert settled_precision("auto", "mps") == "float32"


@pytest.mark.parametrize("multiplies", [False, True])
def test_auto_is_bfloat16_on_gpus_that_multiply_it(multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: multiplies)
    assert settled_precision("auto", "cuda:1") == ("bfloat16" if multiplies else "float16")


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(TrainingError, match="float16 needs a GPU"):
        settled_precision("float16", "cpu")
    assert settled_precision("float16", "cuda") == "float16"
    with pytest.raises(TrainingError, match="'mps'"):
        settled_precision("bfloat16", "mps")


@pytest.mark.parametrize(("precision", "scales"), [("float32", False), ("bfloat16", False), ("float16", True)])
def test_gradients_are_scaled_in_float16_alone(precision: str, scales: bool) -> None:
    assert gradient_scaler(precision, CPU).is_enabled() == scales


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_training_with_quantizers_has_no_precision(precision: str) -> None:
    for kind in (QatConfig, type(recipe().prune.recovery)):
        with pytest.raises(RecipeError, match="this training is float32 alone"):
            parse_settings(kind, {"precision": precision}, what="qat")


# --- what a result depends on ----------------------------------------------------------------------------------------

STAGES_BY_NAME = {stage.name: stage for stage in STAGES}


def recipe(**settings: object) -> Recipe:
    values = {"name": "run", "data": {"path": "data.yaml"}, "train": settings, "prune": {}}
    return parse_recipe(values, source="test", base=Path())


@multiplies_bfloat16
def test_precision_belongs_to_the_identity(data, tmp_path: Path) -> None:
    def keys(name: str) -> tuple[str, str]:
        config = QUICK.model_copy(update={"precision": name, "epochs": 1})
        stage = STAGES_BY_NAME["train"].identity(recipe(precision=name), {}, lambda split: None)
        job = TrainJob(tiny_model(), *data, SIZE, with_precision(config, CPU), 0, EvalConfig())
        return stage.key, job.identity().key

    assert keys("auto") == keys("bfloat16")
    assert all(own != other for own, other in zip(keys("float32"), keys("bfloat16"), strict=True))
    state = tmp_path / "state.safetensors"
    once = QUICK.model_copy(update={"epochs": 1})
    train(tiny_model(), *data, SIZE, once, state_path=state)
    with pytest.raises(TrainingError, match="different precision"):
        train(tiny_model(), *data, SIZE, BFLOAT16.model_copy(update={"epochs": 1}), state_path=state)


@multiplies_bfloat16
def test_resumes_to_the_same_bits(data, tmp_path: Path) -> None:
    whole = train(tiny_model(), *data, SIZE, BFLOAT16)
    assert whole.report.precision == "bfloat16"
    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), *data, SIZE, BFLOAT16, state_path=state, progress=interrupted_after(7))
    resumed = train(tiny_model(), *data, SIZE, BFLOAT16, state_path=state)
    assert same_weights(whole, resumed)
    assert [row.losses for row in whole.report.epochs] == [row.losses for row in resumed.report.epochs]
    other = train(tiny_model(), *data, SIZE, QUICK)
    assert not same_weights(whole, other)
    assert other.report.precision == "float32"


# --- what it computes ------------------------------------------------------------------------------------------------


@multiplies_bfloat16
def test_only_the_forward_pass_has_fewer_bits(data) -> None:
    updater = Updater(tiny_model().train(), BFLOAT16, CPU)
    assert not updater.scaler.is_enabled()
    seen: dict[str, torch.dtype] = {}
    for name, module in updater.model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *call, name=name: seen.update({name: call[2].dtype}))
    parts = updater.add_gradients([first_batch(data)])
    assert set(seen.values()) == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in parts.values())
    assert all(parameter.grad.dtype == torch.float32 for parameter in updater.parameters if parameter.grad is not None)
    updater.update([first_batch(data)], RATES)
    kept = [*updater.model.state_dict().values()]
    kept += [value for state in updater.optimizer.state.values() for value in state.values() if value is not None]
    assert {value.dtype for value in kept if value.is_floating_point()} == {torch.float32}
    saved = train(tiny_model(), *data, SIZE, BFLOAT16.model_copy(update={"epochs": 1})).model.state_dict()
    assert {value.dtype for value in saved.values() if value.is_floating_point()} == {torch.float32}


@multiplies_bfloat16
@pytest.mark.parametrize("name", ["yolov6n_v2", "yolov6n", "yolov6m", "yolov6lite_s", "yolox_nano"])
def test_every_family_answers_in_float32_and_near_it(name: str, data) -> None:
    """The rounding of bfloat16 is 2^-9; it adds up over layers, but scores and boxes are not rounded once more."""
    torch.manual_seed(0)
    spec = get_spec(name, 2)
    if name == "yolov6m":  # as deep as it is, with the channels of YOLOv6-N
        spec = replace(spec, **{part: getattr(get_spec("yolov6n", 2), part) for part in CHANNELS})
    model = build(spec).train()
    pixels = Updater(model, BFLOAT16, CPU).pixels(first_batch(data))
    with torch.no_grad():
        for _ in range(20):
            model(pixels)
    model.eval()  # a batch norm over four pixels would multiply what was rounded
    answers = []
    for precision in ("float32", "bfloat16"):
        with torch.no_grad(), computing_in(precision, model, CPU):
            answers.append(model.answer(model.features(pixels)))
    exact, rounded = answers
    assert rounded.scores.dtype == rounded.distances.dtype == torch.float32
    assert exact.features[0].dtype == torch.float32 != rounded.features[0].dtype
    torch.testing.assert_close(rounded.scores, exact.scores, rtol=0.1, atol=0.002)
    spread = exact.distances.std().item()
    assert (rounded.distances - exact.distances).abs().mean().item() < 0.03 * max(spread, 1)
    losses = [
        Updater(copy.deepcopy(model).train(), QUICK.model_copy(update={"precision": precision}), CPU).loss(
            first_batch(data)
        )
        for precision in ("float32", "bfloat16")
    ]
    values = [float(loss.total.detach()) for loss in losses]
    assert values[1] == pytest.approx(values[0], rel=0.05)
    assert all(math.isfinite(value) for value in values)


def test_points_of_large_maps_are_not_rounded() -> None:
    maps = [torch.zeros(1, 1, 2, 400, dtype=torch.bfloat16)]
    points, strides = anchor_points(maps, [8], torch.float32)
    assert points.dtype == strides.dtype == torch.float32
    assert torch.equal(points[:400, 0], torch.arange(400) + 0.5)
    half = torch.ones(2, dtype=torch.bfloat16)
    assert in_float32(half) is half
    with torch.autocast("cpu", torch.bfloat16):
        assert in_float32(half).dtype == torch.float32
        assert in_float32(half.to("meta")).dtype == torch.bfloat16, "a device without autocast"


@multiplies_bfloat16
def test_the_loss_falls_as_in_float32(data) -> None:
    """Over 20 epochs of a tiny model, the mean of the last five epochs is within 5 %."""
    config = QUICK.model_copy(update={"epochs": 20, "learning_rate": 0.03, "eval_interval": 20})
    means = {}
    for precision in ("float32", "bfloat16"):
        outcome = train(tiny_model(), *data, SIZE, config.model_copy(update={"precision": precision}))
        losses = [row.losses["total"] for row in outcome.report.epochs]
        means[precision] = sum(losses[-5:]) / 5
        assert means[precision] < 0.8 * losses[0]
    assert means["bfloat16"] == pytest.approx(means["float32"], rel=0.05)


@multiplies_bfloat16
def test_it_goes_with_a_teacher_drawn_sizes_and_a_search_for_scales(data) -> None:
    changes = {"epochs": 2, "distill": DistillConfig(teacher=Path("teacher.pt")), "multi_scale": (0.5, 1.5)}
    rows = {}
    for precision in ("float32", "bfloat16"):
        config = QUICK.model_copy(update={**changes, "precision": precision})
        taught = train(tiny_model(name="yolov6n_v2_hs"), *data, SIZE, config, teacher=tiny_model(seed=1))
        rows[precision] = taught.report.epochs[-1].losses
    assert "distill_class" in rows["bfloat16"]
    for name, value in rows["bfloat16"].items():
        assert value == pytest.approx(rows["float32"][name], rel=0.15, abs=0.01), name


def test_a_detector_without_a_training_form_teaches_in_float32() -> None:
    class Plain(Detector):
        def __init__(self) -> None:
            super().__init__(tiny_model().spec)
            self.conv = nn.Conv2d(3, 7, 1)

        def features(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.conv(x),)

        def predict(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
            assert features[0].dtype == torch.float32
            return features[0].flatten(2).transpose(1, 2) * 300 + 0.1

    with torch.autocast("cpu", torch.bfloat16):
        model = Plain()
        answer = model.answer(model.features(torch.rand(1, 3, 4, 4)))
    assert answer.features[0].dtype == torch.bfloat16
    assert answer.scores.dtype == answer.distances.dtype == torch.float32


def test_slow_convolutions_are_let_out_and_put_back() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 5, groups=4),
        nn.Conv2d(4, 4, 3, stride=2, groups=4),
    )  # fmt: skip
    gradients: dict[str, list[torch.Tensor]] = {}
    x = torch.rand(1, 4, 20, 20)
    for precision in ("float32", "bfloat16"):
        model.zero_grad()
        with computing_in(precision, model, CPU):
            read = [layer(x).dtype for layer in model]
            assert [("forward" in vars(layer)) for layer in model] == [False, False, *[precision == "bfloat16"] * 2]
            model(x).float().square().mean().backward()
        gradients[precision] = [layer.weight.grad.clone() for layer in model]
        assert not any("forward" in vars(layer) for layer in model)
        assert set(read) == {getattr(torch, precision)}
    for exact, rounded in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02 * exact.abs().max().item())
    with pytest.raises(RuntimeError, match="channels"), computing_in("bfloat16", model, CPU):
        model(torch.rand(1, 3, 20, 20))
    assert not any("forward" in vars(layer) for layer in model)


WORKER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from small_training import QUICK, SIZE, tiny_model
from repq.data import load_dataset
from repq.identity import hash_tensors
from repq.train import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    sets = [load_dataset(folder / "set" / "data.yaml", split) for split in ("train", "val")]
    config = QUICK.model_copy(update={"epochs": 2, "precision": "bfloat16"})
    outcome = train(tiny_model(int(os.environ["RANK"])), *sets, SIZE, config)
    weights, report = hash_tensors(outcome.model.state_dict()), outcome.report
    (folder / f"weights{os.environ['RANK']}.txt").write_text(
        f"{weights} {report.precision} {report.epochs[0].losses['total']}"
    )
"""


@multiplies_bfloat16
def test_two_processes_train_one_model(data, tmp_path: Path) -> None:
    make_demo_set(tmp_path / "set", DemoConfig(train_images=10, val_images=4, size=64, classes=2))
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    all_end_well(worker, tmp_path, Path(__file__).parent)
    first, second = ((tmp_path / f"weights{rank}.txt").read_text() for rank in range(2))
    assert first == second
    weights, precision, total = first.split()
    assert precision == "bfloat16"
    alone = train(tiny_model(), *data, SIZE, BFLOAT16.model_copy(update={"epochs": 2}))
    assert weights != hash_tensors(alone.model.state_dict()), "batch norm sees the batch of each process"
    assert float(total) == pytest.approx(alone.report.epochs[0].losses["total"], rel=0.15)


def test_the_precision_is_known_without_torch() -> None:
    """A run that reuses everything has to know it, and torch takes longer to load than all that it does."""
    code = """
import sys
from repq.stages.train import STAGE
from repq.recipe import parse_recipe
from pathlib import Path
recipe = parse_recipe({"name": "run", "data": {"path": "d.yaml"}, "train": {}}, source="test", base=Path())
assert STAGE.settled(recipe).train.precision in ("float32", "bfloat16")
assert "torch" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


# --- the scale of a loss in float16 ----------------------------------------------------------------------------------


def test_a_scaler_goes_on_from_numbers_in_a_file() -> None:
    def stepped(scaler: torch.amp.GradScaler, updates: int) -> torch.amp.GradScaler:
        parameter = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        for _ in range(updates):
            scaler.scale(parameter.sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return scaler

    def new() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)

    saved = scaler_state(stepped(new(), 4))
    assert all(isinstance(value, float) for value in saved.values())
    resumed = new()
    restore_scaler(resumed, saved)
    assert stepped(resumed, 3).state_dict() == stepped(new(), 7).state_dict()


def test_an_idle_scaler_has_no_state() -> None:
    idle = gradient_scaler("float32", CPU)
    assert scaler_state(idle) == {}
    restore_scaler(idle, {})
    restore_scaler(idle, {"scale": 2.0, "_growth_tracker": 1.0})  # of a file that a GPU wrote in another precision
