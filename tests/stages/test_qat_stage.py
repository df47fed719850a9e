"""`repq qat` on files: from what `repq ptq` wrote and from float weights, into what `repq ptq` writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from few_blocks import few_blocks
from small_training import answering_model

from repq.cli import main
from repq.data import make_demo_set
from repq.model import Detector, build, save_checkpoint
from repq.quant import load_weights, scale_table
from repq.recipe import DemoConfig

NAMES = ("ring", "triangle", "cross")
FAST = ("--epochs", "1", "--batch", "4", "--set", "workers=0", "--set", "warmup_steps=1")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qat")
    make_demo_set(folder / "set", DemoConfig(train_images=4, val_images=2, size=64, classes=3))
    save_checkpoint(folder / "float.safetensors", detector(), names=NAMES)
    common = ("--imgsz", "64", "--images", "2", "--method", "max", "--keep-float", "detect.*_preds.*")
    values("ptq", folder / "float.safetensors", *data(folder), *common, "--plain", "-o", folder / "ptq.safetensors")
    return folder


def detector(name: str = "yolov6n_v2", classes: int = 3) -> Detector:
    torch.manual_seed(0)
    return build(few_blocks(name, classes), deploy=True).eval()


def data(folder: Path) -> tuple[object, ...]:
    return ("--data", folder / "set" / "data.yaml")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def values(*arguments: object) -> dict:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def qat(files: Path, weights: Path, *options: object) -> tuple[object, ...]:
    return ("qat", weights, *data(files), "--imgsz", "64", *FAST, *options)


def test_a_quantized_checkpoint_is_trained_into_one_of_the_same_form(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "qat.safetensors"
    found = values(*qat(files, files / "ptq.safetensors", "-o", out, "--keep-float", "backbone.stem*"))
    assert {"ap_float", "ap_calibrated", "ap_trained"} <= found.keys()
    before, after = (load_weights(path) for path in (files / "ptq.safetensors", out))
    assert set(before.plan.int8) - set(after.plan.int8) == {
        layer for layer in before.plan.int8 if layer.startswith("backbone.stem")
    }
    assert found["int8_layers"] == list(after.plan.int8)
    assert after.names == NAMES
    assert after.config.scheme == before.config.scheme
    assert len(scale_table(after.model)) == len(after.plan.int8)
    assert [path.name for path in tmp_path.iterdir()] == ["qat.safetensors"]  # no state is left
    # Both engines take it as they take what `repq ptq` wrote.
    values("check", out, *data(files), "--imgsz", "64", "--max-drop", "1")


def test_weights_that_training_made_worse_are_not_kept(files: Path, tmp_path: Path) -> None:
    images = make_demo_set(tmp_path / "set", DemoConfig(train_images=4, val_images=8, size=64))
    save_checkpoint(tmp_path / "float.safetensors", answering_model(3, 64, few_blocks("yolov6n_v2", 3)), names=NAMES)
    start, out = tmp_path / "ptq.safetensors", tmp_path / "qat.safetensors"
    common = ("--data", images, "--imgsz", 64)
    values("ptq", tmp_path / "float.safetensors", *common, "--plain", "--max-drop", 1, "-o", start)
    ruined = (*FAST, "--epochs", 2, "--set", "learning_rate=3", "--max-drop", 1)
    found = values("qat", start, *common, *ruined, "-o", out)
    assert found["ap_trained"] < found["ap_calibrated"]
    assert found["kept"] == "calibrated" and found["changes"] == []
    before, after = (load_weights(path).model.state_dict() for path in (start, out))
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_teacher_of_another_kind_and_more_classes_teaches(files: Path, tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher.safetensors", tmp_path / "qat.safetensors"
    save_checkpoint(teacher, detector("yolov6n", 4), names=("square", *NAMES[::-1]))
    settings = ("--set", "projector_weight=1", "--images", 2, "--method", "max", "--weight-granularity", "tensor",
                "--reduce-range")  # fmt: skip
    found = values(*qat(files, files / "float.safetensors", "--teacher", teacher, *settings, "-o", out, "--no-eval"))
    assert {"distill_class", "distill_box", "distill_features", "distill_projected"} < found["epochs"][0][
        "losses"
    ].keys()
    assert found["epochs"][0]["teacher_seconds"] > 0
    weights = load_weights(out)
    assert weights.names == NAMES
    assert {scales.weight.axis for scales in scale_table(weights.model).values()} == {None}
    assert weights.config.reduce_range


def test_float_weights_are_calibrated_first(files: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "qat.safetensors", tmp_path / "plan.yaml"
    plan.write_text("model: yolov6n_v2\nfloat: ['neck.*']\n")
    options = ("--scheme", "asymmetric", "--images", 2, "--scales", "frozen", "--plan", plan, "--task-weight", "1")
    result = invoke(*qat(files, files / "float.safetensors", *options, "-o", out), "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["ap_float"] == 0
    assert "what INT8 loses cannot be measured" in " ".join(result.stderr.split())
    assert found["scheme"] == "asymmetric"
    assert {"class", "iou"} < found["epochs"][0]["losses"].keys()
    assert found["float_layers"]
    assert all(layer.startswith("neck.") for layer in found["float_layers"])
    assert {row["weight_ratio"] for row in found["changes"]} == {1.0}
    assert load_weights(out).config.scheme == "asymmetric"


def test_what_cannot_be_used_is_refused_without_a_trace(files: Path, tmp_path: Path) -> None:
    wrong_plan = tmp_path / "plan.yaml"
    wrong_plan.write_text("float: ['neck.Rep_p9.*']\n")
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, detector("yolov6n_v2", 2), names=NAMES[:2])
    quantized, out = files / "ptq.safetensors", tmp_path / "out" / "qat.safetensors"
    cases = (
        (quantized, ("--plan", wrong_plan), "matches no layer"),
        (quantized, ("--keep-float", "bakcbone.*"), "closest"),
        (quantized, ("--keep-float", "*"), "no layer of the model quantizes"),
        (quantized, ("--scheme", "asymmetric"), "quantized already"),
        (quantized, ("--teacher", quantized), "quantized already"),
        (quantized, ("--teacher", other), "does not know every class"),
        (quantized, ("--set", "learnig_rate=0.1"), "learning_rate"),
        (
            quantized,
            ("--set", "feature_weight=0", "--set", "class_weight=0", "--set", "box_weight=0"),
            "nothing to learn",
        ),
        (tmp_path / "absent.safetensors", (), "absent"),
    )
    for weights, options, message in cases:
        result = invoke(*qat(files, weights, *options, "-o", out))
        assert result.exit_code == 2, result.output
        assert "error:" in result.output
        assert message in result.output
        assert "Traceback" not in result.output
    assert not out.parent.exists()
