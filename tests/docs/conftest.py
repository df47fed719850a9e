"""A folder in which the commands of the pages find what they name, small enough that each takes a second."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from few_blocks import give_few_blocks
from pages import SIZE


@pytest.fixture(scope="module")
def few_blocks() -> Iterator[None]:
    """YOLOv6-N with one block a stage, and a stage with two: commands export, build and run it many times."""
    with pytest.MonkeyPatch.context() as patch:
        give_few_blocks(patch, "yolov6n_v2")
        yield


@pytest.fixture(scope="module")
def desk(few_blocks: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``best.pt``, ``data.yaml`` and what the first commands of a page leave for the next ones."""
    import torch

    import repq
    from repq.data import make_demo_set
    from repq.model import build
    from repq.recipe import DemoConfig
    from repq.recipe.reader import SHIPPED

    desk = tmp_path_factory.mktemp("desk")
    make_demo_set(desk, DemoConfig(train_images=4, val_images=2, size=SIZE))
    torch.manual_seed(0)
    detector = build("yolov6n_v2", 3).train()
    with torch.no_grad():
        detector(torch.rand(4, 3, SIZE, SIZE))
    torch.save(detector.state_dict(), desk / "best.pt")
    shutil.copy(desk / "data.yaml", desk / "other.yaml")
    (desk / "recipes").symlink_to(SHIPPED)
    shutil.copytree(desk / "images", desk / "runs" / "quickstart" / "data" / "0" / "demo" / "images")
    shutil.copy(desk / "images" / "val" / "00000.jpg", desk / "image.jpg")
    float_ = repq.load(desk / "best.pt").fuse()
    float_.save(desk / "fused.safetensors")
    float_.save(desk / "runs" / "repvgg" / "weights.safetensors")
    int8 = float_.quantize(desk / "data.yaml", imgsz=SIZE, auto=False, scheme="asymmetric", limit=2)
    int8.save(desk / "int8.safetensors")
    float_.export(desk / "float.onnx", imgsz=SIZE)
    onnx = int8.export(desk / "int8.onnx", imgsz=SIZE)
    built = onnx.build("openvino", out=desk / "int8.openvino")
    assert built.path is not None
    for run in ("quickstart", "best"):
        shutil.copytree(built.path, desk / "runs" / run / "deploy" / "engine")
    return desk


@pytest.fixture
def at_the_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(desk)
    return desk
