"""A family of detectors is one file and one entry in a list: everything works on its models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional

from repq.cli import main
from repq.data import batches, load_dataset, make_demo_set
from repq.errors import CheckpointError, RepqError, TrainingError
from repq.evaluate import evaluate, postprocess
from repq.export import export_float, export_quantized
from repq.graph import nms_output, read_metadata
from repq.layout import OutputLayout
from repq.model import (
    FAMILIES,
    Detector,
    Family,
    Fold,
    Recovery,
    Spec,
    TrainOutput,
    build,
    conv_and_norm,
    count_macs,
    get_spec,
    layer_ids,
    load_checkpoint,
    outline,
    read_spec,
    save_checkpoint,
)
from repq.preprocessing import Preprocessing
from repq.quant import quantize
from repq.recipe import DemoConfig, EvalConfig, NmsConfig, PtqConfig
from repq.reparam import fuse, fuse_with_proof
from repq.train import Objective
from repq.train.losses import DetectionLoss

SIZE, CLASSES = (64, 64), 3

# --- the family -------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "toy_corners": OutputLayout(box_form="corners", objectness=None, scores=4),
    "toy_columns": OutputLayout(objectness=None, scores=4, columns_first=True),
    "toy_objectness": OutputLayout(box_form="corners", objectness=0, boxes=2, scores=6, unused=1),
}
PREPROCESSINGS = {
    "toy_columns": Preprocessing(colours="bgr", divisor=1, placement="top_left", resize="linear", pad=80),
    "toy_objectness": Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
}


@dataclass(frozen=True, kw_only=True)
class ToySpec(Spec):
    family: str = "toy"
    width: int = 16

    @property
    def layout(self) -> OutputLayout:
        return LAYOUTS[self.name]


class Down(nn.Module):
    """``relu(bn(conv(x)))``."""

    def __init__(self, before: int, after: int, *, deploy: bool) -> None:
        super().__init__()
        self.c = nn.Conv2d(before, after, 3, 2, 1, bias=deploy)
        self.n = nn.Identity() if deploy else nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.n(self.c(x)))

    def folds(self) -> list[Fold]:
        return [conv_and_norm("c", self.c, self.n)]


class Toy(Detector):
    def __init__(self, spec: ToySpec, *, deploy: bool) -> None:
        super().__init__(spec, deploy=deploy)
        self.body = nn.Sequential(*(Down(a, spec.width, deploy=deploy) for a in (3, spec.width, spec.width)))
        self.ends = nn.Conv2d(spec.width, 5 + spec.num_classes, 1)

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.body(x),)

    def predict(self, features: tuple[Tensor, ...]) -> Tensor:
        raw = self.ends(features[0])
        rows = torch.arange(raw.shape[2], device=raw.device, dtype=raw.dtype) * 8 + 4
        columns = torch.arange(raw.shape[3], device=raw.device, dtype=raw.dtype) * 8 + 4
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centre = torch.stack((x, y)).flatten(1).T
        raw = raw.flatten(2).transpose(1, 2)
        sides = 8 * functional.softplus(raw[..., :4])
        low, high = centre - sides[..., :2], centre + sides[..., 2:]
        objectness, scores = raw[..., 4:5].sigmoid(), raw[..., 5:].sigmoid()
        if self.spec.name == "toy_columns":
            return torch.cat(((low + high) / 2, high - low, scores), -1).transpose(1, 2)
        if self.spec.name == "toy_objectness":
            return torch.cat((objectness, torch.ones_like(objectness), low, high, scores), -1)
        return torch.cat((low, high, scores), -1)


class ToyObjective(Objective):
    """A cell inside an object is to find it."""

    def loss(self, output: TrainOutput, objects, grid, **_: object) -> DetectionLoss:
        low, high = objects.boxes[..., None, :2], objects.boxes[..., None, 2:]  # (B, M, 1, 2)
        inside = ((grid.points > low) & (grid.points < high)).all(-1) & objects.valid[..., None]
        owner, positive = inside.float().argmax(1), inside.any(1)
        wanted = objects.boxes.gather(1, owner[..., None].expand(-1, -1, 4))
        labels = functional.one_hot(objects.classes.gather(1, owner).long(), self.spec.num_classes)
        scores = labels * positive[..., None].float()
        of_scores = functional.binary_cross_entropy(output.scores, scores, reduction="sum")
        of_boxes = (output.distances - wanted).abs()[positive].sum() / 64
        return DetectionLoss({"class": of_scores, "box": of_boxes}, scores.sum())


class ToyFamily(Family):
    name = "toy"
    spec_type = ToySpec

    def model_names(self) -> tuple[str, ...]:
        return tuple(LAYOUTS)

    def spec(self, name: str, num_classes: int) -> ToySpec | None:
        if name not in LAYOUTS:
            return None
        form = PREPROCESSINGS.get(name, Preprocessing())
        return ToySpec(name=name, num_classes=num_classes, strides=(8,), preprocessing=form)

    def build(self, spec: ToySpec, *, deploy: bool) -> Toy:
        return Toy(spec, deploy=deploy)

    def recover(self, shapes, name, modules) -> Recovery | None:
        if "ends.bias" not in shapes:
            return None
        spec = self.spec(name or "toy_corners", shapes["ends.bias"][0] - 5)
        entries = {entry: tuple(value.shape) for entry, value in outline(spec, False).state_dict().items()}
        if entries != dict(shapes):
            raise CheckpointError("no toy of this form")
        return Recovery(spec, False, {entry: entry for entry in shapes})

    def objective(self, model, config) -> Objective:
        return ToyObjective(model, config)


class Wordless(ToyFamily):
    """Without a loss."""

    def objective(self, model, config) -> None:
        return None


# --- what is done with it ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def family() -> Iterator[Family]:
    toy = ToyFamily()
    FAMILIES.append(toy)
    yield toy
    FAMILIES[:] = [other for other in FAMILIES if other.name != "toy"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "demo"
    return make_demo_set(folder, DemoConfig(train_images=12, val_images=8, size=64, classes=CLASSES))


@pytest.fixture(params=list(LAYOUTS))
def model(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    toy = build(request.param, CLASSES)
    for module in toy.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    toy.ends.weight.data *= 4
    return toy.eval()


def images(data: Path, model: Detector, count: int = 8) -> np.ndarray:
    form = model.spec.preprocessing
    return next(iter(batches(load_dataset(data, "val"), SIZE, count, preprocessing=form))).images


def run(*arguments: object) -> dict:
    result = CliRunner().invoke(main, [str(argument) for argument in (*arguments, "--json")])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def runtime(graph: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"images": pixels})[0]


def test_it_is_built_saved_and_loaded(model: Detector, tmp_path: Path) -> None:
    assert model.spec == get_spec(model.spec.name, CLASSES) == read_spec(model.spec.to_json())
    save_checkpoint(tmp_path / "toy.safetensors", model, names=("a", "b", "c"))
    loaded = load_checkpoint(tmp_path / "toy.safetensors")
    assert (type(loaded.model), loaded.spec, loaded.names) == (Toy, model.spec, ("a", "b", "c"))
    pixels = torch.rand(2, 3, *SIZE)
    assert torch.equal(loaded.model(pixels), model(pixels))
    torch.save({"model": model.state_dict()}, tmp_path / "toy.pt")
    assert torch.equal(load_checkpoint(tmp_path / "toy.pt", model.spec.name).model(pixels), model(pixels))


def test_files_of_other_families_are_not_taken_for_its_own(tmp_path: Path) -> None:
    torch.save(build("yolov6n_v2", 2).state_dict(), tmp_path / "v6.pt")
    assert load_checkpoint(tmp_path / "v6.pt").spec.family == "yolov6"
    torch.save({"ends.weight": torch.ones(3)}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"1 tensors that no family \(yolov6, yolox, onnx, toy\) knows"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(RepqError, match="toy_corners"):
        build("toy_corner")


def test_it_is_fused_with_proof(model: Detector, data: Path) -> None:
    fused, report = fuse_with_proof(model, torch.from_numpy(images(data, model)), 1e-4)
    assert [block.layer for block in report.blocks] == [f"body.{number}.c" for number in range(3)]
    assert fused.deploy and layer_ids(fused) == (*(row.layer for row in report.blocks), "ends")
    assert count_macs(fused, 64)["ends"] == 8 * 8 * 16 * (5 + CLASSES)


def test_it_is_exported_quantized_and_suppressed_in_the_graph(model: Detector, data: Path) -> None:
    fused, pixels = fuse(model), images(data, model, 1)
    quantized = quantize(fused, [torch.from_numpy(images(data, model))], PtqConfig()).model
    float_graph, int8_graph = export_float(fused, SIZE), export_quantized(quantized, SIZE)
    for network, graph in ((fused, float_graph), (quantized, int8_graph)):
        with torch.no_grad():
            expected = network(torch.from_numpy(pixels)).numpy()
        found = runtime(graph, pixels)
        if network is fused:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        else:  # a value between two integers may go to the other one
            assert np.square(found - expected).sum() < 1e-3 * np.square(expected).sum()
        assert read_metadata(graph).layout == model.spec.layout
        settings = {"confidence": 0.3, "iou": 0.5, "max_detections": 20}
        wanted = postprocess(found, EvalConfig(**settings), model.spec.layout)[0]
        (rows,) = runtime(nms_output(graph, NmsConfig(**settings)), pixels)
        assert 0 < len(wanted) < 64 * CLASSES
        np.testing.assert_allclose(rows[rows[:, 4] > 0], wanted, rtol=1e-4, atol=1e-4)


def test_layouts_lead_to_the_same_boxes(data: Path) -> None:
    torch.manual_seed(0)
    weights, pixels = build("toy_corners", CLASSES).state_dict(), torch.rand(1, 3, *SIZE)
    found = []
    for name, given in (("toy_corners", pixels), ("toy_columns", pixels)):
        toy = build(name, CLASSES).eval()
        toy.load_state_dict(weights)
        with torch.no_grad():
            found += postprocess(toy(given).numpy(), EvalConfig(), toy.spec.layout)
    assert len(found[0])
    np.testing.assert_allclose(found[0][:, :5], found[1][:, :5], rtol=1e-4, atol=1e-3)


def test_the_command_line_takes_it(model: Detector, data: Path, tmp_path: Path) -> None:
    at = ("--imgsz", 64, "--data", data)
    save_checkpoint(tmp_path / "w.safetensors", model)
    own = run("eval", tmp_path / "w.safetensors", *at)
    with torch.no_grad():
        expected = evaluate(
            lambda pixels: model(torch.from_numpy(pixels)).numpy(), load_dataset(data, "val"), SIZE, EvalConfig(),
            layout=model.spec.layout, preprocessing=model.spec.preprocessing,
        )  # fmt: skip
    assert own["ap"] == pytest.approx(expected.ap)
    run("fuse", tmp_path / "w.safetensors", *at, "-o", tmp_path / "f.safetensors", "--images", 2)
    quick = ("--images", 8, "--plain", "--max-drop", 1)
    run("ptq", tmp_path / "f.safetensors", *at, *quick, "-o", tmp_path / "q.safetensors")
    for name in ("w", "q"):
        run("export", tmp_path / f"{name}.safetensors", "--imgsz", 64, "-o", tmp_path / f"{name}.onnx")
        run("export", tmp_path / f"{name}.safetensors", "--imgsz", 64, "--nms", "-o", tmp_path / f"{name}_nms.onnx")
        ap = run("eval", tmp_path / f"{name}.onnx", *at)["ap"]
        assert ap == pytest.approx(run("eval", tmp_path / f"{name}.safetensors", *at)["ap"], abs=5e-3)
        assert run("eval", tmp_path / f"{name}_nms.onnx", *at)["ap"] == pytest.approx(ap, abs=1e-3)


def test_it_is_trained_and_learns_to_answer_as_its_float_model(data: Path, tmp_path: Path) -> None:
    at, quick = ("--imgsz", 64, "--data", data), ("--epochs", 2, "--batch", 4, "--set", "workers=0")
    run("train", "--model", "toy_corners", *at, *quick, "-o", tmp_path / "run")
    weights = tmp_path / "run" / "weights.safetensors"
    assert load_checkpoint(weights).spec.family == "toy"
    losses = [row["losses"] for row in json.loads((tmp_path / "run" / "train.json").read_text())["epochs"]]
    assert losses[1]["total"] < losses[0]["total"]
    run("qat", weights, *at, *quick, "--images", 8, "-o", tmp_path / "qat.safetensors")
    assert "ap" in run("eval", tmp_path / "qat.safetensors", *at)


def test_without_a_loss_it_is_not_trained_on_labels_but_by_imitation(data: Path, tmp_path: Path) -> None:
    FAMILIES[-1] = Wordless()
    at, quick = ("--imgsz", 64, "--data", data), ("--epochs", 1, "--batch", 4, "--set", "workers=0")
    result = CliRunner().invoke(
        main, [str(part) for part in ("train", "--model", "toy_corners", *at, *quick, "-o", tmp_path / "run")]
    )
    assert result.exit_code == 2 and "cannot be trained on labels" in result.output
    assert isinstance(result.exception, SystemExit | TrainingError)
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "w.safetensors", build("toy_corners", CLASSES))
    run("qat", tmp_path / "w.safetensors", *at, *quick, "--images", 8, "-o", tmp_path / "qat.safetensors")
