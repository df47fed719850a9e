"""Small ONNX graphs, written as text, and a runner that computes them node by node."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from repq.layers import LayerId
from repq.scales import LayerScales, TensorScale


def graph(text: str, *, opset: int = 19, **constants: NDArray) -> ModelProto:
    """A model from ONNX's text form; ``constants`` become initializers (``__`` in a name stands for a dot)."""
    version = 9 if opset < 21 else 10
    model = onnx.parser.parse_model(f'<ir_version: {version}, opset_import: ["" : {opset}]>\n{text}')
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            node.input[slot] = name.replace("__", ".")
        node.name = node.name or f"{node.op_type}_{node.output[0]}"
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name.replace("__", ".")))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: ModelProto, **feeds: NDArray) -> list[NDArray]:
    """Outputs of the graph exactly as written: no fusion, no reordering."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def kinds(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def initializers(model: ModelProto) -> dict[str, NDArray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def int8(scale: float) -> TensorScale:
    return TensorScale(np.array(scale, np.float32), np.array(0, np.int8))


def uint8(scale: float, zero_point: int) -> TensorScale:
    return TensorScale(np.array(scale, np.float32), np.array(zero_point, np.uint8), "uint8")


def per_channel(weight: NDArray, axis: int = 0) -> TensorScale:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = (np.abs(weight).max(axis=others) / 127).astype(np.float32)
    return TensorScale(scale, np.zeros(scale.shape, np.int8), "int8", axis)


def table(weights: Mapping[str, NDArray], **inputs: TensorScale) -> dict[LayerId, LayerScales]:
    """Scales for the layers of ``inputs``, whose weights are initializers ``<layer>__weight`` in ``weights``."""
    return {
        LayerId(name): LayerScales(scale, per_channel(weights[f"{name}__weight"])) for name, scale in inputs.items()
    }


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


TWO_CONVS = """g (float[1,3,8,8] x) => (float[1,5,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, first__weight, first__bias)
    b = Relu(a)
    y = Conv(b, second__weight)
}"""


def two_convs() -> tuple[ModelProto, dict[str, NDArray]]:
    weights = {
        "first__weight": normal(1, 4, 3, 3, 3),
        "first__bias": normal(2, 4),
        "second__weight": normal(3, 5, 4, 1, 1),
    }
    return graph(TWO_CONVS, **weights), weights
