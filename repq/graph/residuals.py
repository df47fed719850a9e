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
import onnx_graphsurgeon as gs
from onnx import ModelProto

from repq.graph.extra_kernels import writes_integers
from repq.graph.grouping import residual_sums
from repq.graph.integers import Pair, Parameters, activation_pairs, arriving_parameters, copies_values, values_of
from repq.graph.propagation import add_pair
from repq.graph.surgeon import export_graph, import_graph, producer
from repq.scales import TensorScale


@dataclass(frozen=True)
class ResidualReport:
    """Inputs of residual adds that read INT8 now, and those left in float with the reason, by tensor name."""

    quantized: tuple[str, ...]
    left_float: tuple[tuple[str, str], ...]


def quantize_residuals(
    model: ModelProto, scales: Mapping[str, TensorScale] | None = None
) -> tuple[ModelProto, ResidualReport]:
    """Return a Q/DQ graph whose residual adds read INT8 on both sides. A second run changes nothing.

    Adds with no quantized operand (such as those that decode the boxes) stay as they are, and so does an operand whose
    layer runs in float: quantizing it would only add a kernel.

    Args:
        model: a Q/DQ graph as ``propagate_qdq`` leaves it.
        scales: measured scales by tensor name, for tensors that would get a borrowed scale.
    """
    graph = import_graph(model)
    report = place(graph, scales)
    return export_graph(graph) if report.quantized else model, report


def place(graph: gs.Graph, scales: Mapping[str, TensorScale] | None = None) -> ResidualReport:
    """``quantize_residuals`` in place."""
    borrowed = _borrowed(graph)
    quantized = {name: pair.result for name, pair in _pairs(graph).items() if name in borrowed}
    placed: list[str] = []
    left: list[tuple[str, str]] = []
    for add in residual_sums(graph):
        for tensor, (reader, slot) in zip(add.operands, add.readers, strict=True):
            name = tensor.name
            if name not in borrowed or arriving_parameters(reader.inputs[slot]) is not None:
                continue
            if not _is_written_as_int8(tensor):
                left.append((name, "the layer that computes it runs in float"))
                continue
            if name not in quantized:
                measured = (scales or {}).get(name)
                known = borrowed[name]
                scale = np.float32(known.scale) if measured is None else measured.scale
                point = np.array(known.zero_point, known.dtype) if measured is None else measured.zero_point
                stem = f"{name}.residual"
                constants = [gs.Constant(f"{stem}_scale", np.asarray(scale)), gs.Constant(f"{stem}_zero_point", point)]
                quantized[name] = add_pair(graph, tensor, stem, constants)
            reader.inputs[slot] = quantized[name]
            placed.append(name)
    return ResidualReport(tuple(dict.fromkeys(placed)), tuple(dict.fromkeys(left)))


def float_operands(graph: gs.Graph) -> tuple[str, ...]:
    """Operands of residual adds with a quantized operand that are read in float though INT8 kernels write them."""
    tensors = graph.tensors()
    return tuple(name for name in _borrowed(graph) if _is_written_as_int8(tensors[name]))


def _borrowed(graph: gs.Graph) -> dict[str, Parameters]:
    """Float operands of residual adds with a quantized operand: what covers the other operand and the sum."""
    pairs = _pairs(graph)
    found: dict[str, list[Parameters]] = defaultdict(list)

    def known(tensor: gs.Tensor) -> Parameters | None:
        return pairs[tensor.name].parameters if tensor.name in pairs else None

    for add in residual_sums(graph):
        arriving = [arriving_parameters(reader.inputs[slot]) for reader, slot in add.readers]
        sides = [*map(known, add.operands), *arriving]
        if any(sides):
            sides.append(known(add.node.outputs[0]))
            for tensor, parameters in zip(add.operands, arriving, strict=True):
                if parameters is None:
                    found[tensor.name] += [side for side in sides if side is not None]
    return {name: Parameters.covering(several) for name, several in found.items()}


def _pairs(graph: gs.Graph) -> dict[str, Pair]:
    return {pair.source.name: pair for pair in activation_pairs(graph)}


def _is_written_as_int8(tensor: gs.Tensor) -> bool:
    node = producer(tensor)
    if node is None:
        return False
    if copies_values(node):
        return all(map(_is_written_as_int8, values_of(node)))
    return node.op == "DequantizeLinear" or writes_integers(node)
