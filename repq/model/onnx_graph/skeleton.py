"""A graph without the weights of its layers, as text, and back.

The layers' weights and biases are named ``<LayerId>.weight`` and ``<LayerId>.bias``; in a skeleton they have a shape
and no values. The bias of a MatMul, which has none of its own, is what the Add behind it adds.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from functools import lru_cache
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor

from repq.layers import CONVOLUTIONS, PRODUCTS, LayerId

_VALUES = ("float_data", "int32_data", "int64_data", "double_data", "string_data")


def is_hollow(tensor: TensorProto) -> bool:
    """Whether an initializer has a shape and no values."""
    return (
        not tensor.HasField("raw_data") and prod(tensor.dims) > 0 and not any(len(getattr(tensor, f)) for f in _VALUES)
    )


def to_skeleton(model: ModelProto) -> tuple[str, dict[str, NDArray[np.float32]]]:
    """Split a graph into its skeleton and the weights and biases of its layers, by name."""
    hollow = ModelProto()
    hollow.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in hollow.graph.initializer}
    weights: dict[str, NDArray[np.float32]] = {}
    for layer in layer_nodes(model):
        for name in filter(stored.__contains__, parameter_names(layer)):
            weights[name] = numpy_helper.to_array(stored[name])
            shape = list(stored[name].dims)
            stored[name].Clear()
            stored[name].name, stored[name].data_type = name, TensorProto.FLOAT
            stored[name].dims.extend(shape)
    return encode_skeleton(hollow), weights


def encode_skeleton(hollow: ModelProto) -> str:
    """A graph whose layers' weights are hollow, as text."""
    return base64.b85encode(zlib.compress(hollow.SerializeToString(deterministic=True), 9)).decode()


@lru_cache(maxsize=4)
def read_skeleton(text: str) -> ModelProto:
    """The graph of a skeleton; the layers' weights are hollow.

    Raises:
        ValueError: the text is something else.
    """
    try:
        return onnx.load_model_from_string(zlib.decompress(base64.b85decode(text)))
    except Exception as error:  # zlib's and protobuf's own types
        raise ValueError(f"no graph: {error}") from None


def layer_nodes(model: ModelProto) -> dict[LayerId, onnx.NodeProto]:
    """The layers of a graph in which they bear the names of this module."""
    names = {tensor.name for tensor in model.graph.initializer if tensor.name.endswith(".weight")}
    return {
        LayerId(node.input[1].removesuffix(".weight")): node
        for node in model.graph.node
        if node.op_type in CONVOLUTIONS | PRODUCTS and node.input[1] in names
    }


def bias_sums(model: ModelProto) -> dict[str, onnx.NodeProto]:
    """The Add that holds the bias of a product, by what the product computes."""
    sums = {name: node for node in model.graph.node if node.op_type == "Add" for name in node.input}
    found = ((node.output[0], sums.get(f"{layer}.bias")) for layer, node in layer_nodes(model).items())
    return {product: node for product, node in found if node is not None}


def parameter_names(layer: LayerId) -> tuple[str, str]:
    """What the weight and the bias of a layer are called."""
    return f"{layer}.weight", f"{layer}.bias"


def with_weights(text: str, state: Mapping[str, Tensor]) -> ModelProto:
    """The graph of a skeleton with the weights of a state dict. A bias of zeros is left out where there was none."""
    model = ModelProto()
    model.CopyFrom(read_skeleton(text))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer, node in layer_nodes(model).items():
        _, bias = names = parameter_names(layer)
        if bias in state and bias not in stored and bool(state[bias].any()):
            node.input.append(bias)
            stored[bias] = model.graph.initializer.add(name=bias)
        for name in filter(stored.__contains__, names):
            values = state[name].detach().cpu().float().contiguous().numpy()
            stored[name].CopyFrom(numpy_helper.from_array(values, name))
    return model
