"""What a user does with a detector whose work lies in products: every command treats them as it does convolutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from attention import exported
from click.testing import CliRunner, Result
from detectors import SIZE

from repq.cli import main
from repq.data import make_demo_set
from repq.graph import layer_nodes, read_metadata
from repq.recipe import DemoConfig

QKV, OUT, WIDE, NARROW = PRODUCTS = ("node_linear", "node_MatMul_33", "node_linear_2", "node_linear_3")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def values(*arguments: object) -> dict[str, Any]:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float file and a data set."""
    folder = tmp_path_factory.mktemp("attention")
    make_demo_set(folder / "set", DemoConfig(train_images=4, val_images=2, size=SIZE, classes=3))
    onnx.save(exported(), folder / "float.onnx")
    return folder


def common(files: Path) -> tuple[object, ...]:
    return ("--data", files / "set/data.yaml", "--imgsz", SIZE)


QUICK = ("--method", "max", "--images", 4)
FEW = (*QUICK, "--max-drop", 1)


def int8_of(path: Path) -> set[str]:
    model = onnx.load(path)
    metadata = read_metadata(model)
    assert metadata is not None and set(metadata.int8_layers) <= set(layer_nodes(model))
    return set(metadata.int8_layers)


@pytest.mark.parametrize("options", [("--plain",), (), ("--scheme", "asymmetric", "--plain")], ids=" ".join)
def test_ptq(files: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    found = values("ptq", files / "float.onnx", *common(files), *FEW, *options, "-o", out)
    rows = {row["layer"]: row for row in found["layers"]}
    assert set(PRODUCTS) <= rows.keys() == int8_of(out)
    assert all(rows[layer]["macs"] > 0 and rows[layer]["weight_snr_db"] > 25 for layer in PRODUCTS)
    assert invoke("lint", out, "--fail-on", "error", "--target", "onnxruntime").exit_code == 0
    assert values("eval", out, *common(files))["images"] == 2


def test_layers_are_kept_in_float_by_name(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    values("ptq", files / "float.onnx", *common(files), *FEW, "--plain", "--keep-float", "node_linear*", "-o", out)
    assert int8_of(out).intersection(PRODUCTS) == {OUT}


def test_a_plan_comes_from_a_measurement(files: Path, tmp_path: Path) -> None:
    few = ("--images", 2, "--calib-images", 4, "--plain", "--top", 3)
    found = values("sensitivity", files / "float.onnx", *common(files), *few, "-o", tmp_path / "out")
    rows = {row["layer"]: row for row in found["layers"]}
    assert set(PRODUCTS) <= rows.keys()
    assert all(0 < rows[layer]["local"]["snr_db"] < 100 for layer in PRODUCTS)
    kept = set(found["plan"]["float_layers"])
    assert set(yaml.safe_load((tmp_path / "out/plan.yaml").read_text())["float"]) == kept and len(kept) == 3
    out = tmp_path / "int8.onnx"
    values(
        "ptq", files / "float.onnx", *common(files), *FEW, "--plain", "--plan", tmp_path / "out/plan.yaml", "-o", out
    )
    assert int8_of(out) == rows.keys() - kept


def test_qat_trains_products(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "qat.onnx"
    quick = ("--epochs", 2, "--set", "batch=2", "--set", "workers=0", "--set", "warmup_steps=1")
    found = values("qat", files / "float.onnx", *common(files), *QUICK, *quick, "--no-eval", "-o", out)
    assert set(PRODUCTS) <= set(found["int8_layers"]) == int8_of(out)
    ratios = {row["layer"]: row["weight_ratio"] for row in found["changes"]}
    assert all(ratios[layer] != 1 for layer in PRODUCTS)


def test_diagnose_looks_at_products(files: Path) -> None:
    found = values("diagnose", files / "float.onnx", *common(files), "--images", 4, "--max-drop", 1)
    assert set(PRODUCTS) <= {row["layer"] for row in found["layers"]}
