"""What an engine needs to know of the ONNX file that it is built from."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.engine.base import TensorInfo
from repq.errors import EngineError
from repq.layers import CONVOLUTIONS, PRODUCTS, LayerId
from repq.onnx_file import fix_inputs, given_inputs, metadata_of, read_model, refusing
from repq.printable import first_names

if TYPE_CHECKING:
    import onnx

SUM = "/Sum"
_WEIGHT = re.compile(r"(?P<layer>.+)\.weight(?:[._].*)?")


@dataclass(frozen=True)
class Source:
    """An ONNX model, checked; the node of every layer in it bears the layer's id as its name."""

    model: onnx.ModelProto
    name: str
    sha256: str
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    layers: tuple[LayerId, ...]
    int8_layers: tuple[LayerId, ...]


def read_source(path: Path) -> Source:
    """Read an ONNX file and find its layers.

    A layer's id is the name of its weight initializer without ``.weight``, looked up through DequantizeLinear; the
    node's own name serves where the weight has no such name.

    Raises:
        EngineError: the file is missing or no valid ONNX, has not exactly one input, scales that are no positive
            numbers, or two layers of one name.
    """
    model, sha256 = read_model(path, beside=True, error=EngineError)
    with refusing(f"{path} is no valid ONNX model", "export it again", EngineError):
        fix_inputs(model)
    inputs = [_tensor(value) for value in given_inputs(model)]
    if len(inputs) != 1:
        raise EngineError(f"{path} needs exactly one input", found=", ".join(i.name for i in inputs) or "none")
    with refusing(f"{path} is no valid ONNX model", "write it with `repq export`", EngineError):
        layers, int8 = name_layers(model)
    return Source(
        model=model,
        name=path.name,
        sha256=sha256,
        input=inputs[0],
        outputs=tuple(_tensor(value) for value in model.graph.output),
        metadata=metadata_of(model),
        layers=layers,
        int8_layers=int8,
    )


def name_layers(model: onnx.ModelProto) -> tuple[tuple[LayerId, ...], tuple[LayerId, ...]]:
    """Give the node of every layer the layer's id as its name (in place); return all ids and those with INT8 scales.

    Layers are convolutions, and products with a stored matrix; an Add of a constant to such a product gets its name and
    ``SUM``. Integer operators have their names already; one layer may be several of them.

    Raises:
        EngineError: two layers have one name, or a scale is no positive number.
    """
    from repq.graph.integers import has_unusable_scale, quantized_value, quantizers
    from repq.graph.layer_join import INTEGER_OPS, integer_layer, stored_weight
    from repq.graph.surgeon import import_graph, is_constant, title

    layers: list[LayerId] = []
    int8: list[LayerId] = []
    graph = import_graph(model)
    if unusable := [title(node) for node in quantizers(graph) if has_unusable_scale(node)]:
        raise EngineError("scales must be positive, finite numbers", found=first_names(unusable), fix="quantize again")
    nodes = {tuple(tensor.name for tensor in node.outputs): node for node in graph.nodes}
    places = [(place, stored) for place, stored in enumerate(model.graph.node) if tuple(stored.output) in nodes]
    protos = {id(nodes[tuple(stored.output)]): stored for _, stored in places}
    for position, stored in places:
        node = nodes[tuple(stored.output)]
        if node.op in INTEGER_OPS:
            if (computed := integer_layer(node)) is None:  # another tool's, each of which is a layer
                stored.name = computed = LayerId(node.name or f"{node.op}_{position}")
            layers += [computed] if computed not in layers else []
            int8 += [computed] if computed not in int8 else []
            continue
        matrix = stored_weight(node) if node.op in PRODUCTS else None
        if node.op not in CONVOLUTIONS and (matrix is None or matrix.values.ndim != 2):
            continue
        match = _WEIGHT.fullmatch(quantized_value(node.inputs[1]).name)
        stored.name = match["layer"] if match else node.name or f"{node.op}_{position}"
        if matrix is not None and stored.name in layers:  # several products may read one matrix
            stored.name += f"_{position}"
        layers.append(LayerId(stored.name))
        for reader in node.outputs[0].outputs if matrix is not None else ():
            if reader.op == "Add" and any(map(is_constant, reader.inputs)):
                protos[id(reader)].name = stored.name + SUM
        if all(map(_is_dequantized, node.inputs[:2])):
            int8.append(LayerId(stored.name))
    shared = [layer for layer, count in Counter(layers).items() if count > 1]
    if shared:
        raise EngineError("several layers have one name", found=", ".join(shared), fix="give each its own weight")
    return tuple(layers), tuple(int8)


def _is_dequantized(tensor: Any) -> bool:
    """Whether a tensor comes from DequantizeLinear, directly or through operators that copy values."""
    from repq.graph.integers import copies_values, values_of
    from repq.graph.surgeon import producer

    node = producer(tensor)
    if node is None or node.op == "DequantizeLinear":
        return node is not None
    return copies_values(node) and all(map(_is_dequantized, values_of(node)))


def _tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    from onnx import helper

    dimensions = value.type.tensor_type.shape.dim
    return TensorInfo(
        name=value.name,
        dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
        shape=tuple(d.dim_value if d.dim_value > 0 else d.dim_param or f"d{i}" for i, d in enumerate(dimensions)),
    )
