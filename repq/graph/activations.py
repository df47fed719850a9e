"""The activations behind layers that INT8 kernels do not take in."""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import ModelProto

from repq.graph.extra_kernels import ACTIVATIONS
from repq.graph.layer_join import layers_of
from repq.graph.surgeon import import_graph
from repq.layers import LayerId

_SMOOTH = (ACTIVATIONS - {"Relu", "Clip", "LeakyRelu", "PRelu"}) | {"Gelu", "Softplus"}
_NAMES = {"HardSwish": "Hardswish", "Sigmoid": "SiLU", "Swish": "SiLU", "Gelu": "GELU", "Softplus": "Mish"}


def smooth_activation(node: gs.Node) -> str:
    """What reads a layer's result and is no part of an INT8 kernel of ONNX Runtime, such as ``SiLU``, or nothing."""
    result = node.outputs[0]
    found = [reader.op for reader in result.outputs if reader.op in _SMOOTH and not _is_score(result, reader)]
    return " and ".join(dict.fromkeys(_NAMES.get(op, op) for op in found))


def smooth_activations(model: ModelProto) -> dict[LayerId, str]:
    """The layers of a float or Q/DQ graph that have a smooth activation behind them, and its name."""
    found = {layer: smooth_activation(node) for layer, node in layers_of(import_graph(model)).items()}
    return {layer: name for layer, name in found.items() if name}


def _is_score(result: gs.Tensor, reader: gs.Node) -> bool:
    """Whether a Sigmoid makes a score or a gate: SiLU is the product of a value and its own Sigmoid."""
    own = any(after.op == "Mul" and result in after.inputs for after in reader.outputs[0].outputs)
    return reader.op == "Sigmoid" and not own
