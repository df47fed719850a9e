"""ONNX's own tests of its operators: every case of an operator of the table passes, or is listed with the reason.

Attributes that those cases do not combine are drawn, and ONNX Runtime is asked.
"""

from __future__ import annotations

import pickle
import pkgutil
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from repq.model.onnx_graph.operators import OPERATORS, TORCH_TYPES
from repq.model.onnx_graph.program import Program, opset_of, trace, unknown_operators
from repq.model.onnx_graph.reading import OPSETS

MODULES = [entry.name for entry in pkgutil.iter_modules(node_cases.__path__)]
OFTEN = {"averagepool", "lppool", "maxpool"}  # making these cases takes their own implementation in Python long

KNOWN = {
    "test_batchnorm_example_training_mode": "training",
    "test_batchnorm_epsilon_training_mode": "training",
    "test_training_dropout_default": "training",
    "test_training_dropout_default_mask": "training",
    "test_training_dropout": "training",
    "test_training_dropout_mask": "training",
    "test_dropout_random_old": "training",
    "test_attention_4d_causal_fp16": "FP16 files are run in float32; one value rounds otherwise",
    "test_attention_4d_causal_fp16_expanded": "FP16 files are run in float32; two values round otherwise",
    "test_reduce_max_empty_set_bool": "the largest of no truth values",
}
LATER_ATTRIBUTES = {"left_window_size", "right_window_size"}  # of Attention, since opset 25


def cases_of(module: str, store: Path) -> list[tuple[str, bytes, Any, float, float]]:
    """Name, model, data, and tolerances of all cases of a module; made once for each version of onnx."""
    stored = store / f"{onnx.__version__}-{module}.pickle"
    if not stored.exists():
        before = len(node_cases._NodeTestCases)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(f"{node_cases.__name__}.{module}")
        made = node_cases._NodeTestCases[before:]
        rows = [(case.name, case.model.SerializeToString(), case.data_sets, case.rtol, case.atol) for case in made]
        stored.write_bytes(pickle.dumps(rows))
    found: list[tuple[str, bytes, Any, float, float]] = pickle.loads(stored.read_bytes())
    return found


def reason(name: str, model: onnx.ModelProto, data: Any) -> str | None:
    """Why a case of a supported operator is not expected to pass."""
    if name in KNOWN:
        return KNOWN[name]
    values = [value for pair in data for side in pair for value in side]
    if any(not isinstance(value, np.ndarray | np.generic) for value in values):
        return "sequences and optional values"
    types = {tensor.type.tensor_type.elem_type for tensor in (*model.graph.input, *model.graph.output)}
    types |= {attribute.i for node in model.graph.node for attribute in node.attribute if attribute.name == "to"}
    if types - (TORCH_TYPES.keys() - {onnx.TensorProto.BFLOAT16}):
        return "types that numpy or torch do not have"
    taken = {attribute.name for node in model.graph.node for attribute in node.attribute}
    return "opset 25" if taken & LATER_ATTRIBUTES and opset_of(model) > OPSETS[1] else None


def run(program: Program, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    values: list[Any] = [None] * program.count
    for number, tensor in [*program.constants.items(), *zip(program.inputs, inputs, strict=True)]:
        values[number] = tensor
    for step in program.steps:
        result = step.run(*[values[number] for number in step.reads])
        results = (result,) if isinstance(result, torch.Tensor) else result
        for number, tensor in zip(step.writes, results, strict=False):
            values[number] = tensor
        for number in step.frees:
            values[number] = None
    return [values[number] for number in program.outputs]


@pytest.mark.parametrize("module", MODULES)
def test_operators_compute_what_onnx_says(module: str, request: pytest.FixtureRequest) -> None:
    for name, content, data, rtol, atol in cases_of(module, request.config.cache.mkdir("onnx-node-cases")):
        model = onnx.load_model_from_string(content)
        if unknown_operators(model.graph) or reason(name, model, data):
            continue
        for inputs, wanted in data:
            tensors = [torch.from_numpy(np.array(value)) for value in inputs]
            names = [value.name for value in model.graph.input]
            program = trace(model, {key: [value] for key, value in zip(names, tensors, strict=True)})
            for value, expected in zip(run(program, tensors), wanted, strict=True):
                assert value.numpy().dtype == expected.dtype, name
                np.testing.assert_allclose(value.numpy(), expected, rtol=rtol, atol=atol, err_msg=name)
                assert value.shape == expected.shape, name


def test_every_operator_of_the_table_has_cases(request: pytest.FixtureRequest) -> None:
    store, tested = request.config.cache.mkdir("onnx-node-cases"), set[str]()
    for module in MODULES:
        for name, content, data, *_ in cases_of(module, store):
            model = onnx.load_model_from_string(content)
            if not unknown_operators(model.graph) and reason(name, model, data) is None:
                tested |= {node.op_type for node in model.graph.node}
    assert OPERATORS.keys() - tested <= {"Scatter", "Constant"}


AXIS = st.tuples(st.integers(-12, 12), st.integers(-12, 12) | st.just(-(2**63) + 1), st.sampled_from([1, 2, 3, -1, -2]))


def _slices(data: st.DataObject) -> tuple[str, dict[str, Any], list[np.ndarray]]:
    """From anywhere to anywhere, forwards and backwards; results without values too."""
    rows = data.draw(st.lists(AXIS, min_size=1, max_size=2))
    axes = data.draw(st.permutations([2, -1]))[: len(rows)]
    starts, ends, steps = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return "Slice", {}, [starts, ends, np.array(axes), steps]


def _pools(data: st.DataObject) -> tuple[str, dict[str, Any], list[np.ndarray]]:
    """Windows of two different sides, with any padding below them."""
    kernel = data.draw(st.permutations([data.draw(st.integers(1, 4)), data.draw(st.integers(4, 6))]))
    before = [data.draw(st.sampled_from(range(size))) for size in kernel]
    after = data.draw(st.sampled_from([before, [size - 1 - pad for size, pad in zip(kernel, before, strict=True)]]))
    pads = [*before, *after]
    return data.draw(st.sampled_from(["MaxPool", "AveragePool"])), {"kernel_shape": kernel, "pads": pads}, []


def _output_shapes(data: st.DataObject) -> tuple[str, dict[str, Any], list[np.ndarray]]:
    """Transposed convolutions whose padding follows from the size of their output."""
    stride = data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(stride, 5)) for _ in range(2)]
    attributes = {"kernel_shape": kernel, "strides": [stride] * 2, "output_shape": [6 * stride, 7 * stride]}
    if data.draw(st.booleans()):
        attributes["auto_pad"] = data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
    return "ConvTranspose", attributes, [np.random.default_rng(0).normal(0, 1, (4, 2, *kernel)).astype(np.float32)]


def _asked(kind: str, attributes: dict[str, Any], x: np.ndarray, constants: list[np.ndarray]) -> list[np.ndarray]:
    """What repq and ONNX Runtime give for one operator."""
    stored = [numpy_helper.from_array(value, f"c{number}") for number, value in enumerate(constants)]
    node = helper.make_node(kind, ["x", *(tensor.name for tensor in stored)], ["y"], **attributes)
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)], stored,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = run(trace(model, {"x": [torch.from_numpy(x)]}), [torch.from_numpy(x)])[0].numpy()
    return [found, session.run(None, {"x": x})[0]]


@pytest.mark.parametrize("make", [_slices, _pools, _output_shapes])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_operators_compute_what_onnx_runtime_does(make: Any, data: st.DataObject) -> None:
    kind, attributes, constants = make(data)
    x = np.random.default_rng(1).normal(0, 1, (2, 4, 6, 7)).astype(np.float32)
    found, wanted = _asked(kind, attributes, x, constants)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


PLACES = st.sampled_from(["asymmetric", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn"])


@pytest.mark.parametrize("form", [{"mode": "linear"}, {"mode": "nearest", "nearest_mode": "floor"}], ids=str)
@settings(max_examples=200, deadline=None)
@given(length=st.integers(2, 24), tenths=st.integers(3, 40), places=PLACES)
def test_resizing_by_any_scale(form: dict[str, str], length: int, tenths: int, places: str) -> None:
    scale = np.float32(tenths / 10)
    assume(int(np.float32(length) * scale) not in (0, length))  # ONNX Runtime copies what keeps its size
    x = np.random.default_rng(1).normal(0, 1, (1, 2, length, 3)).astype(np.float32)
    scales = np.array([1, 1, scale, 1], np.float32)
    attributes = form | {"coordinate_transformation_mode": places}
    found, wanted = _asked("Resize", attributes, x, [np.array([], np.float32), scales])
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
