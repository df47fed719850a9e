"""Nodes need no names, as many exporters write them: passes and forms compute the same without."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from family_graphs import float_graph, images, quantized_graph
from onnx import ModelProto
from small_graphs import run

from repq.graph import lint, merge_scales, propagate_qdq, quantize_residuals, to_fp16
from repq.graph.channels_last import channels_last
from repq.graph.integer_concat import concat_integers
from repq.graph.lowering_onnxruntime import lower as for_onnxruntime
from repq.graph.lowering_openvino import lower as for_openvino

PASSES: dict[str, Callable[[ModelProto], ModelProto]] = {
    "channels last": channels_last,
    "concat_integers": concat_integers,
    "for_openvino": for_openvino,
    "for_onnxruntime": for_onnxruntime,
    "integer sums": lambda model: for_onnxruntime(model, integer_sums=None),
    "merge_scales": lambda model: merge_scales(model)[0],
    "propagate_qdq": propagate_qdq,
    "quantize_residuals": lambda model: quantize_residuals(model)[0],
    "to_fp16": lambda model: to_fp16(model)[0],
}


def nameless(model: ModelProto) -> ModelProto:
    changed = ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        node.name = ""
    return changed


@pytest.mark.parametrize("make", [float_graph, quantized_graph])
@pytest.mark.parametrize("label", ["n_v2", "lite_s"])
def test_passes_compute_the_same(label: str, make: Callable[[str], ModelProto]) -> None:
    model = make(label)
    for name, change in PASSES.items():
        changed = change(nameless(model))
        onnx.checker.check_model(changed, full_check=False)
        wanted, found = (run_any(one) for one in (change(model), changed))
        np.testing.assert_array_equal(found, wanted, err_msg=name)


def run_any(model: ModelProto) -> np.ndarray:
    import onnxruntime

    if all(entry.domain == "" for entry in model.opset_import):
        return np.asarray(run(model, images=images())[0])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images()})[0])


def test_lint_finds_the_same_layers() -> None:
    model = quantized_graph("lite_s")
    rows, others = ([(row.layer, row.precision) for row in lint(one).layers] for one in (model, nameless(model)))
    assert rows == others
