"""Where a constant lies makes no difference to any pass: in an initializer, a Constant node, or behind an Identity."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from family_graphs import quantized_graph
from graph_views import decode_nodes, predict_extra_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from small_graphs import graph, normal, run

from repq.engine.source import read_source
from repq.estimate import estimate
from repq.estimate.devices import DEVICES
from repq.graph import lint, merge_scales, quantize_residuals, to_fp16
from repq.graph.anchors import anchors_of
from repq.graph.files import save_onnx
from repq.graph.lowering_onnxruntime import lower as for_onnxruntime
from repq.graph.lowering_openvino import lower as for_openvino
from repq.graph.surgeon import export_graph, import_graph

LABEL = "lite_s"


def with_nodes(model: ModelProto, names: Collection[str], copied: bool = False) -> ModelProto:
    """The model with these constants in nodes, or read through copies."""
    changed = ModelProto()
    changed.CopyFrom(model)
    stored, nodes = list(model.graph.initializer), list(model.graph.node)
    del changed.graph.initializer[:], changed.graph.node[:]
    changed.graph.initializer.extend(tensor for tensor in stored if tensor.name not in names)
    made = [helper.make_node("Constant", [], [t.name], value=t) for t in stored if t.name in names]
    copies = []
    if copied:
        for node in made:
            copies.append(helper.make_node("Identity", [f"{node.output[0]} kept"], [node.output[0]]))
            node.output[0] += " kept"
    changed.graph.node.extend([*made, *copies, *nodes])
    onnx.checker.check_model(changed, full_check=True)
    return changed


def parts(model: ModelProto) -> Any:
    """What a model consists of, in no order; a pass that has nothing to do leaves Constant nodes as they are."""
    model = export_graph(import_graph(model))
    stored = {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}
    return stored, sorted(node.SerializeToString(deterministic=True) for node in model.graph.node)


SEEN: dict[str, Callable[[ModelProto], Any]] = {
    "lint": lint,
    "extra kernels": predict_extra_kernels,
    "decoding": decode_nodes,
    "anchors": lambda model: anchors_of(import_graph(model)),
    "estimate": lambda model: estimate(model, DEVICES["t4"]),
    "to_fp16": lambda model: parts(to_fp16(model)[0]),
    "quantize_residuals": lambda model: parts(quantize_residuals(model)[0]),
    "merge_scales": lambda model: parts(merge_scales(model)[0]),
    "ONNX Runtime's form": lambda model: parts(for_onnxruntime(model)),
    "OpenVINO's form": lambda model: parts(for_openvino(model)),
}


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    return {name: look(quantized_graph(LABEL)) for name, look in SEEN.items()}


@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_passes_see_no_difference(wanted: dict[str, Any], data: st.DataObject) -> None:
    names = [tensor.name for tensor in quantized_graph(LABEL).graph.initializer]
    chosen = data.draw(st.just(set(names)) | st.sets(st.sampled_from(names)))
    model = with_nodes(quantized_graph(LABEL), chosen, data.draw(st.booleans()))
    for name, look in SEEN.items():
        assert look(model) == wanted[name], name


def test_engines_find_the_same_layers(tmp_path: Path) -> None:
    model = quantized_graph(LABEL)
    for number, names in enumerate([set[str](), {tensor.name for tensor in model.graph.initializer}]):
        save_onnx(tmp_path / f"{number}.onnx", with_nodes(model, names))
    stored, in_nodes = (read_source(tmp_path / f"{number}.onnx") for number in (0, 1))
    assert in_nodes.layers == stored.layers and in_nodes.int8_layers == stored.int8_layers
    assert len(stored.int8_layers) == len(stored.layers) > 0


@pytest.mark.parametrize(
    ("kind", "value"), [("value_float", 0.5), ("value_floats", [0.5, 2.0]), ("value_int", 3), ("value_ints", [1, 2])]
)
def test_numbers_in_attributes(kind: str, value: Any) -> None:
    model = graph("g (float[1,2] x) => (float[1,2] y) { f = Cast<to=1>(c)\n y = Mul(x, f) }", c=np.float32(0))
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], **{kind: value}))
    same = export_graph(import_graph(model))
    assert all(node.op_type != "Constant" for node in same.graph.node)
    np.testing.assert_array_equal(run(same, x=normal(0, 1, 2))[0], run(model, x=normal(0, 1, 2))[0])


def test_a_constant_that_is_an_output_stays_one() -> None:
    model = graph("g (float[2] x) => (float[2] y, float[2] z) { z = Identity(c)\n y = Add(x, z) }", c=normal(0, 2))
    tensor = numpy_helper.from_array(normal(0, 2), "z")
    model.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["z"], value=tensor))
    same = export_graph(import_graph(model))
    for found, wanted in zip(run(same, x=normal(1, 2)), run(model, x=normal(1, 2)), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (4,), ()])
@pytest.mark.parametrize("kind", ["INT4", "UINT4", "BFLOAT16", "FLOAT8E4M3FN", "INT8", "FLOAT16"])
def test_constants_of_all_types_are_written_as_they_were_read(kind: str, shape: tuple[int, ...], looked: bool) -> None:
    number = TensorProto.DataType.Value(kind)
    values = np.arange(math.prod(shape)).reshape(shape).astype(helper.tensor_dtype_to_np_dtype(number))
    stored = numpy_helper.from_array(values, "stored")
    output = helper.make_tensor_value_info("output", number, shape)
    size = numpy_helper.from_array(np.array(shape, np.int64), "shape")
    nodes = [helper.make_node("Reshape", ["stored", "shape"], ["output"])]
    made = helper.make_graph(nodes, "constants", [], [output], [stored, size])
    imported = import_graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    for tensor in imported.tensors().values() if looked else ():
        getattr(tensor, "values", None)  # what has been looked at is written anew
    (written,) = (one for one in export_graph(imported).graph.initializer if one.name == "stored")
    assert written.data_type == number and np.array_equal(numpy_helper.to_array(written), values)
