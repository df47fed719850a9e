"""A small detector, a drawn data set, and the detector in every form, made once."""

from __future__ import annotations

import pytest
from api_forms import NAMES, SIZE, Forms
from small_training import answering_model, tiny_model

import repq
from repq.data import make_demo_set
from repq.model import save_checkpoint
from repq.recipe import DemoConfig


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    root = tmp_path_factory.mktemp("api")
    save_checkpoint(
        root / "float.safetensors", answering_model(len(NAMES), SIZE, tiny_model(classes=len(NAMES)).spec), names=NAMES
    )
    data = make_demo_set(root / "set", DemoConfig(train_images=6, val_images=3, size=SIZE))
    float_ = repq.load(root / "float.safetensors")
    quantized = float_.quantize(data, imgsz=SIZE, limit=4, scheme="asymmetric", auto=False)
    onnx = float_.export(root / "float.onnx", imgsz=SIZE, batch=None)
    return Forms(root, data, float_, quantized, onnx, onnx.build("onnxruntime", out=root / "engine"))
