"""A pruned model goes on like any other: it trains, quantizes, exports, builds and agrees with itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from few_blocks import few_blocks
from small_graphs import graph, normal

import repq
from repq.data import make_demo_set
from repq.errors import CheckpointError, RepqError, TrainingError
from repq.export import export_float
from repq.graph import save_onnx
from repq.machine.load import OtherLoad
from repq.model import Detector, build, load_checkpoint, save_checkpoint
from repq.recipe import DemoConfig, PruneConfig, TrainConfig
from repq.results import MachineLoad
from repq.stages import Context, prune_checkpoint, train_detector

SIZE = (64, 64)
NAMES = ["yolov6n", "yolov6lite_s", "yolox_nano", "onnx"]


def made(name: str, *, deploy: bool = False) -> Detector:
    """A detector of three classes with random weights and few blocks."""
    torch.manual_seed(0)
    return build(few_blocks(name, 3), deploy=deploy).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    return make_demo_set(folder, DemoConfig(train_images=4, val_images=2, size=64))


@pytest.fixture(scope="module", params=NAMES)
def pruned(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    whole, out = folder / "whole.safetensors", folder / "small.safetensors"
    names = repq.data.load_dataset(data, "val").names
    if request.param == "onnx":
        whole = folder / "whole.onnx"
        save_onnx(whole, export_float(made("yolov6n_v2", deploy=True), SIZE))
        names = None
    else:
        save_checkpoint(whole, made(request.param), names=names)
    config = PruneConfig(ratio=0.2, round=4, scope="layer", images=4)
    report = prune_checkpoint(whole, out, config, Context(SIZE, data), evaluate=False)
    assert report.macs_after < report.macs_before
    assert report.parameters_after < report.parameters_before
    return out


def test_it_loads_evaluates_fuses_and_exports(pruned: Path, data: Path, tmp_path: Path) -> None:
    model = repq.load(pruned)
    assert 0 <= model.evaluate(data, imgsz=SIZE).ap <= 1
    fused = model.fuse()
    assert fused.weights is not None and model.weights is not None
    assert fused.weights.model.spec == model.weights.model.spec  # it is fused already
    engines = [model.build(engine, imgsz=SIZE) for engine in ("openvino", "onnxruntime")]
    report = model.check(data, *engines, imgsz=SIZE, min_snr_db=60)
    assert report.passed and len(report.engines) == 2


def test_it_quantizes_and_learns_in_int8(pruned: Path, data: Path, tmp_path: Path) -> None:
    model = repq.load(pruned)
    quantized = model.quantize(data, imgsz=SIZE, split="train", limit=4, auto=False)
    trained = quantized.qat(data, imgsz=SIZE, epochs=1, batch=4)
    graph = trained.export(tmp_path / "int8.onnx", imgsz=SIZE, batch=1)
    assert graph.quantized and len(graph.layers) == len(model.layers)
    assert 0 <= graph.build("onnxruntime").evaluate(data).ap <= 1
    path = trained.save(tmp_path / "int8.safetensors")
    with pytest.raises(CheckpointError, match="quantized already"):
        prune_checkpoint(path, tmp_path / "out.safetensors", PruneConfig(), Context(SIZE))


def test_it_trains_on_labels(pruned: Path, data: Path, tmp_path: Path) -> None:
    config = TrainConfig(weights=pruned, epochs=1, batch=4, eval_interval=1, warmup_steps=0)

    def train() -> None:
        train_detector(tmp_path / "run", tmp_path / "state", config, Context(SIZE, data))

    before = load_checkpoint(pruned).model
    if before.spec.family == "onnx":
        with pytest.raises(TrainingError, match="cannot be trained on labels"):
            train()
        return
    train()
    after = load_checkpoint(tmp_path / "run" / "weights.safetensors").model
    assert after.spec == before.spec and after.deploy
    assert any(not torch.equal(a, b) for a, b in zip(after.parameters(), before.parameters(), strict=True))
    other = make_demo_set(tmp_path / "other", DemoConfig(train_images=2, val_images=2, size=64, classes=2))
    with pytest.raises(TrainingError, match="keeps its classes"):
        train_detector(tmp_path / "2", tmp_path / "state2", config, Context(SIZE, other))


def test_handles_prune(tmp_path: Path, data: Path) -> None:
    save_checkpoint(tmp_path / "whole.safetensors", made("yolov6n_v2"))
    whole = repq.load(tmp_path / "whole.safetensors")
    small = whole.prune(data, imgsz=SIZE, target_macs=0.8, scope="sensitivity", importance="bn", images=4)
    assert isinstance(small.report, repq.PruneReport) and small.report.macs_after <= 0.8 * small.report.macs_before
    assert any(group.sweep for group in small.report.groups)
    assert repq.load(small.save(tmp_path / "small.safetensors")).spec == whole.spec
    with pytest.raises(CheckpointError, match="quantized already"):
        small.quantize(data, imgsz=SIZE, split="train", limit=2, auto=False, scheme="asymmetric").prune(imgsz=SIZE)


def test_latency_is_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers so wide that the target is far from what noise does to their latency, which halves of them can leave."""
    whole, out = tmp_path / "whole.onnx", tmp_path / "small.safetensors"
    text = """g (float[1,3,64,64] images) => (float[1,6,64] found) {
        a = Conv<strides=[8,8]>(images, w1) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w2) d = Relu(c)
        e = Conv<pads=[1,1,1,1]>(d, w3) f = Relu(e) g = Conv(f, w4) h = Sigmoid(g) found = Reshape(h, shape) }"""
    shapes = {"w1": (128, 3, 8, 8), "w2": (128, 128, 3, 3), "w3": (128, 128, 3, 3), "w4": (6, 128, 1, 1)}
    weights = {name: normal(0, *shape) / np.float32(np.prod(shape[1:])) for name, shape in shapes.items()}
    save_onnx(whole, graph(text, shape=np.array([1, 6, 64]), **weights))
    seen: list[str] = []
    config = PruneConfig(latency="openvino", latency_ratio=0.7, round=64)
    report = prune_checkpoint(whole, out, config, Context(SIZE, log=seen.append))
    assert report.macs_after < report.macs_before
    assert sum("of the whole model's" in line for line in seen) >= 2
    monkeypatch.setattr(OtherLoad, "so_far", lambda self, threads: MachineLoad(others=1.0, crowded=True))
    config = PruneConfig(latency="openvino", max_ms=1e-4)
    with pytest.raises(RepqError, match="so much cannot be pruned"):
        prune_checkpoint(whole, tmp_path / "x.safetensors", config, Context(SIZE, log=seen.append))
    assert "not to be trusted" in "".join(seen)


@pytest.mark.parametrize("values", [{"latency": "openvino"}, {"max_ms": 3.0}, {"latency_ratio": 0.5},
                                    {"latency": "openvino", "max_ms": 3.0, "latency_ratio": 0.5},
                                    {"latency": "openvino", "max_ms": 3.0, "ratio": 0.5}])  # fmt: skip
def test_one_target_is_wanted(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="target"):
        PruneConfig.model_validate(values)
