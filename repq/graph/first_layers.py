r"""What of the preprocessing folds into the first layers, where it costs nothing: colour order and division by 255.

**BGR**, as cameras and OpenCV give images: ``images (RGB) -> Conv(W)`` becomes ``images (BGR) -> Conv(W')`` with
``W'[:, c] = W[:, 2 - c]``: the sum over the colours has the same terms in another order. Weights and their scales per
output channel keep every value, so a Q/DQ graph computes the same integers.

**Pixels as bytes**: the division by 255 moves from the caller into the graph.

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

Only the input is a byte tensor: TensorRT takes UINT8 at the network's edge alone, in front of a Cast. 255 stands for
the divisor of the model's preprocessing; with 1 there is nothing to fold. A mean or deviation of the colours does not
fold, since padding with zeros would no longer be padding with the mean; it stays in front of the network, as does the
division where something else than convolutions with weights of their own reads the images, such as a Slice::

    images (UINT8) -> Cast -> Sub -> Div -> network
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto

from repq.errors import GraphError
from repq.graph.layer_join import stored_weight
from repq.graph.metadata import GraphMetadata, preprocessing_of, update_metadata
from repq.graph.surgeon import (
    add_node,
    array,
    element_type,
    export_graph,
    import_graph,
    producer,
    redirect,
    title,
    uses,
)
from repq.preprocessing import Preprocessing

_COLOURS = 3
_ON_THE_WAY = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
_PIXELS = np.arange(256, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """A convolution on the input.

    Attributes:
        node: the Conv.
        path: the Cast, Quantize and Dequantize nodes between the input and it, in order.
        weight: its weight, as floats or integers.
    """

    node: gs.Node
    path: tuple[gs.Node, ...]
    weight: gs.Constant


def image_input(graph: gs.Graph) -> gs.Variable:
    """The one input.

    Raises:
        GraphError: there is none, or several.
    """
    if len(graph.inputs) != 1:
        found = ", ".join(tensor.name for tensor in graph.inputs) or "none"
        raise GraphError("the graph needs exactly one input", found=found, fix="export the model with `repq export`")
    return graph.inputs[0]


def first_layers(graph: gs.Graph) -> list[FirstLayer]:
    """Every convolution that reads the input.

    Raises:
        GraphError: something else reads it too, or a convolution's weight is computed or shared, so that nothing can be
            folded into the weights.
    """
    image = image_input(graph)
    layers = list(_behind(image, ()))
    others = [node.op for _, node, weight in layers if weight is None]
    if others or not layers:
        raise GraphError(
            f"nothing can be folded into the layers that read {image.name!r}",
            found=f"it is read by {', '.join(others)}" if others else "nothing reads it",
            fix="fold only into a graph whose input convolutions with weights of their own read; is it folded already?",
        )
    return [FirstLayer(node, path, weight) for path, node, weight in layers if weight is not None]


def bgr_input(model: ModelProto) -> ModelProto:
    """Return ``model`` so that it takes BGR instead of RGB; run twice, it takes RGB again.

    Raises:
        GraphError: something else than convolutions with three input channels reads the input.
    """
    graph = import_graph(model)
    swap_colours(graph)
    return export_graph(graph)


def swap_colours(graph: gs.Graph) -> None:
    """``bgr_input`` in place."""
    for layer in first_layers(graph):
        weight = layer.weight.values
        if weight.shape[1] != _COLOURS:
            raise GraphError(
                f"{layer.weight.name} does not read three colours", found=f"{weight.shape[1]} channels in a group"
            )
        layer.weight.values = np.ascontiguousarray(weight[:, ::-1])

    def swapped(old: GraphMetadata) -> dict[str, Any]:
        form = old.preprocessing
        order: Any = "rgb" if form.bgr else "bgr"
        return {
            "preprocessing": replace(form, colours=order, mean=form.mean[::-1], std=form.std[::-1]),
            "preprocess": old.preprocess.model_copy(update={"bgr": not old.preprocess.bgr}),
        }

    update_metadata(graph, swapped)


def uint8_input(model: ModelProto) -> ModelProto:
    """Return ``model`` so that it takes pixels as bytes; the numbers of its preprocessing are inside.

    Raises:
        GraphError: the input is no float tensor.
    """
    graph = import_graph(model)
    take_bytes(graph)
    return export_graph(graph)


def take_bytes(graph: gs.Graph) -> None:
    """``uint8_input`` in place."""
    image = image_input(graph)
    if (kind := element_type(image)) != TensorProto.FLOAT:
        raise GraphError(
            f"the input {image.name!r} is no float32 tensor",
            found=TensorProto.DataType.Name(kind),
            fix="export without --fp16-io; a graph that takes bytes has its normalization inside already",
        )
    form, readers = preprocessing_of(graph), _behind(image, ())
    folds = form.divisor != 1 and not form.shifts and all(weight is not None for _, _, weight in readers)
    layers = first_layers(graph) if folds else []
    pairs: dict[str, tuple[gs.Node, gs.Node]] = {}
    for layer in layers:
        pair = _pair(layer)
        if pair is not None:
            pairs[pair[0].outputs[0].name] = pair
        if pair is None or not _scaled_in_fp16(pair[1]):
            _divide_weight(layer, form.divisor)
    pixels = gs.Variable(f"{image.name}_pixels", np.dtype(np.float32), image.shape)
    redirect(image, pixels)
    graph.nodes.append(gs.Node("Cast", f"{image.name}/to_pixels", {"to": TensorProto.FLOAT}, [image], [pixels]))
    image.dtype = np.dtype(np.uint8)
    for quantize, dequantize in pairs.values():
        if _scaled_in_fp16(dequantize):
            _divide_pixels(graph, quantize, form.divisor)
        else:
            _widen(quantize, dequantize, form.divisor)
    if form.shifts or (form.divisor != 1 and not folds):
        _normalize(graph, pixels, form)
    update_metadata(graph, lambda old: {"preprocess": old.preprocess.model_copy(update={"uint8": True})})


def byte_scale(scale: np.float32, divisor: float = 255) -> np.float32:
    """The float32 ``s'`` next to ``255 s`` with ``round(p / s') = round(p / 255 / s)`` for every pixel p (divisor 255).

    Raises:
        GraphError: there is none within four units in the last place.
    """
    wanted = np.rint(_PIXELS / np.float32(divisor) / scale)
    up = down = np.float32(divisor) * scale
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


def _behind(
    tensor: gs.Tensor, path: tuple[gs.Node, ...]
) -> list[tuple[tuple[gs.Node, ...], gs.Node, gs.Constant | None]]:
    found: list[tuple[tuple[gs.Node, ...], gs.Node, gs.Constant | None]] = []
    for node, slot in uses(tensor):
        if node.op == "Shape":  # which stays what it is
            continue
        if node.op in _ON_THE_WAY and slot == 0:
            found += _behind(node.outputs[0], (*path, node))
        else:
            found.append((path, node, _own_weight(node, slot)))
    return found


def _own_weight(node: gs.Node, slot: int) -> gs.Constant | None:
    """The stored weight, if ``node`` is a convolution and its only reader."""
    weight = stored_weight(node) if node.op == "Conv" and slot == 0 else None
    return weight if weight is not None and len(weight.outputs) == 1 else None


def _pair(layer: FirstLayer) -> tuple[gs.Node, gs.Node] | None:
    """The Quantize and the Dequantize between the input and a layer; None: it reads floats."""
    nodes = [node for node in layer.path if node.op != "Cast"]
    if not nodes:
        return None
    if [node.op for node in nodes] != ["QuantizeLinear", "DequantizeLinear"]:
        raise GraphError(
            f"the input reaches {layer.node.name or layer.weight.name} in a way that is not known",
            found=" -> ".join(node.op for node in layer.path),
            fix="a quantized input has one Quantize and one Dequantize; export the model again",
        )
    return nodes[0], nodes[1]


def _scaled_in_fp16(dequantize: gs.Node) -> bool:
    return element_type(dequantize.inputs[1]) == TensorProto.FLOAT16


def _divide_weight(layer: FirstLayer, divisor: float) -> None:
    """Divide the weight, or where it is stored as integers, their scale."""
    source = producer(layer.node.inputs[1])
    divided = source.inputs[1] if source is not None and source.op == "DequantizeLinear" else layer.weight
    if not isinstance(divided, gs.Constant) or len(divided.outputs) > 1:
        raise GraphError(
            f"{divided.name} is no constant that {layer.weight.name} has to itself", fix="export the model again"
        )
    divided.values = np.asarray(divided.values / np.float32(divisor), divided.values.dtype)


def _widen(quantize: gs.Node, dequantize: gs.Node, divisor: float) -> None:
    scale = array(quantize, 1)
    if scale is None or scale.size != 1:
        raise GraphError(f"the scale of {title(quantize)} is not one constant", fix="quantize the input per tensor")
    widened = np.full(scale.shape, byte_scale(np.float32(scale.item()), divisor), np.float32)
    quantize.inputs[1] = dequantize.inputs[1] = gs.Constant(f"{quantize.inputs[1].name}_of_bytes", widened)


def _divide_pixels(graph: gs.Graph, quantize: gs.Node, divisor: float) -> None:
    stem = quantize.outputs[0].name
    largest = gs.Constant(f"{stem}_largest", np.asarray(divisor, np.float32))
    quantize.inputs[0] = add_node(graph, "Div", f"{stem}_unit/Div", [quantize.inputs[0], largest], f"{stem}_unit")


def _normalize(graph: gs.Graph, pixels: gs.Variable, form: Preprocessing) -> None:
    """``(p - divisor mean) / (divisor std)`` of each colour in front of what reads ``pixels``."""
    mean, std = (np.float32(form.divisor) * np.array(value, np.float32) for value in (form.mean, form.std))
    readers = uses(pixels)
    result: gs.Tensor = pixels
    steps = (("Sub", "centred", mean), ("Div", "normalized", std))
    for op, stem, values in steps if form.shifts else steps[1:]:
        constant = gs.Constant(f"{pixels.name}_{stem}_by", values.reshape(1, 3, 1, 1))
        result = add_node(graph, op, f"{pixels.name}/{stem}", [result, constant], f"{pixels.name}_{stem}")
    for node, slot in readers:
        node.inputs[slot] = result
