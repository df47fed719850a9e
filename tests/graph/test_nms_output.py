"""Suppression in the graph against the one that evaluation uses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from small_graphs import graph, run

from repq.errors import GraphError
from repq.evaluate import postprocess
from repq.graph import nms_output
from repq.recipe import EvalConfig, NmsConfig


def passing_on(boxes: int, classes: int) -> ModelProto:
    """A graph whose detections are its input."""
    shape = f"N,{boxes},{5 + classes}"
    return graph(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Identity(x) }}")


def drawn(seed: int, images: int, boxes: int, classes: int, levels: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(0, 60, (images, boxes, 2)), rng.uniform(-5, 60, (images, boxes, 2))
    scores = rng.integers(0, levels, (images, boxes, classes)) / levels
    return np.concatenate([centre, size, np.ones((images, boxes, 1)), scores], axis=2).astype(np.float32)


@given(
    seed=st.integers(0, 10_000), images=st.integers(1, 3), boxes=st.integers(1, 60), classes=st.integers(1, 4),
    levels=st.sampled_from([3, 1000]), threshold=st.sampled_from([0.1, 0.45, 0.65, 1.0]),
    limit=st.sampled_from([1, 5, 300]), multi_label=st.booleans(),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_it_equals_the_host(
    seed: int, images: int, boxes: int, classes: int, levels: int, threshold: float, limit: int, multi_label: bool
) -> None:
    """Box by box, to the bit, also where many scores are equal (few levels)."""
    settings_ = {"confidence": 0.2, "iou": threshold, "max_detections": limit, "multi_label": multi_label}
    rows = drawn(seed, images, boxes, classes, levels)
    (found,) = run(nms_output(passing_on(boxes, classes), NmsConfig(**settings_)), x=rows)
    expected = postprocess(rows, EvalConfig(**settings_))
    assert found.shape == (images, min(limit, boxes * classes), 6)
    for image, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(image[: len(wanted)], wanted)
        assert not image[len(wanted) :].any()


def test_scores_that_are_no_numbers_yield_nothing() -> None:
    rows = drawn(0, 1, 20, 2, 1000)
    rows[0, 3, 5:] = np.nan
    (found,) = run(nms_output(passing_on(20, 2), NmsConfig()), x=rows)
    clean = rows.copy()
    clean[0, 3, 5:] = 0
    np.testing.assert_array_equal(found[0][found[0][:, 4] > 0], postprocess(clean, EvalConfig())[0])


def test_nothing_above_the_threshold() -> None:
    rows = drawn(0, 2, 9, 3, 1000)
    rows[..., 5:] = 0
    (found,) = run(nms_output(passing_on(9, 3), NmsConfig()), x=rows)
    assert found.shape == (2, 27, 6) and not found.any()


def test_raw_maps_behind_the_detections_do_not_count() -> None:
    """YOLOv5 and v7 write them."""
    model = graph("""g (float[1,9,8] x, float[1,3,1,1,8] m) => (float[1,9,8] y, float[1,3,1,1,8] n) {
        y = Identity(x)
        n = Relu(m)
    }""")
    found = nms_output(model, NmsConfig())
    assert [output.name for output in found.graph.output] == ["boxes"]
    rows = drawn(0, 1, 9, 3, 1000)
    (wanted,) = run(nms_output(passing_on(9, 3), NmsConfig()), x=rows)
    np.testing.assert_array_equal(run(found, x=rows, m=np.zeros((1, 3, 1, 1, 8), np.float32))[0], wanted)


def test_refusals() -> None:
    with pytest.raises(GraphError, match="already"):
        nms_output(nms_output(passing_on(9, 3), NmsConfig()), NmsConfig())
    image = graph("g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu(x) }")
    with pytest.raises(GraphError, match="does not end with detections"):
        nms_output(image, NmsConfig())
    free = graph("g (float[1,N,8] x) => (float[1,N,8] y) { y = Relu(x) }")
    with pytest.raises(GraphError, match="fixed"):
        nms_output(free, NmsConfig())
