"""An engine of ONNX Runtime with each layer in the faster form computes what the one as it is by default does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from sample_graphs import LAYERS, calibrated_scales, detector

from repq.engine import Engine, build, load, onnxruntime_tuning
from repq.recipe import BuildConfig

IMAGES = np.random.default_rng(1).uniform(0, 1, (1, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuning") / "int8.onnx"
    scales = calibrated_scales(detector(), IMAGES, asymmetric=True)
    onnx.save(detector(LAYERS, asymmetric=True, scales=scales), path)
    return path


def tuned(model: Path) -> Engine:
    return build("onnxruntime", model, BuildConfig(threads=1, tune=True))


def in_int8(engine: Engine) -> set[str]:
    return {row.layer for row in engine.describe().layers if row.precision == "int8"}


def results(engine: Engine) -> np.ndarray:
    return next(iter(engine.infer(IMAGES).values()))


@pytest.mark.parametrize("pays", [False, True])
def test_what_was_faster_is_taken_if_it_pays_in_the_whole(
    model: Path, pays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, asked = build("onnxruntime", model, BuildConfig(threads=1)), list[float]()

    def known(engine: Engine, layers: tuple[str, ...], images: np.ndarray) -> dict[str, float]:
        asked.append(1.0)
        return {layer: len(asked) if layer == "stem.conv" else 1.0 / len(asked) for layer in layers}

    monkeypatch.setattr(onnxruntime_tuning, "_shortest", known)
    monkeypatch.setattr(onnxruntime_tuning, "_is_faster", lambda one, other, images: pays)
    engine = tuned(model)
    engine.save(tmp_path / "engine")
    after, others = in_int8(load(tmp_path / "engine")), in_int8(plain) - {"head.pred"}
    assert after == (others | {"head.pred"} if pays else others)
    np.testing.assert_allclose(results(engine), results(plain), rtol=1e-5, atol=1e-5)


def test_times_are_measured_of_every_layer(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = list[dict[str, float]]()

    def kept(*arguments: object) -> dict[str, float]:
        measured.append(onnxruntime_tuning_shortest(*arguments))
        return measured[-1]

    onnxruntime_tuning_shortest = onnxruntime_tuning._shortest
    monkeypatch.setattr(onnxruntime_tuning, "_shortest", kept)
    engine = tuned(model)
    assert len(measured) == 2 and all("head.pred" in times for times in measured)
    assert all(0 < ms < 1000 for times in measured for ms in times.values())
    np.testing.assert_allclose(results(engine), results(build("onnxruntime", model)), rtol=1e-5, atol=1e-5)
