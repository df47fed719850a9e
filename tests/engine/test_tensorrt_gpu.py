"""TensorRT where there is a GPU: what it computes, what it runs, and what INT8 wins. Skipped anywhere else."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from sample_graphs import LAYERS, calibrated_scales, detector

from repq.engine import Engine, build, load
from repq.errors import EngineError
from repq.graph import letterbox_input, merge_scales, quantize_residuals, to_fp16, uint8_input
from repq.machine import cuda
from repq.recipe import BuildConfig, LetterboxConfig, TensorRtConfig
from repq.results import Expectation

pytest.importorskip("tensorrt", reason="TensorRT is not installed")
pytest.importorskip("polygraphy", reason="Polygraphy is not installed")

GPU = cuda.gpu_or_none()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.tensorrt,
    pytest.mark.skipif(GPU is None, reason="no GPU: running an engine and asking for its kernels need one"),
]
INT8 = tuple(layer for layer in LAYERS if layer != "neck.up")  # not every TensorRT has an INT8 ConvTranspose
SMALL, LARGE = {"size": 32, "width": 16}, {"size": 320, "width": 64}


def images(size: int, batch: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(batch).uniform(0, 1, (batch, 3, size, size)).astype(np.float32)


def mixed(size: int, width: int, batch: int | None = 1) -> onnx.ModelProto:
    """INT8 convolutions, FP16 between them."""
    scales = calibrated_scales(detector(size=size, width=width), images(size), asymmetric=False)
    model = detector(INT8, scales=scales, size=size, width=width, batch=batch)
    return to_fp16(merge_scales(quantize_residuals(model)[0])[0])[0]


def built(model: onnx.ModelProto, folder: Path, **settings: object) -> Engine:
    path = folder / "model.onnx"
    onnx.save(model, path)
    expected = Expectation(layers=dict.fromkeys(INT8, "int8"), extra_kernels=1)
    return build("tensorrt", path, BuildConfig(tensorrt=TensorRtConfig(**settings)), expected=expected)  # type: ignore[arg-type]


def reference(model: onnx.ModelProto, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["detections"], {"images": batch})[0])


def snr_db(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / max(np.square(wanted - found).sum(), 1e-30)))


def test_a_true_fp32_engine_computes_the_graph(tmp_path: Path) -> None:
    model = detector(**SMALL)
    found = built(model, tmp_path, tf32=False).infer(images(32))["detections"]
    np.testing.assert_allclose(found, reference(model, images(32)), atol=1e-4)


def test_int8_and_fp16_compute_the_graph_within_their_steps(tmp_path: Path) -> None:
    model = mixed(**SMALL)
    found = built(model, tmp_path).infer(images(32))["detections"]
    assert snr_db(reference(model, images(32)), found) > 30


def test_batches_within_the_profile_agree_with_single_images_and_others_are_refused(tmp_path: Path) -> None:
    engine = built(detector(batch=None, **SMALL), tmp_path, batches=(1, 2, 4), tf32=False)
    batch = images(32, 4)
    together = engine.infer(batch)["detections"]
    for size in (1, 2, 3):
        np.testing.assert_allclose(engine.infer(batch[:size])["detections"], together[:size], atol=1e-4)
    with pytest.raises(EngineError, match="batches of 1 to 4"):
        engine.infer(images(32, 5))


def test_images_of_any_size_within_the_profile_agree_with_the_graph(tmp_path: Path) -> None:
    model = letterbox_input(uint8_input(detector(**SMALL)), LetterboxConfig())
    engine = built(model, tmp_path, sources=((24, 32), (48, 64), (90, 160)), tf32=False)
    for height, width in ((24, 32), (90, 160), (50, 40)):
        pixels = np.random.default_rng(height).integers(0, 256, (1, height, width, 3), np.uint8)
        found = engine.infer(pixels)["detections"]
        np.testing.assert_allclose(found, reference(model, pixels), atol=1e-3)


def test_a_saved_engine_runs_the_same(tmp_path: Path) -> None:
    engine = built(mixed(**SMALL), tmp_path)
    engine.save(tmp_path / "engine")
    again = load(tmp_path / "engine").infer(images(32))["detections"]
    np.testing.assert_array_equal(again, engine.infer(images(32))["detections"])


def test_it_runs_what_the_graph_says(tmp_path: Path) -> None:
    description = built(mixed(**SMALL), tmp_path).describe()
    assert description.note is None
    assert {row.layer for row in description.layers if row.precision == "int8"} == set(INT8)
    assert description.surprises() == ()


@pytest.mark.parametrize("batch", [1, 32])
def test_int8_is_no_slower_than_fp16(batch: int, tmp_path: Path) -> None:
    """Medians of turns that the two engines take, so that a drift of the clocks meets both."""
    sizes = {"batch": None, **LARGE}
    half, _ = to_fp16(detector(**sizes))
    graphs = {"fp16": half, "int8": mixed(**sizes)}
    engines = {name: built(graph, tmp_path, batches=(1, 8, 32)) for name, graph in graphs.items()}
    inputs = images(320, batch)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(30):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.infer(inputs)
            if turn >= 5:
                times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) * 1e3 for name, values in times.items()}
    print(f"{GPU}, batch {batch}: {medians}")
    assert medians["int8"] <= 1.1 * medians["fp16"]
