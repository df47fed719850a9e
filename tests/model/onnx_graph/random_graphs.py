"""Detectors of random pieces, with names and constants as various exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from detectors import CLASSES, NAMES, SIZE, Graph
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

OPSETS = (13, 17, 18, 20, 21, 24)
SIDE = SIZE // 8
Piece = Callable[["RandomGraph", str, int], tuple[str, int]]
"""From a map (1, C, 8, 8) and its channels to another one of that size."""


class RandomGraph(Graph):
    def __init__(self, random: Random) -> None:
        super().__init__(random.choice(OPSETS), random.randrange(10**6))
        self.random = random

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A stored tensor, a Constant node, or a copy of either."""
        name = super().constant(values, dtype)
        kind = self.random.choice(["stored", "stored", "Constant", "Identity", "half"])
        if kind == "Constant":
            name = str(self.op("Constant", value=self.stored.pop()))
        elif kind == "half" and dtype is np.float32 and np.size(values):
            self.stored.append(
                numpy_helper.from_array(numpy_helper.to_array(self.stored.pop()).astype(np.float16), name)
            )
            name = str(self.op("Cast", name, to=TensorProto.FLOAT))
        return str(self.op("Identity", name)) if kind == "Identity" else name

    def numbers(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0, 0.5, shape))


def _conv(g: RandomGraph, x: str, channels: int) -> tuple[str, int]:
    kernel, dilation = g.random.choice([1, 2, 3, 5]), g.random.choice([1, 1, 2])
    groups = g.random.choice([n for n in (1, 2, 4, channels) if channels % n == 0])
    out, reach = groups * g.random.choice([2, 3]) if groups < channels else channels, (kernel - 1) * dilation
    before = g.random.randint(0, reach)  # uneven borders
    weight = g.constant(
        g.rng.normal(0, (channels // groups * kernel**2) ** -0.5, (out, channels // groups, kernel, kernel))
    )
    bias = [g.numbers(out)] if g.random.random() < 0.5 else []
    pads = [before, before, reach - before, reach - before]
    x = g.op("Conv", x, weight, *bias, group=groups, dilations=[dilation] * 2, pads=pads)
    behind = g.random.choice(["nothing", "norm", "shift"])
    if behind == "norm":
        variance = g.constant(g.rng.uniform(0.5, 1.5, out))
        x = g.op("BatchNormalization", x, g.numbers(out), g.numbers(out), g.numbers(out), variance, epsilon=1e-3)
    return str(g.op("Add", g.numbers(1, out, 1, 1), x) if behind == "shift" else x), out


def _transposed(g: RandomGraph, x: str, channels: int) -> tuple[str, int]:
    kernel, form = g.random.choice([(2, {}), (3, {"pads": [1, 0, 0, 1]}), (4, {"pads": [1] * 4}),
                                    (3, {"pads": [1] * 4, "output_padding": [1, 1]})])  # fmt: skip
    weight = g.constant(g.rng.normal(0, channels**-0.5, (channels, 6, kernel, kernel)))
    x = g.op("ConvTranspose", x, weight, strides=[2, 2], **form)
    return str(g.op(g.random.choice(["MaxPool", "AveragePool"]), x, kernel_shape=[2, 2], strides=[2, 2])), 6


def _activation(g: RandomGraph, x: str, channels: int) -> tuple[str, int]:
    choices: list[Callable[[], Any]] = [
        lambda: g.op("Relu", x), lambda: g.silu(x), lambda: g.op("LeakyRelu", x, alpha=0.1),
        lambda: g.op("Clip", x, g.constant(0.0), g.constant(6.0)), lambda: g.op("PRelu", x, g.numbers(channels, 1, 1)),
        lambda: g.op("Mul", x, g.op("HardSigmoid", x, alpha=1 / 6)), lambda: g.op("Elu", x),
        lambda: g.op("Mul", x, g.op("Tanh", g.op("Softplus", x))),
    ]  # fmt: skip
    choices += [lambda: g.op("HardSwish", x)] if g.opset >= 14 else []
    choices += [lambda: g.op("Gelu", x)] if g.opset >= 20 else []
    return str(g.random.choice(choices)()), channels


def _residual(g: RandomGraph, x: str, channels: int) -> tuple[str, int]:
    weight = g.constant(g.rng.normal(0, (9 * channels) ** -0.5, (channels, channels, 3, 3)))
    once = g.op("Conv", x, weight, pads=[1] * 4)
    twice = g.op("Conv", g.op("Relu", once), weight, pads=[1] * 4)  # one weight for both
    return str(g.op("Add", *g.random.sample([x, twice], 2))), channels


def _branches(g: RandomGraph, x: str, channels: int) -> tuple[str, int]:
    left = channels // 2
    first, second = g.op("Split", x, g.ints(left, channels - left), axis=1, outputs=2)
    mixed, width = _conv(g, second, channels - left)
    joined, width = str(g.op("Concat", first, mixed, axis=1)), left + width
    if width % 2:
        return joined, width
    parts = g.op("Reshape", joined, g.ints(0, 2, width // 2, SIDE, SIDE))
    return str(g.op("Reshape", g.op("Transpose", parts, perm=[0, 2, 1, 3, 4]), g.op("Shape", joined))), width


def _attention(g: RandomGraph, x: str, channels: int) -> tuple[str, int]:
    squeezed = g.op("GlobalAveragePool", x)
    inner = g.op("Relu", g.op("Conv", squeezed, g.numbers(4, channels, 1, 1), g.numbers(4)))
    return str(g.op("Mul", x, g.op("Sigmoid", g.op("Conv", inner, g.numbers(channels, 4, 1, 1))))), channels


def _tokens(g: RandomGraph, x: str, channels: int) -> tuple[str, int]:
    rows = g.op("Transpose", x, perm=[0, 2, 3, 1])
    if g.opset >= 17:
        rows = g.op("LayerNormalization", rows, g.numbers(channels), g.numbers(channels), axis=-1)
    rows = g.op("MatMul", rows, g.numbers(channels, 8))
    rows = g.op("Add", rows, g.numbers(8)) if g.random.random() < 0.5 else rows
    return str(g.op("Transpose", rows, perm=[0, 3, 1, 2])), 8


def _groups(g: RandomGraph, x: str, channels: int) -> tuple[str, int]:
    if g.opset >= 21:
        return str(g.op("GroupNormalization", x, g.numbers(channels), g.numbers(channels), num_groups=1)), channels
    flat = g.op("InstanceNormalization", g.op("Reshape", x, g.ints(0, 1, -1)), g.numbers(1), g.numbers(1))
    return str(g.op("Reshape", flat, g.op("Shape", x))), channels


def _sizes(g: RandomGraph, x: str, channels: int) -> tuple[str, int]:
    mode = g.random.choice([{"mode": "linear"}, {"mode": "nearest", "nearest_mode": "floor",
                                                "coordinate_transformation_mode": "asymmetric"}])  # fmt: skip
    big = g.op("Resize", x, "", g.constant([1, 1, 2, 2]), **mode)
    return str(g.op("MaxPool", big, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0])), channels


PIECES: tuple[Piece, ...] = (
    _conv, _conv, _transposed, _activation, _activation, _residual, _branches, _attention, _tokens, _groups, _sizes,
)  # fmt: skip


def random_detector(seed: int) -> ModelProto:
    """With layout ``yolov8``: (1, 4 + classes, 64)."""
    g = RandomGraph(Random(seed))
    x, channels = str(g.op("Relu", g.conv("input", 3, 8, stride=8))), 8
    for piece in g.random.choices(PIECES, k=g.random.randint(2, 5)):
        x, channels = piece(g, x, channels)
    head = g.op("Concat", g.conv(x, channels, 4, 1), g.op("Sigmoid", g.conv(x, channels, CLASSES, 1)), axis=1)
    output = g.op("Reshape", head, g.ints(1, 4 + CLASSES, -1))
    model = g.model({"output": (output, [1, 4 + CLASSES, SIDE**2])}, names=str(list(NAMES)))
    model.ir_version = 13 if g.opset > 23 else 10
    _rename(g.random, list(model.graph.node))
    return model


def _rename(random: Random, nodes: list[NodeProto]) -> None:
    form = random.choice(["as they are", "none", "numbers", "kinds", "words"])
    for number, node in enumerate(nodes):
        node.name = {"as they are": node.name, "none": "", "numbers": str(number), "kinds": node.op_type,
                     "words": f"my node.{number // 3}/ {node.op_type}"}[form]  # fmt: skip
