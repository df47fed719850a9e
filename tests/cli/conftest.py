"""Small files of every kind that commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import SIZE, Material, invoke


def small_graph() -> Any:
    """Two convolutions: enough for what reads graphs, and made in no time."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {"a.weight": (4, 3, 3, 3), "b.weight": (8, 4, 1, 1)}
    tensors = [
        numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name) for name, size in weights.items()
    ]
    nodes = [
        helper.make_node("Conv", ["images", "a.weight"], ["y"], "a", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["y"], ["z"], "relu"),
        helper.make_node("Conv", ["z", "b.weight"], ["w"], "b", kernel_shape=[1, 1]),
        helper.make_node("Flatten", ["w"], ["detections"], "flat", axis=2),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    found = helper.make_tensor_value_info("detections", TensorProto.FLOAT, [8, SIZE * SIZE])
    graph = helper.make_graph(nodes, "g", [images], [found], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    import torch
    from small_training import tiny_model

    from repq.data import make_demo_set
    from repq.model import build, save_checkpoint
    from repq.recipe import DemoConfig

    folder = tmp_path_factory.mktemp("material")
    data = make_demo_set(folder / "set", DemoConfig(train_images=2, val_images=2, size=SIZE, classes=3))
    torch.manual_seed(0)
    weights = folder / "float.safetensors"
    model = build(tiny_model(classes=3).spec, deploy=True).eval()
    save_checkpoint(weights, model, names=("ring", "triangle", "cross"))
    onnx, manifest, plan, recipe, ablation, bench = (
        folder / name for name in ("model.onnx", "calib.txt", "plan.yaml", "recipe.yaml", "ablation.yaml", "bench.json")
    )
    onnx.write_bytes(small_graph().SerializeToString())
    assert invoke("calib", "--data", data, "--images", 2, "-o", manifest).exit_code == 0
    plan.write_text("float: []\n")
    # One mapping in braces: half of the text is no YAML, wherever the halves part.
    recipe.write_text(f"{{name: x, data: {{path: {data}}}, weights: {weights}, imgsz: {SIZE}}}\n")
    ablation.write_text(f"name: x\nbase: {{data: {{path: {data}}}, weights: {weights}}}\nvariants: {{a: {{}}}}\n")
    bench.write_text("{}")
    files = {
        "WEIGHTS": weights, "--weights": weights, "--teacher": weights, "MODEL": weights, "--maxima": weights,
        "--compare": weights, "SOURCE": next((folder / "set").rglob("*.jpg")),
        "--rep-scales": weights, "--data": data, "--calib": manifest, "--plan": plan, "BENCH": bench,
        "RECIPE": recipe, "--recipe": recipe, "ABLATION": ablation, "lint MODEL": onnx, "estimate MODEL": onnx,
        "build MODEL": onnx,
    }  # fmt: skip
    return Material(folder, files)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def detector_onnx(material: Material) -> Path:
    path = material.folder / "detector.onnx"
    assert invoke("export", material.files["WEIGHTS"], "-o", path, "--imgsz", SIZE).exit_code == 0
    return path
