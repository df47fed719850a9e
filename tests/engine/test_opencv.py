"""OpenCV's DNN module; the protocol in float is in ``test_engines``."""

import numpy as np
import onnx
import pytest
from sample_graphs import LAYERS, detector

from repq.engine import build, load
from repq.errors import EngineError
from repq.graph import to_fp16

IMAGES = np.random.default_rng(0).uniform(0, 1, (2, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("batch", [2, None])
def test_a_saved_engine_computes_the_same_and_leaves_threads_alone(batch, tmp_path):
    import cv2

    onnx.save(detector(batch=batch), tmp_path / "model.onnx")
    engine = build("opencv", tmp_path / "model.onnx")
    engine.save(tmp_path / "engine")
    before = cv2.getNumThreads()
    again = load(tmp_path / "engine", threads=1)
    np.testing.assert_array_equal(again.infer(IMAGES)["detections"], engine.infer(IMAGES)["detections"])
    assert cv2.getNumThreads() == before
    assert again.describe().precision_counts() == {"float32": len(LAYERS)}


@pytest.mark.parametrize("kind", ["with Q/DQ", "in FP16"])
def test_what_it_would_compute_in_fp32_is_refused(kind, tmp_path):
    model = to_fp16(detector())[0] if kind == "in FP16" else detector(LAYERS)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="FP32 alone") as caught:
        build("opencv", tmp_path / "model.onnx")
    assert kind in caught.value.found
