"""Single weights become zero and stay it: through a recovery, through calibration, and in the INT8 graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from small_training import SIZE, tiny_model

import repq
from repq.cli import main
from repq.data import load_dataset, make_demo_set
from repq.model import Detector, build, load_checkpoint, save_checkpoint
from repq.model.detector import layers_of
from repq.prune.zeroing import share_of_zeros, without_smallest
from repq.recipe import DemoConfig, PruneConfig
from repq.report.text import prune_table
from repq.results import EpochRow
from repq.stages import Context, prune_checkpoint
from repq.train import epoch_line


def made() -> Detector:
    torch.manual_seed(0)
    model = build(tiny_model().spec, deploy=True).eval()
    with torch.no_grad():
        for layer, module in layers_of(model):
            if "_preds" in layer:  # fresh ones are zeros
                module.weight.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    return make_demo_set(folder, DemoConfig(train_images=4, val_images=2, size=64, classes=2))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    save_checkpoint(path, made(), names=load_dataset(data, "val").names)
    return path


@pytest.fixture(scope="module")
def sparse(whole: Path) -> repq.Model:
    return repq.load(whole).prune(imgsz=SIZE, unstructured=0.6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_the_smallest_of_all_weights_go_and_nothing_else_changes(share: float) -> None:
    model = made()
    with torch.no_grad():  # ties must not take more
        next(layers_of(model))[1].weight.fill_(1e-6)
    found, gone, kept = without_smallest(model, share), [], []
    for (_, before), (_, after) in zip(layers_of(model), layers_of(found), strict=True):
        zero = after.weight == 0
        assert torch.equal(before.weight[~zero], after.weight[~zero])
        gone.append(before.weight[zero].abs())
        kept.append(before.weight[~zero].abs())
        assert before.bias is None or torch.equal(before.bias, after.bias)
    assert torch.cat(gone).max() <= torch.cat(kept).min()
    total = sum(len(values) for values in (*gone, *kept))
    assert share_of_zeros(found) == round(share * total) / total
    assert found.spec == model.spec


def test_a_recovery_keeps_the_zeros_and_moves_the_rest(whole: Path, data: Path, tmp_path: Path) -> None:
    for optimizer in ("adamw", "sgd"):
        out = tmp_path / f"{optimizer}.safetensors"
        recovery = {"epochs": 2, "batch": 2, "optimizer": optimizer, "weight_decay": 0.01, "warmup_steps": 0}
        config = PruneConfig.model_validate({"unstructured": 0.5, "recovery": recovery})
        report = prune_checkpoint(whole, out, config, Context(SIZE, data), evaluate=False)
        assert report.zeros == pytest.approx(0.5, abs=1e-3) and len(report.epochs) == 2
        assert (report.macs_before, report.parameters_before) == (report.macs_after, report.parameters_after)
        assert "gain no latency" in prune_table(report)
        start = dict(layers_of(without_smallest(load_checkpoint(whole).model, 0.5)))
        moved = 0
        for layer, module in layers_of(load_checkpoint(out).model):
            zero = start[layer].weight == 0
            assert not module.weight[zero].any()
            moved += int((module.weight != start[layer].weight).sum())
        assert moved


@pytest.mark.parametrize(("scheme", "granularity"), [("symmetric", "channel"), ("asymmetric", "tensor")])
def test_int8_keeps_the_zeros(sparse: repq.Model, data: Path, tmp_path: Path, scheme: Any, granularity: Any) -> None:
    quantized = sparse.quantize(
        data, imgsz=SIZE, split="train", limit=2, auto=False, scheme=scheme, weight_granularity=granularity,
        correct={"rounding": "nearest" if scheme == "symmetric" else "adaptive"},
    )  # fmt: skip
    kept_int8(sparse, quantized, tmp_path)
    if scheme == "symmetric":
        kept_int8(sparse, quantized.qat(data, imgsz=SIZE, epochs=1, batch=2, keep_zeros=True), tmp_path)


def kept_int8(sparse: repq.Model, quantized: repq.Model, folder: Path) -> None:
    """Every weight of zero is INT8 zero in the graph."""
    assert sparse.weights is not None
    graph = onnx.load(quantized.export(folder / "int8.onnx", imgsz=SIZE).path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    seen = 0
    for layer, module in layers_of(sparse.weights.model):
        values = next(value for name, value in stored.items() if name.startswith(f"{layer}.weight") and value.ndim == 4)
        assert values.dtype == np.int8 and values.any()
        zero = (module.weight == 0).numpy()
        assert not values[zero].any()
        seen += int(zero.sum())
    assert seen


@pytest.mark.parametrize("other", [{"ratio": 0.5}, {"target_macs": 0.5}, {"scope": "layer"}, {"importance": "bn"},
                                   {"round": 4}, {"latency": "openvino", "max_ms": 3.0}])  # fmt: skip
def test_it_excludes_what_removes_channels(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="removes no channels"):
        PruneConfig.model_validate({"unstructured": 0.5, **other})


def test_the_command_shows_the_sweep_beside_what_it_writes(whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    words = ["prune", str(whole), "--data", str(data), "--imgsz", "64", "--scope", "sensitivity", "--no-eval", "-o"]
    result = CliRunner().invoke(main, [*words, str(out), "--set", "prune.images=4", "--set", "prune.sweep_levels=1"])
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "small.safetensors.sweep").iterdir()}
    assert names == {"report.html", "report.md", "report.json", "pruning-sweep.svg"}
    assert "trials of the sweep" in (tmp_path / "small.safetensors.sweep/report.html").read_text()


def test_a_stopped_recovery_goes_on_to_the_same_weights(whole: Path, data: Path, tmp_path: Path) -> None:
    config = PruneConfig.model_validate({"ratio": 0.2, "images": 4, "recovery": {"epochs": 2, "batch": 2}})

    def weights(out: Path, state: Path | None = None, log: Any = print) -> Any:
        prune_checkpoint(whole, out, config, Context(SIZE, data, log=log), evaluate=False, state=state)
        return load_checkpoint(out).model.state_dict()

    def stop(line: str) -> None:
        if "2/2" in line or "epoch 2" in line:
            raise KeyboardInterrupt

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        weights(tmp_path / "stopped.safetensors", state, stop)
    assert state.is_file() and not (tmp_path / "stopped.safetensors").exists()
    wanted, found = weights(tmp_path / "one.safetensors"), weights(tmp_path / "stopped.safetensors", state)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert not state.exists()


def test_a_stopped_command_goes_on(whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "small.safetensors"
    words = ["prune", str(whole), "--data", str(data), "--imgsz", "64", "--scope", "layer", "--importance", "l2"]
    words += ["--ratio", "0.2", "--epochs", "2", "--no-eval", "--set", "prune.images=4", "-o", str(out)]

    def stopped(row: EpochRow, epochs: int) -> str:
        if row.epoch == 2:
            raise KeyboardInterrupt
        return epoch_line(row, epochs)

    with monkeypatch.context() as patch:
        patch.setattr("repq.train.epoch_line", stopped)
        with pytest.raises(KeyboardInterrupt):
            CliRunner().invoke(main, words)
    assert not out.exists()
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0
    assert "epoch 2/2" in result.stderr and "epoch 1/2" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]
