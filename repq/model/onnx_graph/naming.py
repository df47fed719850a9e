"""Which nodes of a graph are layers, and their names: of the nodes, and of their weights and biases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import nn

from repq.errors import GraphError
from repq.layers import CONVOLUTIONS, PLAIN_GEMM, PRODUCTS, LayerId, has_defaults
from repq.model.onnx_graph.constants import Constants, reached, wiring
from repq.model.onnx_graph.program import title
from repq.model.onnx_graph.skeleton import parameter_names
from repq.onnx_file import attributes_of, given_inputs


@dataclass(frozen=True, eq=False)
class _Layer:
    """A node with a weight of its own. ``sum`` is the Add that holds the bias of a MatMul."""

    node: NodeProto
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    sum: NodeProto | None = None


def name_layers(model: ModelProto, path: Path) -> Iterator[str]:
    """Give the weights of all layers the names of their layers, in place; say of which there are more than before.

    Layers are the convolutions of two dimensions, and the products with a constant matrix. A weight that several of
    them read, such as that of a head which all levels share, becomes one for each.

    Raises:
        GraphError: a convolution's weight is computed.
    """
    found = {id(layer.node): layer for layer in (*_convolutions(model, path), *_products(model))}
    layers = [found[id(node)] for node in model.graph.node if id(node) in found]
    shared = sum(count > 1 for count in Counter(layer.node.input[1] for layer in layers).values())
    names = [parameter_names(layer) for layer in _layer_ids([layer.node for layer in layers])]
    _make_room(model, {name for pair in names for name in pair})
    for (weight, bias), layer in zip(names, layers, strict=True):
        parts = {weight: layer.weight} | ({} if layer.bias is None else {bias: layer.bias})
        for name, part in parts.items():
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(part, np.float32), name))
        if layer.sum is None:
            layer.node.input[1:] = parts
        else:
            layer.node.input[1] = weight
            layer.sum.input[:] = [name if name == layer.node.output[0] else bias for name in layer.sum.input]
    _drop_unread(model)
    if shared:
        yield f"{shared} weights that several layers read: each of the layers has a copy of its own"


def _convolutions(model: ModelProto, path: Path) -> Iterator[_Layer]:
    constants = Constants(model)
    nodes = [node for node in model.graph.node if node.op_type in CONVOLUTIONS]
    values = [constants.value(node.input[1]) for node in nodes]
    computed = [title(node) for node, value in zip(nodes, values, strict=True) if value is None]
    if computed:
        raise GraphError(f"some convolutions of {path.name} have no weight of their own",
                         found=f"computed: {', '.join(computed)}",
                         fix="export the model with one constant weight per convolution")  # fmt: skip
    for node, value in zip(nodes, values, strict=True):
        if value is None or value.ndim != 4:
            _store_weight(model, node, value)
            continue
        bias = constants.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if bias is None and len(node.input) > 2 and node.input[2]:
            raise GraphError(f"the bias of {title(node)} is computed", fix="export the model with constant biases")
        yield _Layer(node, value, bias)


def _store_weight(model: ModelProto, node: NodeProto, value: NDArray[np.float32] | None) -> None:
    """Make an initializer of a weight that constants give, in place: convolutions of other dimensions are operators."""
    if value is not None and all(tensor.name != node.input[1] for tensor in model.graph.initializer):
        node.input[1] = f"{node.output[0]}/stored_weight"
        model.graph.initializer.append(numpy_helper.from_array(value, node.input[1]))


def _products(model: ModelProto) -> Iterator[_Layer]:
    """The MatMul and Gemm nodes that multiply what is computed by a constant matrix, and do no more than add a bias."""
    constants, (readers, _) = Constants(model), wiring(model)
    computed = reached(model, past={"Shape", "Size"})
    sums = {name: node for node in model.graph.node if node.op_type == "Add" for name in node.input}

    for node in model.graph.node:
        if node.op_type not in PRODUCTS or node.input[0] not in computed:
            continue
        weight = constants.value(node.input[1])
        if weight is None or weight.ndim != 2 or not weight.size or weight.dtype != np.float32:
            continue
        if node.op_type == "MatMul":
            add = sums.get(node.output[0]) if readers[node.output[0]] == 1 else None
            others = [] if add is None else [name for name in add.input if name != node.output[0]]
            bias = constants.value(others[0]) if others else None
            own = bias is not None and bias.shape == weight.shape[1:]
            yield _Layer(node, weight, bias if own else None, add if own else None)
        else:
            values = attributes_of(node)
            width = weight.shape[0 if values.get("transB") else 1]
            summand = [name for name in node.input[2:] if name]
            bias = constants.value(summand[0]) if summand else np.zeros(width, np.float32)
            plain = has_defaults(values, PLAIN_GEMM)
            if plain and bias is not None and bias.shape in ((), (1,), (1, 1), (width,), (1, width)):
                yield _Layer(node, weight, np.broadcast_to(bias.reshape(-1), width) if summand else None)


def _make_room(model: ModelProto, wanted: Collection[str]) -> None:
    """Rename what has the name of a layer's weight or bias, and weights of nodes that are no layers, in place."""
    stored = {tensor.name for tensor in model.graph.initializer}
    taken = {*stored, *(name for node in model.graph.node for name in node.output)}
    others = {node.input[1] for node in model.graph.node if node.op_type in CONVOLUTIONS | PRODUCTS} & stored
    renamed: dict[str, str] = {}
    for name in sorted(taken.intersection(wanted) | {name for name in others if name.endswith(".weight")}):
        new = f"{name}.constant"
        while new in taken:
            new += "_"
        renamed[name] = new
        taken.add(new)
    for entry in (*model.graph.initializer, *model.graph.input):
        entry.name = renamed.get(entry.name, entry.name)
    for node in model.graph.node:
        for names in (node.input, node.output):
            if not renamed.keys().isdisjoint(names):
                names[:] = [renamed.get(name, name) for name in names]


def _layer_ids(nodes: list[NodeProto]) -> list[LayerId]:
    """Names of nodes as paths of modules: unique, no part that a module has already, none above another."""
    found: list[str] = []
    for node in nodes:
        parts = [part for part in title(node).replace("/", ".").replace(":", "_").split(".") if part]
        name = ".".join(f"{part}_" if hasattr(nn.Module, part) or part in _TAKEN else part for part in parts)
        found.append(name or node.op_type)
    counts = Counter(found)
    prefixes = {name[:end] for name in found for end, letter in enumerate(name) if letter == "."}
    taken = {*found, *prefixes}
    result = []
    for name in found:
        if counts[name] > 1 or name in prefixes:
            name = next(new for number in count(1) if (new := f"{name}.{number}") not in taken)
            taken.add(name)
        result.append(LayerId(name))
    return result


_TAKEN = frozenset(
    {"features", "predict", "outputs", "answer", "merged_layers", "spec", "deploy", "program", "parts", "training"}
)
"""Attributes of a `repq.model.Detector` of a graph and of its layers."""


def _drop_unread(model: ModelProto) -> None:
    """Remove nodes that no output needs, initializers that nobody reads, and inputs that only name initializers."""
    needed = {output.name for output in model.graph.output}
    for node in reversed(list(model.graph.node)):
        if needed.isdisjoint(node.output):
            model.graph.node.remove(node)
        else:
            needed.update(node.input)
    stored = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    inputs = given_inputs(model)
    kept = [TensorProto.FromString(tensor.SerializeToString()) for tensor in stored]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    values = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
    del model.graph.input[:]
    model.graph.input.extend(values)
