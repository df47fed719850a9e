r"""Pixels as bytes: the division by 255 moves from the caller into the graph, where it costs nothing.

Float, before and after::

    images (float, p / 255) -> Conv(W)                 images (UINT8, p) -> Cast -> Conv(W / 255)

Convolution is linear and zero padding stays zero, so ``conv(p / 255, W) = conv(p, W / 255)``, biases untouched; what is
left is the rounding of ``W / 255``, half a unit in the last place of each weight.

Q/DQ, before and after::

    images (float) -> Q(s, z) -> DQ(s, z) -> Conv(DQ(W; t))
    images (UINT8) -> Cast -> Q(255 s, z) -> DQ(255 s, z) -> Conv(DQ(W; t / 255))

No integer changes: neither those of the weight nor those of the input. For the input this is checked for all 256
pixels, ``round(p / 255 / s) = round(p / (255 s))`` in float32, and ``255 s`` moves by its last digit where a pixel on
the edge demands it. In a graph whose scales are FP16, ``t / 255`` would leave the range of normal numbers. There the
division stays, in float32 as the caller did it, and becomes part of the kernel that quantizes the input::

    images (UINT8) -> Cast -> Div 255 -> Q(s, z) -> DQ(s, z) -> Conv(DQ(W; t))

Only the input is a byte tensor: TensorRT takes UINT8 at the network's edge alone, in front of a Cast.
"""

from __future__ import annotations

from dataclasses import replace as with_changes

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from repq.errors import GraphError
from repq.graph.first_layers import FirstLayer, first_layers, image_input
from repq.graph.index import GraphIndex, remove_unused, sort_nodes
from repq.graph.metadata import read_metadata, write_metadata

_LARGEST = np.float32(255)
_PIXELS = np.arange(256, dtype=np.float32)


def uint8_input(model: ModelProto) -> ModelProto:
    """Return a copy of ``model`` that takes pixels as bytes instead of floats in 0..1.

    Raises:
        GraphError: the input is no float tensor, or something else than convolutions reads it.
    """
    result = ModelProto()
    result.CopyFrom(model)
    entry = image_input(result)
    kind = entry.type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        raise GraphError(
            f"the input {entry.name!r} is no float32 tensor",
            found=TensorProto.DataType.Name(kind),
            fix="start from a graph that takes float32 images; one of UINT8 has its normalization inside already",
        )
    index = GraphIndex.of(result.graph)
    pairs: dict[str, tuple[NodeProto, NodeProto]] = {}
    for layer in first_layers(result):
        pair = _pair(layer)
        if pair is not None:
            pairs[pair[0].output[0]] = pair
        if pair is None or not _scaled_in_fp16(pair[1], index):
            _divide_weight(layer, index)
    _take_bytes(result)
    for quantize, dequantize in pairs.values():
        if _scaled_in_fp16(dequantize, index):
            _divide_pixels(quantize, result)
        else:
            _widen(quantize, dequantize, result, index)
    remove_unused(result.graph)
    sort_nodes(result.graph)
    metadata = read_metadata(result)
    if metadata is not None:
        changed = metadata.preprocess.model_copy(update={"uint8": True})
        write_metadata(result, with_changes(metadata, preprocess=changed))
    return result


def byte_scale(scale: np.float32) -> np.float32:
    """The float32 ``s'`` next to ``255 s`` with ``round(p / s') = round(p / 255 / s)`` for every pixel p.

    Raises:
        GraphError: there is none within four units in the last place.
    """
    wanted = np.rint(_PIXELS / _LARGEST / scale)
    up = down = _LARGEST * scale
    for _ in range(5):
        for candidate in (up, down):
            if np.array_equal(np.rint(_PIXELS / candidate), wanted):
                return candidate
        up, down = np.nextafter(up, np.float32(np.inf)), np.nextafter(down, np.float32(0))
    raise GraphError(
        "the scale of the input cannot be given for bytes without changing an integer",
        found=f"scale {scale}",
        fix="export without the byte input, or calibrate again",
    )


def _pair(layer: FirstLayer) -> tuple[NodeProto, NodeProto] | None:
    """The Quantize and the Dequantize between the input and a layer; None: it reads floats."""
    nodes = [node for node in layer.path if node.op_type != "Cast"]
    if not nodes:
        return None
    if [node.op_type for node in nodes] != ["QuantizeLinear", "DequantizeLinear"]:
        raise GraphError(
            f"the input reaches {layer.node.name or layer.weight} in a way that is not known",
            found=" -> ".join(node.op_type for node in layer.path),
            fix="a quantized input has one Quantize and one Dequantize; export the model again",
        )
    return nodes[0], nodes[1]


def _scaled_in_fp16(dequantize: NodeProto, index: GraphIndex) -> bool:
    return index.initializers[dequantize.input[1]].data_type == TensorProto.FLOAT16


def _divide_weight(layer: FirstLayer, index: GraphIndex) -> None:
    """Divide the weight by 255, or where it is stored as integers, their scale."""
    source = index.producers.get(layer.node.input[1])
    name = source.input[1] if source is not None and source.op_type == "DequantizeLinear" else layer.weight
    value = index.array(name)
    if value is None or len(index.uses_of(name)) > 1:
        raise GraphError(f"{name} is no constant that {layer.weight} has to itself", fix="export the model again")
    index.initializers[name].CopyFrom(numpy_helper.from_array((value / _LARGEST).astype(value.dtype), name))


def _widen(quantize: NodeProto, dequantize: NodeProto, model: ModelProto, index: GraphIndex) -> None:
    scale = index.array(quantize.input[1])
    if scale is None or scale.size != 1:
        raise GraphError(f"the scale of {quantize.name} is not one constant", fix="quantize the input per tensor")
    name = f"{quantize.input[1]}_of_bytes"
    widened = np.full(scale.shape, byte_scale(np.float32(scale.item())), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(widened, name))
    quantize.input[1] = dequantize.input[1] = name


def _divide_pixels(quantize: NodeProto, model: ModelProto) -> None:
    largest, result = f"{quantize.output[0]}_largest", f"{quantize.output[0]}_unit"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(_LARGEST), largest))
    model.graph.node.append(helper.make_node("Div", [quantize.input[0], largest], [result], f"{result}/Div"))
    quantize.input[0] = result


def _take_bytes(model: ModelProto) -> None:
    entry = image_input(model)
    pixels = f"{entry.name}_pixels"
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            if name == entry.name:
                node.input[slot] = pixels
    entry.type.tensor_type.elem_type = TensorProto.UINT8
    cast = helper.make_node("Cast", [entry.name], [pixels], f"{entry.name}/to_pixels", to=TensorProto.FLOAT)
    model.graph.node.append(cast)
