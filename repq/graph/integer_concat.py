r"""Integers, not dequantized values, into a Concat: the form of a symmetric graph that every runtime computes right.

OpenVINO (seen with 2026.4) sums wrongly where a Concat of dequantized, signed INT8 activations feeds a convolution,
also where it moves the pairs there by itself. It computes this right::

    a -> Q -> DQ -> \                               a -> Q -> \
                     Concat -> Conv       becomes              Concat -> DQ -> Conv
    b -> Q -> DQ -> /                               b -> Q -> /

Both are equal bit by bit. What reaches the Concat through other copying operators is quantized again, which changes no
value: ``q(d(q(x))) = q(x)``. ``restore_pairs`` is the way back, to the form that all other passes know.

A channel shuffle is a Concat along an axis of its own and a Reshape that lays this axis into the channels. OpenVINO
(2026.4) does not bring the scale behind such a Reshape: the layers that read it run in float, and their weights become
floats anew in every run. ``regroup`` brings it there, with either zero point::

    a -> Q -> DQ -> Unsqueeze -> \                                  a -> Q -> Unsqueeze -> \
                                  Concat (2) -> Reshape   becomes                           Concat (2) -> Reshape -> DQ
    b -> Q -> DQ -> Unsqueeze -> /                                  b -> Q -> Unsqueeze -> /
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import ModelProto

from repq.graph.integers import arriving_parameters, copies_values, parameters_of, value_slots, values_of
from repq.graph.propagation import propagate
from repq.graph.surgeon import add_node, array, export_graph, import_graph, is_output, producer


def concat_integers(model: ModelProto) -> ModelProto:
    """Return ``model`` with the integers of signed activations concatenated. A second run changes nothing."""
    graph = import_graph(model)
    return export_graph(graph) if concatenate(graph) else model


def concatenate(graph: gs.Graph) -> bool:
    """``concat_integers`` in place; return whether it changed anything."""
    found = signed_concats(graph)
    for node in found:
        origins = [_origin(tensor) for tensor in node.inputs]
        parameters = list(origins[0].inputs[1:3])
        for slot, (tensor, origin) in enumerate(zip(list(node.inputs), origins, strict=True)):
            if tensor is origin.outputs[0]:
                node.inputs[slot] = origin.inputs[0]
            else:
                name = f"{node.outputs[0].name}.{slot}"
                inputs = [tensor, *parameters]
                node.inputs[slot] = add_node(
                    graph, "QuantizeLinear", f"{name}/QuantizeLinear", inputs, f"{name}_quantized"
                )
        _dequantize_behind(graph, node, parameters)
    return bool(found)


def regroup(graph: gs.Graph) -> bool:
    """Dequantize behind the Reshape of a channel shuffle, not in front of it; return whether that changed anything."""
    found = [node for node in graph.nodes if _is_shuffle(graph, node)]
    for node in found:
        parameters = list(_origin(node.inputs[0]).inputs[1:3])
        node.inputs[0] = _integers(graph, node.inputs[0], f"{node.outputs[0].name}.joined", parameters)
        _dequantize_behind(graph, node, parameters)
    return bool(found)


def _dequantize_behind(graph: gs.Graph, node: gs.Node, parameters: list[gs.Tensor]) -> None:
    """Let a node that reads integers give them, and dequantize what it gives."""
    output = node.outputs[0]
    integers = gs.Variable(f"{output.name}_quantized")
    node.outputs = [integers]
    title = f"{output.name}/DequantizeLinear"
    graph.nodes.append(gs.Node("DequantizeLinear", title, {}, [integers, *parameters], [output]))


def _is_shuffle(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether a Reshape alone reads what a Concat along another axis than the channels' joins, all of one scale."""
    tensor = node.inputs[0] if node.op == "Reshape" else None
    if tensor is None or len(tensor.outputs) != 1 or is_output(graph, tensor) or not _has_one_origin(tensor):
        return False
    joined = producer(tensor)
    if joined is not None and joined.op == "DequantizeLinear":
        joined = producer(joined.inputs[0])
    if joined is None or joined.op != "Concat":
        return False
    axis, shape = joined.attrs["axis"], joined.outputs[0].shape
    return bool((axis if shape is None else axis % len(shape)) != 1)


def _integers(graph: gs.Graph, tensor: gs.Tensor, name: str, parameters: list[gs.Tensor]) -> gs.Tensor:
    """The integers of a dequantized tensor, by the operators that copied it."""
    node = producer(tensor)
    assert node is not None, "the tensor has arriving parameters"
    if node.op == "DequantizeLinear":
        return node.inputs[0]
    if len(node.outputs) > 1:
        return add_node(graph, "QuantizeLinear", f"{name}/QuantizeLinear", [tensor, *parameters], f"{name}_quantized")
    inputs = list(node.inputs)
    for slot in value_slots(node):
        inputs[slot] = _integers(graph, inputs[slot], f"{name}.{slot}", parameters)
    return add_node(graph, node.op, f"{name}/{node.op}", inputs, f"{name}_quantized", **node.attrs)


def signed_concats(graph: gs.Graph) -> list[gs.Node]:
    """The Concat nodes of dequantized INT8 with one scale."""
    found = []
    for node in graph.nodes:
        if node.op == "Concat" and copies_values(node):
            parameters = arriving_parameters(node.outputs[0])
            if parameters is not None and parameters.dtype == "int8" and _has_one_origin(node.outputs[0]):
                found.append(node)
    return found


def _has_one_origin(tensor: gs.Tensor) -> bool:
    """Whether every DequantizeLinear that a tensor comes from has the same parameters, float type and zero point."""
    if arriving_parameters(tensor) is None:
        return False
    origins = _origins(tensor)
    return len({origin.inputs[1].dtype for origin in origins}) == 1 and all(
        array(origin, 2) is not None for origin in origins
    )


def _origins(tensor: gs.Tensor) -> list[gs.Node]:
    """Every DequantizeLinear that a tensor with ``arriving_parameters`` comes from."""
    node = producer(tensor)
    assert node is not None, "the tensor has arriving parameters"
    if node.op == "DequantizeLinear":
        return [node]
    return [origin for source in values_of(node) for origin in _origins(source)]


def restore_pairs(graph: gs.Graph) -> bool:
    """Dequantize in front of copying operators on integers, and place the pairs as ``propagate_qdq`` does."""
    changed = False
    while (found := _behind_copies(graph)) is not None:
        dequantize, mover = found
        for slot in value_slots(mover):
            mover.inputs[slot] = _dequantized(graph, mover.inputs[slot], dequantize, f"{mover.outputs[0].name}.{slot}")
        output = dequantize.outputs[0]
        dequantize.outputs.clear()
        mover.outputs = [output]
        graph.cleanup(recurse_functions=False)
        changed = True
    if changed:
        graph.toposort(recurse_functions=False)
        propagate(graph)
    return changed


def _dequantized(graph: gs.Graph, integers: gs.Tensor, like: gs.Node, name: str) -> gs.Tensor:
    """The dequantized form of integers: what they were made of if that has these parameters, or an existing one."""
    source, wanted = producer(integers), parameters_of(like)
    if source is not None and source.op == "QuantizeLinear" and arriving_parameters(source.inputs[0]) == wanted:
        return source.inputs[0]
    for reader in integers.outputs:
        same_type = reader.op == "DequantizeLinear" and reader.inputs[1].dtype == like.inputs[1].dtype
        if same_type and parameters_of(reader) == wanted:
            return reader.outputs[0]
    inputs = [integers, *like.inputs[1:]]
    result = add_node(graph, "DequantizeLinear", f"{name}/DequantizeLinear", inputs, f"{name}_dequantized")
    result.dtype, result.shape = like.outputs[0].dtype, integers.shape
    return result


def _behind_copies(graph: gs.Graph) -> tuple[gs.Node, gs.Node] | None:
    """A DequantizeLinear and the copying operator whose integers it alone reads."""
    for node in graph.nodes:
        mover = producer(node.inputs[0]) if node.op == "DequantizeLinear" else None
        if mover is None or not copies_values(mover) or len(mover.outputs) > 1 or parameters_of(node) is None:
            continue
        integers = node.inputs[0]
        if len(integers.outputs) == 1 and not is_output(graph, integers) and _is_quantized(integers):
            return node, mover
    return None


def _is_quantized(integers: gs.Tensor) -> bool:
    """Whether Q nodes wrote the integers, directly or through copying operators; other operators compute with them."""
    node = producer(integers)
    if node is None or node.op == "QuantizeLinear":
        return node is not None
    return copies_values(node) and all(map(_is_quantized, values_of(node)))


def _origin(tensor: gs.Tensor) -> gs.Node:
    """The DequantizeLinear that a tensor with ``arriving_parameters`` comes from."""
    node = producer(tensor)
    assert node is not None, "the tensor has arriving parameters"
    return node if node.op == "DequantizeLinear" else _origin(values_of(node)[0])
