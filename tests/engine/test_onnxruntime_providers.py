"""ONNX Runtime runs on the provider that was asked for, or says that it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from sample_graphs import LAYERS, detector

from repq.engine import build
from repq.engine.onnxruntime import NAMES, nodes_by_provider
from repq.errors import EngineError
from repq.machine import cuda
from repq.recipe import BuildConfig, Provider

GPU_PROVIDERS: tuple[Provider, ...] = ("cuda", "tensorrt")


def write(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("provider", GPU_PROVIDERS)
def test_a_provider_that_is_not_there_is_an_error_not_the_cpu(provider: Provider, tmp_path: Path) -> None:
    if NAMES[provider] in onnxruntime.get_available_providers() and cuda.gpu_or_none():
        pytest.skip("it is there: the test marked gpu covers it")
    with pytest.raises(EngineError, match=f"{NAMES[provider]}|cannot run") as caught:
        build("onnxruntime", write(detector(), tmp_path), BuildConfig(provider=provider))
    assert "CPUExecutionProvider" in str(caught.value)


def test_a_session_that_took_another_provider_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime does when a GPU provider's libraries do not load: the session opens, on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(NAMES.values()))
    with pytest.raises(EngineError, match="CUDAExecutionProvider"):
        build("onnxruntime", write(detector(), tmp_path), BuildConfig(provider="cuda"))


def test_nodes_are_counted_where_they_ran() -> None:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    session = onnxruntime.InferenceSession(detector().SerializeToString(), options, providers=["CPUExecutionProvider"])
    counts = nodes_by_provider(session, {"images": np.zeros((1, 3, 32, 32), np.float32)})
    assert list(counts) == ["CPUExecutionProvider"]
    assert counts["CPUExecutionProvider"] >= len(LAYERS)


@pytest.mark.gpu
@pytest.mark.parametrize("provider", GPU_PROVIDERS)
def test_a_gpu_provider_computes_the_graph_and_says_where_it_ran(provider: Provider, tmp_path: Path) -> None:
    if cuda.gpu_or_none() is None or NAMES[provider] not in onnxruntime.get_available_providers():
        pytest.skip(f"no GPU, or this ONNX Runtime has no {NAMES[provider]}")
    path, images = (
        write(detector(), tmp_path),
        np.random.default_rng(0).uniform(0, 1, (1, 3, 32, 32)).astype(np.float32),
    )
    engine = build("onnxruntime", path, BuildConfig(provider=provider))
    on_cpu = build("onnxruntime", path).infer(images)["detections"]
    np.testing.assert_allclose(engine.infer(images)["detections"], on_cpu, atol=1e-2)
    description = engine.describe()
    assert description.device == NAMES[provider]
    assert description.note is not None and NAMES[provider] in description.note
