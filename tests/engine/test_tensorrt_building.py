"""TensorRT engines as far as they go without a GPU: what is built, what the manifest says, what is refused and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pydantic import ValidationError
from sample_graphs import LAYERS, detector

from repq.engine import build, load
from repq.engine import tensorrt as engine_module
from repq.engine.base import TensorInfo
from repq.engine.tensorrt_building import trtexec_line
from repq.errors import EngineError
from repq.graph import letterbox_input, uint8_input
from repq.identity import hash_json
from repq.machine import cuda
from repq.machine.cuda import Gpu
from repq.recipe import BuildConfig, LetterboxConfig, TensorRtConfig

pytest.importorskip("tensorrt", reason="TensorRT's Python API, parser and builder are not installed")

pytestmark = pytest.mark.tensorrt
NO_GPU = cuda.gpu_or_none() is None
without_gpu = pytest.mark.skipif(not NO_GPU, reason="there is a GPU: tests marked gpu cover it")


def write(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def settings(**values: Any) -> BuildConfig:
    return BuildConfig(tensorrt=TensorRtConfig(**values))


def test_the_manifest_says_what_it_was_built_with(tmp_path: Path) -> None:
    engine = build("tensorrt", write(detector(batch=None), tmp_path), settings(batches=(1, 4, 8), tf32=False))
    engine.save(tmp_path / "engine")
    manifest = load(tmp_path / "engine").manifest
    assert manifest == engine.manifest
    assert manifest.settings.tensorrt == TensorRtConfig(batches=(1, 4, 8), tf32=False)
    assert manifest.version == engine_module.TensorRt().version()
    assert (manifest.gpu is None) == NO_GPU


@without_gpu
def test_without_a_gpu_it_builds_and_says_why_it_does_not_run(tmp_path: Path) -> None:
    engine = build("tensorrt", write(detector(), tmp_path))
    description = engine.describe()
    assert description.precision_counts() == {"unknown": len(LAYERS)}
    assert description.note is not None and description.note.startswith("no GPU")
    with pytest.raises(EngineError, match="no GPU"):
        engine.infer(np.zeros((1, 3, 32, 32), np.float32))


def test_an_engine_of_another_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build("tensorrt", write(detector(), tmp_path))
    engine.save(tmp_path / "engine")
    here = Gpu("NVIDIA L4", "8.9")
    monkeypatch.setattr(engine_module, "gpu_or_none", lambda: here)
    if NO_GPU:
        with pytest.raises(EngineError, match="built without a GPU"):
            load(tmp_path / "engine")
    change_manifest(tmp_path / "engine", gpu="Tesla T4", compute_capability="7.5")
    with pytest.raises(EngineError, match=r"built on Tesla T4 \(compute capability 7.5\)") as caught:
        load(tmp_path / "engine")
    assert "NVIDIA L4" in str(caught.value.found)


def test_an_engine_of_another_tensorrt_is_refused(tmp_path: Path) -> None:
    build("tensorrt", write(detector(), tmp_path)).save(tmp_path / "engine")
    change_manifest(tmp_path / "engine", version="10.16.1.11")
    with pytest.raises(EngineError, match=r"built with TensorRT 10\.16\.1\.11"):
        load(tmp_path / "engine")


def change_manifest(folder: Path, **values: str) -> None:
    """Make a saved engine one that was built elsewhere: its manifest is whole, and says so."""
    saved = json.loads((folder / "engine.json").read_text())
    saved["manifest"].update(values)
    saved["manifest_sha256"] = hash_json(saved["manifest"])
    (folder / "engine.json").write_text(json.dumps(saved))


def test_a_free_batch_needs_a_profile(tmp_path: Path) -> None:
    path = write(detector(batch=None), tmp_path)
    with pytest.raises(EngineError, match="any batch") as caught:
        build("tensorrt", path)
    assert "--profile" in str(caught.value.fix)


def test_other_free_axes_are_refused(tmp_path: Path) -> None:
    model = detector()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "boxes"
    with pytest.raises(EngineError, match="free axes beside the batch"):
        build("tensorrt", write(model, tmp_path), settings(batches=(1, 1, 2)))


SIZES = ((24, 32), (48, 64), (90, 160))


def letterboxing(batch: int | None) -> onnx.ModelProto:
    return letterbox_input(uint8_input(detector(batch=batch)), LetterboxConfig())


@pytest.mark.parametrize("batch", [1, None])
def test_images_of_any_size_need_a_profile_and_build_with_it(batch: int | None, tmp_path: Path) -> None:
    path, batches = write(letterboxing(batch), tmp_path), (1, 2, 4) if batch is None else None
    with pytest.raises(EngineError, match="images of any size") as caught:
        build("tensorrt", path, settings(batches=batches))
    assert "--source-profile" in str(caught.value.fix)
    engine = build("tensorrt", path, settings(batches=batches, sources=SIZES))
    assert engine.describe().size_bytes > 0
    with pytest.raises(EngineError, match="images of 24x32 to 90x160") as caught:
        engine.infer(np.zeros((1, 90, 161, 3), np.uint8))
    assert "--source-profile" in str(caught.value.fix)


def test_too_little_workspace_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"workspace \(1 MiB\)") as caught:
        build("tensorrt", write(detector(size=640, width=64), tmp_path), settings(workspace_mib=1))
    assert "--workspace" in str(caught.value.fix)


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    model = detector()
    model.graph.node[0].op_type, model.graph.node[0].domain = "Fold", "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    with pytest.raises(EngineError, match="refuses the model") as caught:
        build("tensorrt", write(model, tmp_path))
    assert "Fold" in str(caught.value.found)


def test_a_timing_cache_is_written_and_read(tmp_path: Path) -> None:
    path, cache = write(detector(), tmp_path), tmp_path / "timings"
    for _ in range(2):
        build("tensorrt", path, settings(timing_cache=cache))
        assert cache.stat().st_size > 0


def test_weights_in_other_files_are_taken_along(tmp_path: Path) -> None:
    model = detector()
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert build("tensorrt", tmp_path / "model.onnx").manifest.layers == LAYERS
    (tmp_path / "weights").unlink()
    with pytest.raises(EngineError, match="weights"):
        build("tensorrt", tmp_path / "model.onnx")


@pytest.mark.parametrize(("version", "flag"), [("10.16.1.11", True), ("11.4.0.106", False)])
def test_the_trtexec_line_is_that_of_the_version(version: str, flag: bool) -> None:
    images = TensorInfo(name="images", shape=("batch", 3, 64, 128))
    config = TensorRtConfig(batches=(1, 8, 32), workspace_mib=512, timing_cache=Path("t.cache"), tf32=False)
    line = trtexec_line("in put.onnx", "out.plan", images, config, version)
    assert ("--stronglyTyped" in line) == flag
    for part in ("'--onnx=in put.onnx'", "--minShapes=images:1x3x64x128", "--optShapes=images:8x3x64x128",
                 "--maxShapes=images:32x3x64x128", "--memPoolSize=workspace:512M", "--timingCacheFile=t.cache",
                 "--noTF32"):  # fmt: skip
        assert part in line
    assert "--refit" not in line and "--versionCompatible" not in line


def test_the_trtexec_line_names_the_sizes_of_images_that_the_graph_letterboxes() -> None:
    images = TensorInfo(name="images", shape=(1, "source_height", "source_width", 3), dtype="uint8")
    line = trtexec_line("in.onnx", "out.plan", images, TensorRtConfig(sources=SIZES), "11.4.0.106")
    for part in ("--minShapes=images:1x24x32x3", "--optShapes=images:1x48x64x3", "--maxShapes=images:1x90x160x3"):
        assert part in line


def test_sizes_that_shrink_are_refused() -> None:
    with pytest.raises(ValidationError, match="smallest, the most frequent and the largest size"):
        TensorRtConfig(sources=((24, 64), (48, 32), (90, 160)))
