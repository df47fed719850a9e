"""Small detectors as ONNX files, one for each layout, as other tools would write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

CLASSES, SIZE = 3, 64
STRIDES = (8, 16)
NAMES = ("ring", "triangle", "cross")


class Graph:
    """Collects nodes; every call gives the name of what it computes."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[TensorProto] = []
        self.opset = opset
        self.rng = np.random.default_rng(seed)

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"/net/{kind}_{len(self.nodes)}_output_{number}" for number in range(outputs)]
        name = f"/net/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), names, name, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def conv(
        self, x: str, into: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> str:
        shape = (out, into // groups, kernel, kernel)
        weight = self.constant(self.rng.normal(0, (into // groups * kernel**2) ** -0.5, shape))
        further = [self.constant(self.rng.normal(0, 0.1, out))] if bias else []
        pad = [kernel // 2] * 4
        return str(
            self.op(
                "Conv", x, weight, *further, strides=[stride] * 2, pads=pad, group=groups, kernel_shape=[kernel] * 2
            )
        )

    def silu(self, x: str) -> str:
        return str(self.op("Mul", x, self.op("Sigmoid", x)))

    def features(self, x: str) -> list[tuple[str, int]]:
        """Maps of stride 8 and 16, and their channels."""
        x = self.silu(self.conv(x, 3, 8, stride=2))
        x = self.op("Relu", self.conv(x, 8, 16, stride=2))
        fine = self.silu(self.conv(x, 16, 16, stride=2, groups=16, bias=False))
        coarse = self.silu(self.conv(fine, 16, 32, stride=2))
        form = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        up = self.op("Resize", coarse, self.constant([]), self.constant([1, 1, 2, 2]), **form)
        fine = self.silu(self.conv(self.op("Concat", fine, up, axis=1), 48, 16, kernel=1))
        return [(fine, 16), (coarse, 32)]

    def rows(self, maps: Sequence[str], columns: int) -> str:
        """Maps (1, columns, h, w) as rows (1, N, columns)."""
        flat = [self.op("Reshape", part, self.ints(1, columns, -1)) for part in maps]
        return str(self.op("Transpose", self.op("Concat", *flat, axis=2), perm=[0, 2, 1]))

    def model(self, outputs: dict[str, tuple[str, list[int]]], batch: int | str = 1, **metadata: str) -> ModelProto:
        nodes = [*self.nodes]
        for name, (tensor, _) in outputs.items():
            nodes.append(helper.make_node("Identity", [tensor], [name], f"/net/out/{name}"))
        shape = [batch, 3, SIZE, SIZE]
        made = helper.make_graph(
            nodes, "net", [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *dims[1:]])
             for name, (_, dims) in outputs.items()], self.stored,
        )  # fmt: skip
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model


def cells() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    centres, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: SIZE // stride, : SIZE // stride]
        centres.append(np.stack((x, y), -1).reshape(-1, 2))
        strides.append(np.full((centres[-1].shape[0], 1), stride))
    return np.concatenate(centres), np.concatenate(strides)


COUNT = sum((SIZE // stride) ** 2 for stride in STRIDES)


def raw_heads(g: Graph, objectness: bool) -> list[str]:
    maps = []
    for x, channels in g.features("input"):
        box = g.conv(x, channels, 4, kernel=1)
        parts = [box] + ([g.op("Sigmoid", g.conv(x, channels, 1, kernel=1))] if objectness else [])
        maps.append(g.op("Concat", *parts, g.op("Sigmoid", g.conv(x, channels, CLASSES, kernel=1)), axis=1))
    return maps


def yolox_raw(**form: Any) -> ModelProto:
    g = Graph(opset=11)
    return g.model({"output": (g.rows(raw_heads(g, True), 5 + CLASSES), [1, COUNT, 5 + CLASSES])}, **form)


def _decoded(g: Graph, objectness: bool) -> tuple[str, str]:
    """Boxes (1, N, 4) of centre and size in pixels, and the columns behind them."""
    width = 4 + objectness + CLASSES
    rows = g.rows(raw_heads(g, objectness), width)
    centres, strides = cells()
    xy, wh, rest = g.op("Split", rows, g.ints(2, 2, width - 4), axis=2, outputs=3)
    xy = g.op("Mul", g.op("Add", xy, g.constant(centres[None])), g.constant(strides[None]))
    wh = g.op("Mul", g.op("Exp", wh), g.constant(strides[None]))
    return str(g.op("Concat", xy, wh, axis=2)), rest


def yolov5(**form: Any) -> ModelProto:
    g = Graph()
    return g.model({"output": (g.op("Concat", *_decoded(g, True), axis=2), [1, COUNT, 5 + CLASSES])}, **form)


def yolov8(**form: Any) -> ModelProto:
    g = Graph(opset=20)
    joined = g.op("Concat", *_decoded(g, False), axis=2)
    shape = [1, 4 + CLASSES, COUNT]
    metadata = {"names": str(dict(enumerate(NAMES))), "task": "detect", "author": "Ultralytics", "stride": "16"}
    return g.model({"output0": (g.op("Transpose", joined, perm=[0, 2, 1]), shape)}, **{**metadata, **form})


def _corners(g: Graph, boxes: str) -> str:
    centre, size = g.op("Split", boxes, g.ints(2, 2), axis=2, outputs=2)
    half = g.op("Mul", size, g.constant(0.5))
    return str(g.op("Concat", g.op("Sub", centre, half), g.op("Add", centre, half), axis=2))


def end2end(**form: Any) -> ModelProto:
    g = Graph()
    boxes, scores = _decoded(g, False)
    _, place = g.op("TopK", g.op("ReduceMax", scores, axes=[2], keepdims=0), g.ints(20), outputs=2, axis=1)

    def picked(rows: str, width: int) -> str:
        index = g.op("Expand", g.op("Unsqueeze", place, g.ints(2)), g.ints(1, 20, width))
        return str(g.op("GatherElements", rows, index, axis=1))

    best = picked(scores, CLASSES)
    label = g.op("Cast", g.op("ArgMax", best, axis=2), to=TensorProto.FLOAT)
    parts = [picked(_corners(g, boxes), 4), g.op("ReduceMax", best, axes=[2]), label]
    return g.model({"output0": (g.op("Concat", *parts, axis=2), [1, 20, 6])}, **{"names": str(list(NAMES)), **form})


def boxes_scores(**form: Any) -> ModelProto:
    g = Graph()
    boxes, scores = _decoded(g, False)
    return g.model({"boxes": (_corners(g, boxes), [1, COUNT, 4]),
                    "scores": (g.op("Transpose", scores, perm=[0, 2, 1]), [1, CLASSES, COUNT])}, **form)  # fmt: skip


def shares(no_object: str = "first", **form: Any) -> ModelProto:
    """Scores behind a softmax with a class of no object, as SSD has them."""
    g = Graph()
    boxes, scores = _decoded(g, False)
    none = g.constant(np.full((1, COUNT, 1), 0.6))
    parts = (none, scores) if no_object == "first" else (scores, none)
    probabilities = g.op("Softmax", g.op("Mul", g.op("Concat", *parts, axis=2), g.constant(12)), axis=2)
    return g.model({"boxes": (_corners(g, boxes), [1, COUNT, 4]),
                    "scores": (probabilities, [1, COUNT, CLASSES + 1])}, **form)  # fmt: skip


def detr(**form: Any) -> ModelProto:
    """Tokens, self-attention with two heads, and queries that attend to them."""
    g = Graph()
    (x, channels), _ = g.features("input")
    tokens = g.rows([x], channels)

    def product(a: str, shape: tuple[int, ...]) -> str:
        return str(g.op("MatMul", a, g.constant(g.rng.normal(0, shape[0] ** -0.5, shape))))

    def heads(a: str, count: int) -> str:
        return str(g.op("Transpose", g.op("Reshape", a, g.ints(1, count, 2, 8)), perm=[0, 2, 1, 3]))

    def attention(q: str, kv: str, count: int) -> str:
        k, v = g.op("Split", product(kv, (16, 32)), g.ints(16, 16), axis=2, outputs=2)
        logits = g.op("MatMul", heads(product(q, (16, 16)), count), g.op("Transpose", heads(k, 64), perm=[0, 1, 3, 2]))
        weights = g.op("Softmax", g.op("Mul", logits, g.constant(8**-0.5)), axis=-1)
        y = g.op("Transpose", g.op("MatMul", weights, heads(v, 64)), perm=[0, 2, 1, 3])
        return str(g.op("Reshape", y, g.ints(1, count, 16)))

    scale, shift = g.constant(np.ones(16)), g.constant(np.zeros(16))
    tokens = g.op("LayerNormalization", g.op("Add", tokens, attention(tokens, tokens, 64)), scale, shift, axis=-1)
    queries = attention(g.constant(g.rng.normal(0, 1, (1, 10, 16))), tokens, 10)
    boxes = g.op("Sigmoid", product(queries, (16, 4)))
    return g.model({"pred_logits": (product(queries, (16, CLASSES)), [1, 10, CLASSES]),
                    "pred_boxes": (boxes, [1, 10, 4])}, **{"names": str(list(NAMES)), **form})  # fmt: skip


def fastestdet(**form: Any) -> ModelProto:
    g = Graph()
    x, channels = g.features("input")[0]
    objectness = g.op("Sigmoid", g.conv(x, channels, 1, kernel=1))
    classes = g.op("Softmax", g.conv(x, channels, CLASSES, kernel=1), axis=1)
    joined = g.op("Concat", objectness, g.conv(x, channels, 4, kernel=1), classes, axis=1)
    side = SIZE // STRIDES[0]
    return g.model({"output": (joined, [1, 5 + CLASSES, side, side])}, **form)


def nanodet(**form: Any) -> ModelProto:
    g = Graph(opset=11)
    maps = []
    for x, channels in g.features("input"):
        scores = g.op("Sigmoid", g.conv(x, channels, CLASSES, kernel=1))
        maps.append(g.op("Concat", scores, g.conv(x, channels, 32, kernel=1), axis=1))
    return g.model({"output": (g.rows(maps, CLASSES + 32), [1, COUNT, CLASSES + 32])}, **form)


def labelled(counted: bool = True, **form: Any) -> ModelProto:
    """The best boxes, their scores and classes, and how many they are, as lists."""
    g = Graph()
    boxes, scores = _decoded(g, False)
    best = g.op("ReduceMax", scores, axes=[2], keepdims=0)
    score, place = g.op("TopK", best, g.ints(20), outputs=2, axis=1)
    index = g.op("Expand", g.op("Unsqueeze", place, g.ints(2)), g.ints(1, 20, 4))
    picked = g.op("GatherElements", _corners(g, boxes), index, axis=1)
    label = g.op("Cast", g.op("GatherElements", g.op("ArgMax", scores, axis=2, keepdims=0), place, axis=1),
                 to=TensorProto.FLOAT)  # fmt: skip
    shown = g.op("Cast", g.op("Greater", score, g.constant(0.53)), to=TensorProto.FLOAT)
    lists = {"det_boxes": (picked, [1, 20, 4]), "det_scores": (score, [1, 20]), "det_classes": (label, [1, 20])}
    count = {"num_dets": (g.op("ReduceSum", shown, g.ints(1), keepdims=1), [1, 1])} if counted else {}
    return g.model({**count, **lists}, **{"names": str(list(NAMES)), **form})


def anchored(columns_last: bool = True, names: Sequence[str] = (), **form: Any) -> ModelProto:
    """Raw maps of three anchors a cell, of YOLOv5 or v7: they say nothing of anchors."""
    g = Graph()
    outputs, width = {}, 5 + CLASSES
    for number, ((x, channels), stride) in enumerate(zip(g.features("input"), STRIDES, strict=True)):
        raw, side = g.conv(x, channels, 3 * width, kernel=1), SIZE // stride
        if columns_last:
            apart = g.op("Reshape", raw, g.ints(1, 3, width, side, side))
            raw = g.op("Transpose", apart, perm=[0, 1, 3, 4, 2])
        dims = [1, 3, side, side, width] if columns_last else [1, 3 * width, side, side]
        outputs[f"map{number}"] = (raw, dims)
    return g.model(outputs, **({"names": str(list(names))} if names else {}), **form)


def distributions(bins: int = 16, **form: Any) -> ModelProto:
    """YOLOv8 as it is exported: distances as means over bins, by a convolution with the weights 0, 1, 2, …"""
    g = Graph()
    maps = []
    for x, channels in g.features("input"):
        classes = g.op("Sigmoid", g.conv(x, channels, CLASSES, kernel=1))
        maps.append(g.op("Concat", g.conv(x, channels, 4 * bins, kernel=1), classes, axis=1))
    width = 4 * bins + CLASSES
    flat = [g.op("Reshape", part, g.ints(1, width, -1)) for part in maps]
    raw, scores = g.op("Split", g.op("Concat", *flat, axis=2), g.ints(4 * bins, CLASSES), axis=1, outputs=2)
    shares = g.op("Softmax", g.op("Transpose", g.op("Reshape", raw, g.ints(1, 4, bins, -1)), perm=[0, 2, 1, 3]), axis=1)
    numbers = g.constant(np.arange(bins).reshape(1, -1, 1, 1))
    away = g.op("Reshape", g.op("Conv", shares, numbers, kernel_shape=[1, 1]), g.ints(1, 4, -1))
    near, far = g.op("Split", away, g.ints(2, 2), axis=1, outputs=2)
    centres, strides = (g.constant(part.T[None]) for part in cells())
    first, second = g.op("Sub", centres, near), g.op("Add", centres, far)
    middle = g.op("Mul", g.op("Add", first, second), g.constant(0.5))
    boxes = g.op("Mul", g.op("Concat", middle, g.op("Sub", second, first), axis=1), strides)
    joined = g.op("Concat", boxes, scores, axis=1)
    return g.model({"output0": (joined, [1, 4 + CLASSES, COUNT])}, **{"names": str(list(NAMES)), **form})


DETECTORS = {
    "yolox-raw": yolox_raw, "yolov5": yolov5, "yolov8": yolov8, "end2end": end2end, "boxes-scores": boxes_scores,
    "detr": detr, "fastestdet": fastestdet, "nanodet": nanodet, "labelled": labelled,
}  # fmt: skip
