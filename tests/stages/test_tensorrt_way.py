"""From a checkpoint to a TensorRT engine through the stages that the commands call, on drawn images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from repq.data import make_demo_set
from repq.engine import load
from repq.graph.layer_join import whole_layer
from repq.layers import LayerId
from repq.model import build, save_checkpoint
from repq.recipe import (
    BuildConfig,
    CalibrationConfig,
    DemoConfig,
    ExportConfig,
    PtqConfig,
    QatConfig,
    TensorRtConfig,
)
from repq.stages import Context, QatSource, build_engine, export_checkpoint, ptq_checkpoint, qat_checkpoint

pytest.importorskip("tensorrt", reason="TensorRT's Python API, parser and builder are not installed")

pytestmark = pytest.mark.tensorrt
SIZE = (64, 64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_demo_set(folder, DemoConfig(train_images=4, val_images=2, size=64, classes=3))
    return folder / "data.yaml"


def after_training(weights: Path, out: Path, data: Path) -> None:
    config = PtqConfig(
        auto=False, share_scales="largest", keep_float=("detect.*_preds.*",), calibration=CalibrationConfig(images=4)
    )
    report = ptq_checkpoint(weights, out, config, Context(SIZE, data))
    assert report.accuracy_own_scales is not None and report.qdq_own_scales is not None
    assert report.shared_groups > 0 and report.qdq_own_scales.avoidable > 0


def after_quantization_aware_training(weights: Path, out: Path, data: Path) -> None:
    start = PtqConfig(auto=False, keep_float=("detect.*_preds.*",), calibration=CalibrationConfig(images=4))
    source = QatSource(weights, start)
    config = QatConfig(epochs=1, batch=2, warmup_steps=0, learning_rate=0.01)
    report = qat_checkpoint(source, out, out.with_suffix(".state"), config, Context(SIZE, data))
    assert any(row.input_after != row.input_before for row in report.changes)  # scales that meet move apart


QUANTIZED: dict[str, Callable[[Path, Path, Path], None]] = {
    "after training": after_training,
    "after quantization-aware training": after_quantization_aware_training,
}
"""Ways from a float checkpoint to a quantized one; what they write has one form."""


@pytest.mark.parametrize("way", QUANTIZED)
@pytest.mark.parametrize(("name", "batch", "batches"), [("yolov6n_v2", 1, None), ("yolov6n_qa", None, (1, 2, 4))])
def test_a_checkpoint_becomes_an_engine(
    name: str, batch: int | None, batches: tuple[int, int, int] | None, way: str, data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights, quantized = tmp_path / "float.safetensors", tmp_path / "int8.safetensors"
    save_checkpoint(weights, build(name, 3).eval())
    QUANTIZED[way](weights, quantized, data)
    graph, folder = tmp_path / "int8.onnx", tmp_path / "engine"
    report = export_checkpoint(quantized, graph, SIZE, ExportConfig(batch=batch, merge_scales=True, float16=True))
    assert report.qdq.avoidable == 0
    assert not [finding for finding in report.findings if finding.severity != "info"]
    lines: list[str] = []
    settings = BuildConfig(tensorrt=TensorRtConfig(batches=batches))
    description = build_engine(graph, folder, "tensorrt", settings, log=lines.append)
    assert lines[0].startswith("trtexec")
    assert description.expected is not None
    expected = [kind for layer, kind in description.expected.layers.items() if whole_layer(LayerId(layer)) == layer]
    assert (expected.count("int8"), expected.count("float16")) == (report.layers_int8, report.layers_float)
    assert load(folder).manifest.expected == description.expected
