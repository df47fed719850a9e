r"""Both inputs of a residual add in INT8, so that the layers on both sides can write integers.

Before::

    x -> Q -> DQ -> Conv -> Relu -> r ----> Add -> y
    x -------------> Mul(alpha) ---------/

After::

    x -> Q -> DQ -> Conv -> Relu -> r -> Q -> DQ -> Add -> y
              DQ -> Mul(alpha) ------------------/

In the first graph ``x`` is read in float as well, so the layer that makes it writes float and its Q is a kernel of its
own; and ``r`` is written in float. In the second every kernel writes integers.

Where the scales come from: the shortcut has one, because a layer reads it. The other branch ends in a layer that
nothing quantized reads, so it was not calibrated. It takes the scale that the caller measured for it (``scales``);
else the parameters that cover both the shortcut and the sum. For activations that are nowhere negative, the branch is
no larger than the sum, so nothing is cut off.

Source: NVIDIA TensorRT Developer Guide, "Q/DQ layer-placement recommendations": quantize the residual input of skip
connections.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from repq.graph.copying import copies_values, value_slots
from repq.graph.extra_kernels import writes_integers
from repq.graph.index import GraphIndex, remove_unused, sort_nodes
from repq.graph.insert_qdq import add_pair
from repq.graph.int8_flow import Parameters, arriving_parameters, parameters_of
from repq.graph.propagate_qdq import Pair, activation_pairs
from repq.graph.scale_groups import residual_sums
from repq.scales import TensorScale


@dataclass(frozen=True)
class ResidualReport:
    """Inputs of residual adds that read INT8 now, and those left in float with the reason, by tensor name."""

    quantized: tuple[str, ...]
    left_float: tuple[tuple[str, str], ...]


def quantize_residuals(
    model: ModelProto, scales: Mapping[str, TensorScale] | None = None
) -> tuple[ModelProto, ResidualReport]:
    """Return a copy of a Q/DQ graph whose residual adds read INT8 on both sides. A second run changes nothing.

    Adds with no quantized operand (such as those that decode the boxes) are none of its business. An operand whose
    layer runs in float stays as it is: quantizing it would only add a kernel.

    Args:
        model: a Q/DQ graph as ``propagate_qdq`` leaves it.
        scales: measured scales by tensor name, for tensors that ``residual_operands`` lists.
    """
    result = ModelProto()
    result.CopyFrom(model)
    index = GraphIndex.of(result.graph)
    borrowed = _borrowed(result, index)
    quantized = {tensor: pair.result for tensor, pair in _pairs(result, index).items() if tensor in borrowed}
    placed: list[str] = []
    left: list[tuple[str, str]] = []
    for add in residual_sums(result, index):
        for tensor, (reader, slot) in zip(add.operands, add.readers, strict=True):
            if tensor not in borrowed or _reads_int8(reader, slot, index):
                continue
            if not _is_written_as_int8(tensor, index):
                left.append((tensor, "the layer that computes it runs in float"))
                continue
            if tensor not in quantized:
                parameters = _as_parameters((scales or {}).get(tensor)) or borrowed[tensor]
                quantized[tensor] = _add_pair(result, tensor, parameters)
            reader.input[slot] = quantized[tensor]
            placed.append(tensor)
    remove_unused(result.graph)
    sort_nodes(result.graph)
    return result, ResidualReport(tuple(dict.fromkeys(placed)), tuple(dict.fromkeys(left)))


def residual_operands(model: ModelProto) -> tuple[str, ...]:
    """Tensors that ``quantize_residuals`` would give a borrowed scale, so that a caller can measure them instead."""
    pairs = _pairs(model, GraphIndex.of(model.graph))
    return tuple(tensor for tensor in float_operands(model) if tensor not in pairs)


def float_operands(model: ModelProto) -> tuple[str, ...]:
    """Operands of residual adds with a quantized operand that are read in float though INT8 kernels write them."""
    index = GraphIndex.of(model.graph)
    return tuple(tensor for tensor in _borrowed(model, index) if _is_written_as_int8(tensor, index))


def _borrowed(model: ModelProto, index: GraphIndex) -> dict[str, Parameters]:
    """Float operands of residual adds with a quantized operand: what covers the other operand and the sum."""
    pairs = _pairs(model, index)
    found: dict[str, list[Parameters]] = defaultdict(list)
    for add in residual_sums(model, index):
        sides = [_known(tensor, pairs, index) for tensor in add.operands]
        sides += [arriving_parameters(reader.input[slot], index) for reader, slot in add.readers]
        if any(sides):
            known = [known for known in (*sides, _known(add.node.output[0], pairs, index)) if known is not None]
            for tensor, (reader, slot) in zip(add.operands, add.readers, strict=True):
                if not _reads_int8(reader, slot, index):
                    found[tensor] += known
    return {tensor: Parameters.covering(known) for tensor, known in found.items()}


def _pairs(model: ModelProto, index: GraphIndex) -> dict[str, Pair]:
    return {pair.source: pair for pair in activation_pairs(model.graph, index)}


def _known(tensor: str, pairs: Mapping[str, Pair], index: GraphIndex) -> Parameters | None:
    return parameters_of(pairs[tensor].quantize, index) if tensor in pairs else None


def _reads_int8(reader: NodeProto, slot: int, index: GraphIndex) -> bool:
    return arriving_parameters(reader.input[slot], index) is not None


def _is_written_as_int8(tensor: str, index: GraphIndex) -> bool:
    producer = index.producers.get(tensor)
    if producer is None:
        return False
    if copies_values(producer, index):
        return all(_is_written_as_int8(producer.input[slot], index) for slot in value_slots(producer))
    return producer.op_type == "DequantizeLinear" or writes_integers(producer, index)


def _as_parameters(measured: TensorScale | None) -> Parameters | None:
    if measured is None:
        return None
    return Parameters(float(measured.scale.item()), int(measured.zero_point.item()), measured.dtype)


def _add_pair(model: ModelProto, tensor: str, parameters: Parameters) -> str:
    scale = TensorScale(
        np.array(parameters.scale, np.float32),
        np.array(parameters.zero_point, parameters.dtype),
        "int8" if parameters.dtype == "int8" else "uint8",
    )
    return add_pair(model, tensor, f"{tensor}.residual", scale)
