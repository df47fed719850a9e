"""A small detector, a drawn data set, and the detector in every form, made once."""

from __future__ import annotations

import pytest
import torch
from api_forms import NAMES, SIZE, Forms
from torch import nn

import repq
from repq.data import make_demo_set
from repq.model import build, save_checkpoint
from repq.recipe import DemoConfig


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    root = tmp_path_factory.mktemp("api")
    torch.manual_seed(0)
    detector = build("yolov6n_v2", len(NAMES))
    for name, module in detector.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # take the statistics of the next batch
        elif "_preds" in name and isinstance(module, nn.Conv2d):  # they start at zero
            nn.init.normal_(module.weight, 0, 0.6 if "cls" in name else 0.02)
            assert module.bias is not None
            nn.init.constant_(module.bias, -2.0 if "cls" in name else 1.0)
    with torch.no_grad():
        detector.train()(torch.rand(8, 3, SIZE, SIZE))
    detector.eval()
    save_checkpoint(root / "float.safetensors", detector, names=NAMES)
    data = make_demo_set(root / "set", DemoConfig(train_images=6, val_images=3, size=SIZE))
    float_ = repq.load(root / "float.safetensors")
    quantized = float_.quantize(data, imgsz=SIZE, limit=4, scheme="asymmetric", auto=False)
    onnx = float_.export(root / "float.onnx", imgsz=SIZE, batch=None)
    return Forms(root, data, float_, quantized, onnx, onnx.build("onnxruntime", out=root / "engine"))
