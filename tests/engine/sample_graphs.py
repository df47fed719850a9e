"""Small detectors as ONNX graphs, with and without Q/DQ, in the form that the exporter writes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS = ("stem.conv", "body.0.conv", "body.1.conv", "neck.up", "neck.lateral.conv", "neck.dw", "head.pred")
"""Every convolution of the sample graph, in graph order."""


@dataclass
class _Writer:
    """Collects nodes and initializers. ``int8`` names the layers whose input and weight get a Q/DQ pair."""

    int8: frozenset[str]
    asymmetric: bool
    scales: dict[str, tuple[float, int]]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    quantized: dict[str, str] = field(default_factory=dict)

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, name: str, inputs: list[str], **attributes: object) -> str:
        output = f"{name}_output"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def _activation(self, tensor: str) -> str:
        if tensor not in self.quantized:
            scale, zero_point = self.scales.get(tensor, (1 / 127, 0))
            pair = [
                self.constant(f"{tensor}_scale", np.float32(scale).reshape(())),
                self.constant(f"{tensor}_zero_point", np.array(zero_point, np.uint8 if self.asymmetric else np.int8)),
            ]
            q = self.node("QuantizeLinear", f"{tensor}_quantize", [tensor, *pair])
            self.quantized[tensor] = self.node("DequantizeLinear", f"{tensor}_dequantize", [q, *pair])
        return self.quantized[tensor]

    def conv(self, layer: str, tensor: str, cin: int, cout: int, kernel: int, *, relu: bool = True, **more: int) -> str:
        transposed = more.pop("transposed", 0)
        stride, group = more.get("stride", 1), more.get("group", 1)
        shape = (cin, cout, kernel, kernel) if transposed else (cout, cin // group, kernel, kernel)
        weight = self.rng.normal(0, (2 / (cin // group * kernel**2)) ** 0.5, shape).astype(np.float32)
        bias = self.constant(f"{layer}.bias", self.rng.normal(0, 0.1, cout).astype(np.float32))
        if layer in self.int8:
            axis = 1 if transposed else 0
            # 7 bits: x86 kernels without dot products add pairs of products in 16 bits, where 8 bits would saturate
            scale = (np.abs(weight).max(axis=tuple(a for a in range(4) if a != axis)) / 63).astype(np.float32)
            divisor = scale.reshape([-1 if a == axis else 1 for a in range(4)])
            integers = np.clip(np.rint(weight / divisor), -128, 127).astype(np.int8)
            parts = [
                self.constant(f"{layer}.weight", integers),
                self.constant(f"{layer}.weight_scale", scale),
                self.constant(f"{layer}.weight_zero_point", np.zeros(cout, np.int8)),
            ]
            kernel_tensor = self.node("DequantizeLinear", f"{layer}.weight_dequantize", parts, axis=axis)
            tensor = self._activation(tensor)
        else:
            kernel_tensor = self.constant(f"{layer}.weight", weight)
        pad = 0 if transposed else kernel // 2
        output = self.node(
            "ConvTranspose" if transposed else "Conv",
            layer,
            [tensor, kernel_tensor, bias],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=group,
        )
        return self.node("Relu", f"{layer}_relu", [output]) if relu else output


def detector(
    int8: tuple[str, ...] = (),
    *,
    batch: int | None = 1,
    size: int = 32,
    asymmetric: bool = False,
    scales: dict[str, tuple[float, int]] | None = None,
    width: int = 16,
) -> onnx.ModelProto:
    """Stem, two body convs, SPPF-like pooling, upsampling by ConvTranspose, concat, depthwise, head with sigmoid."""
    w = _Writer(frozenset(int8), asymmetric, scales or {})
    x = w.conv("stem.conv", "images", 3, width, 3, stride=2)
    fine = w.conv("body.0.conv", x, width, width, 3)
    coarse = w.conv("body.1.conv", fine, width, width, 3, stride=2)
    pooled = w.node("MaxPool", "pool", [coarse], kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    both = w.node("Concat", "join", [coarse, pooled], axis=1)
    up = w.conv("neck.up", both, 2 * width, width, 2, relu=False, stride=2, transposed=1)
    joined = w.node("Concat", "join2", [up, fine], axis=1)
    lateral = w.conv("neck.lateral.conv", joined, 2 * width, width, 1)
    depthwise = w.conv("neck.dw", lateral, width, width, 3, group=width)
    scores = w.conv("head.pred", depthwise, width, 8, 1, relu=False)
    flat = w.node("Reshape", "flatten", [scores, w.constant("flat", np.array([0, 8, -1], np.int64))])
    probable = w.node("Sigmoid", "sigmoid", [flat])
    w.nodes.append(helper.make_node("Transpose", [probable], ["detections"], name="transpose", perm=[0, 2, 1]))
    axis: int | str = batch if batch is not None else "batch"
    graph = helper.make_graph(
        w.nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [axis, 3, size, size])],
        [helper.make_tensor_value_info("detections", TensorProto.FLOAT, [axis, (size // 2) ** 2, 8])],
        w.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    helper.set_model_props(model, {"names": '["a", "b", "c"]'})
    onnx.checker.check_model(model, full_check=True)
    return model


def calibrated_scales(model: onnx.ModelProto, images: np.ndarray, *, asymmetric: bool) -> dict[str, tuple[float, int]]:
    """Scale and zero point of every tensor of a float graph from its range on ``images``."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    tensors = sorted({output for node in model.graph.node for output in node.output} - {"detections"})
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(tensors, session.run(tensors, {"images": images}), strict=True)) | {"images": images}
    if not asymmetric:
        return {name: (float(np.abs(value).max()) / 127, 0) for name, value in values.items()}
    table = {}
    for name, value in values.items():
        low, high = min(0.0, float(value.min())), max(0.0, float(value.max()))
        scale = (high - low) / 255
        table[name] = (scale, round(-low / scale))
    return table
