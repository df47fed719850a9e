"""The layers of a graph: nodes with weights of their own, as torch modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from onnx import NodeProto
from torch import Tensor, nn

from repq.layers import PRODUCTS
from repq.model.onnx_graph.operators.products import transposed_pads
from repq.model.onnx_graph.operators.windows import padded, window_pads
from repq.model.weighted import Matrix
from repq.onnx_file import attributes_of

Pair = tuple[int, int]
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerForm:
    """A convolution of two dimensions, without its numbers. It always has a bias."""

    transposed: bool
    channels: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    output_padding: Pair = (0, 0)

    def build(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """The module, with fresh weights."""
        if self.transposed:
            return nn.ConvTranspose2d(
                *self.channels, self.kernel, self.stride, self.padding, self.output_padding, self.groups,
                dilation=self.dilation,
            )  # fmt: skip
        return nn.Conv2d(*self.channels, self.kernel, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True)
class MatrixForm:
    """A product with a stored matrix, without its numbers; see `repq.model.weighted.Matrix`."""

    channels: Pair
    transposed: bool
    bias: bool

    def build(self) -> Matrix:
        """The module, with fresh weights."""
        return Matrix(*self.channels, transposed=self.transposed, bias=self.bias)


Form = LayerForm | MatrixForm
Call = Form | Run


def layer_calls(node: NodeProto, weight: tuple[int, ...], x: tuple[int, ...], *, bias: bool = True) -> list[Call]:
    """The layer of a node, with what its module cannot do before and after it.

    Args:
        node: a Conv or ConvTranspose of two dimensions, a Gemm or a MatMul.
        weight: its shape.
        x: shape of the input.
        bias: whether a MatMul has one.
    """
    if node.op_type in PRODUCTS:
        return _product(node, weight, x, bias or node.op_type == "Gemm")
    values = attributes_of(node)
    kernel = _pair(weight[2:])
    stride, dilation = (_pair(values.get(name, (1, 1))) for name in ("strides", "dilations"))
    groups, auto_pad = int(values.get("group", 1)), values.get("auto_pad", "NOTSET")
    pads = values.get("pads", ())
    if node.op_type == "Conv":
        edges = window_pads(x[2:], kernel, stride, dilation, pads, auto_pad)
        even = all(before == after for before, after in edges)
        inside = _pair([before for before, _ in edges]) if even else (0, 0)
        form = LayerForm(False, (weight[1] * groups, weight[0]), kernel, stride, inside, dilation, groups)
        return [form] if even else [partial(padded, pads=edges), form]
    return _transposed(values, weight, x, kernel, stride, dilation, groups, pads, auto_pad)


def _product(node: NodeProto, weight: tuple[int, ...], x: tuple[int, ...], bias: bool) -> list[Call]:
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    inputs, outputs = weight[::-1] if transposed else weight
    form = MatrixForm((inputs, outputs), transposed, bias)
    if len(x) > 1:
        return [form]
    return [partial(torch.reshape, shape=(-1, inputs)), form, torch.flatten]  # one row for each image


def _transposed(
    values: Mapping[str, Sequence[int]], weight: tuple[int, ...], x: tuple[int, ...], kernel: Pair, stride: Pair,
    dilation: Pair, groups: int, pads: Sequence[int], auto_pad: str,
) -> list[Call]:  # fmt: skip
    extra = _pair(values.get("output_padding", (0, 0)))
    begins, ends = transposed_pads(
        x[2:], kernel, stride, dilation, pads, extra, values.get("output_shape", ()), auto_pad
    )
    channels = (weight[0], weight[1] * groups)
    if begins == ends:
        return [LayerForm(True, channels, kernel, stride, _pair(begins), dilation, groups, extra)]
    return [
        LayerForm(True, channels, kernel, stride, (0, 0), dilation, groups, extra),
        partial(_cut, begins=begins, ends=ends),
    ]


def _cut(x: Tensor, *, begins: Sequence[int], ends: Sequence[int]) -> Tensor:
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True), 2):
        x = x.narrow(axis, begin, x.shape[axis] - begin - end)
    return x


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return int(first), int(second)
