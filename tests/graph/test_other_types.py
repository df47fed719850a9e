"""Q/DQ graphs of other tools whose numbers between Q and DQ are FP8 or have 4 or 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import normal, run
from typed_graphs import EIGHT_BITS, FLOATS, PAIRS, typed

from repq.graph import lint, merge_scales, quantize_residuals
from repq.graph.extra_kernels import count_qdq
from repq.graph.lowering_onnxruntime import lower as for_onnxruntime
from repq.graph.lowering_openvino import lower as for_openvino


@pytest.mark.parametrize(("activations", "weights"), PAIRS)
def test_only_integers_of_8_bits_count_as_int8(activations: str, weights: str) -> None:
    report = lint(typed(activations, weights))
    exact = weights in EIGHT_BITS and activations not in FLOATS
    assert {row.precision for row in report.layers} == {"int8" if exact else "float32"}
    if weights not in EIGHT_BITS:
        assert all(weights in row.reason for row in report.layers)


@pytest.mark.parametrize(("activations", "weights"), PAIRS)
def test_passes_leave_them_what_they_are(activations: str, weights: str) -> None:
    model, x = typed(activations, weights), normal(5, 1, 3, 8, 8)
    (before,) = run(model, x=x)
    for lower in (for_openvino, for_onnxruntime):
        (after,) = run(lower(model), x=x)
        np.testing.assert_allclose(after, before, atol=1e-4 if weights not in EIGHT_BITS else 0.1)
    for change in (merge_scales, quantize_residuals):
        changed, _ = change(model)
        assert weights in EIGHT_BITS or count_qdq(changed) == count_qdq(model)
        run(changed, x=x)
