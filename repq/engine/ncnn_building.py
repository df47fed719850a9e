"""From ONNX to NCNN: floats by the converter pnnx, integers and their scales by repq.

pnnx converts the graph without Q/DQ, its weights being the dequantized ones. What it wrote runs once, and each output
must be ONNX Runtime's to 1e-3 of its range. A layer of NCNN is a layer of repq if both have the same weights, bit by
bit; the join is a bijection. Then a layer whose input and weight have scales becomes an INT8 layer of NCNN where that
has a kernel for it: Convolution, and ConvolutionDepthWise of one channel per group. All others compute in float, from
values that are not rounded to integers first.

On x86 the depthwise kernel divides with a relative error of up to 4e-4, far below an integer's step.

NCNN's integers are ``clip(round_half_away(x / s), -127, 127)``: symmetric, and equal to repq's but for -128 and halves.
The result of an INT8 layer is INT8 too where all that read it are INT8 layers of one input scale.

An FP16 graph gives FP16 weights. Processors without FP16 arithmetic, all of x86, compute in FP32 with them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from repq.engine.base import TensorInfo
from repq.engine.conversion import demand_equal, random_images, reference
from repq.engine.ncnn_files import CONVOLUTIONS, Layer, has_float16, in_float16, read, write
from repq.engine.ncnn_network import BIN, PARAM
from repq.errors import EngineError
from repq.files import scratch_folder
from repq.printable import first_names

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

    from repq.engine.source import Source

INSTALL = "pip install 'repq[ncnn]'"
_MINUTES = 10
_TRIAL = Path(__file__).with_name("ncnn_network.py")


@dataclass(frozen=True, eq=False)
class _Integers:
    """What an INT8 layer is made of: the weight in ONNX's shape, its scales by output channel, and the input's."""

    weight: NDArray[np.int8]
    scales: NDArray[np.float32]
    input: float


def convert(source: Source) -> tuple[Layer, ...]:
    """The network of an ONNX file; layers that are convolutions have the names that ``written_name`` gives.

    Raises:
        EngineError: pnnx is missing or fails, what it wrote computes something else, or NCNN cannot express the graph.
    """
    from repq.graph.surgeon import export_graph, import_graph

    _demand_shape(source.input)
    graph = import_graph(source.model)
    _demand_expressible(graph)
    integers = _integers(graph)
    half = without_integers(graph)
    for number, tensor in enumerate(graph.tensors().values()):  # pnnx writes names as they are, whose words are fields
        tensor.name = f"v{number}"
    kernels = {node.name: _in_ncnn_order(node) for node in graph.nodes if node.name in source.layers}
    plain = export_graph(graph)
    images = random_images(source)
    with scratch_folder() as scratch:
        converted = _by_pnnx(plain, images.shape, scratch)
        finished = _requantized(_in_int8(_named(converted, kernels), integers))
        finished = in_float16(finished) if half else finished
        found, _ = _run_apart((converted, finished), images, scratch)
    demand_equal(reference(plain, images), found, "pnnx")
    return finished


def written_name(layer: str) -> str:
    """A layer's id as a word of ``.param``."""
    return "_".join(layer.split())


def _demand_shape(wanted: TensorInfo) -> None:
    shape, floats = wanted.shape, wanted.dtype in ("float32", "float16")
    if not floats and "float" in wanted.dtype:
        raise EngineError("NCNN takes images in FP32 or FP16", found=wanted.dtype, fix="export it in FP32")
    if not floats or len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        free = floats and shape[1:2] == (3,)
        fix = (
            "export it for one size"
            if free
            else "export without preprocessing inside the graph (letterbox, uint8 input)"
        )
        raise EngineError("NCNN takes float images (B, C, H, W) of one size", found=f"{wanted.dtype} {shape}", fix=fix)
    if isinstance(shape[0], int) and shape[0] != 1:
        raise EngineError(
            "NCNN runs one image at a time", found=f"a graph for batches of {shape[0]}",
            fix="give --batch 1, or an ONNX file exported with --batch dynamic, whose images NCNN takes one by one",
        )  # fmt: skip


def _demand_expressible(graph: gs.Graph) -> None:
    """Refuse numbers between Q and DQ that NCNN has no form for: dropping their Q and DQ would change what comes out.

    Raises:
        EngineError: there are some.
    """
    from onnx import TensorProto

    from repq.graph.integers import (
        activation_quantizers,
        has_scales_elsewhere,
        is_int8_layer,
        is_integer_operator,
        parameters_of,
        quantized_type,
        quantizers,
    )
    from repq.graph.surgeon import title

    taken = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.UNDEFINED}
    types = ((node, quantized_type(node)) for node in quantizers(graph))
    found = {
        "NCNN has symmetric INT8 only": [
            f"{title(node)} quantizes to {TensorProto.DataType.Name(kind)}" for node, kind in types if kind not in taken
        ],
        "NCNN has no integer operators of ONNX": sorted({n.op for n in graph.nodes if is_integer_operator(n)}),
        "NCNN has no integers without DequantizeLinear behind them": [
            title(node) for node in graph.nodes if node.op == "QuantizeLinear" and not _is_dequantized(node)
        ],
        "NCNN has one scale for an activation": [
            f"{title(node)} has several, or computes it"
            for node in activation_quantizers(graph) if parameters_of(node) is None
        ],
        "NCNN has scales for output channels of weights alone": [
            f"{node.name} has others" for node in graph.nodes
            if node.op in ("Conv", "ConvTranspose") and is_int8_layer(node) and has_scales_elsewhere(node)
        ],
    }  # fmt: skip
    for what, names in found.items():
        if names:
            raise EngineError(what, found=first_names(names, 1), fix="quantize the float model with --target ncnn")


def _integers(graph: gs.Graph) -> dict[str, _Integers]:
    """Integers and scales of every layer whose input and weight have some, by node name."""
    from repq.graph.integers import arriving_parameters, is_int8_layer
    from repq.graph.surgeon import array, producer

    found = {}
    for node in graph.nodes:
        if node.op not in ("Conv", "ConvTranspose") or not is_int8_layer(node):
            continue
        dequantize, parameters = producer(node.inputs[1]), arriving_parameters(node.inputs[0])
        weight, scale, zero = (array(dequantize, slot) for slot in range(3))
        if parameters is None or weight is None or scale is None:
            continue
        if (parameters.dtype, parameters.zero_point, weight.dtype) != ("int8", 0, np.int8) or np.any(zero):
            raise EngineError(
                "NCNN has symmetric INT8 only",
                found=f"{node.name} reads {parameters.dtype} with zero point {parameters.zero_point}",
                fix="quantize with --target ncnn, or --scheme symmetric",
            )
        outputs = weight.shape[0] if node.op == "Conv" else weight.shape[1]
        found[node.name] = _Integers(weight, np.resize(scale.astype(np.float32), outputs), parameters.scale)
    return found


def _is_dequantized(node: gs.Node) -> bool:
    """Whether all that read the results of a node dequantize them, directly or behind operators that copy values."""
    from repq.graph.integers import copies_values

    readers = [reader for tensor in node.outputs for reader in tensor.outputs]
    return bool(readers) and all(
        reader.op == "DequantizeLinear" or (copies_values(reader) and _is_dequantized(reader)) for reader in readers
    )


def without_integers(graph: gs.Graph) -> bool:
    """Make a graph FP32 without Q/DQ, for one image, in place; return whether it was FP16.

    Weights become what their integers stand for.
    """
    import onnx
    import onnx_graphsurgeon as gs

    from repq.graph.integers import dequantized_constant, quantizers
    from repq.graph.surgeon import is_constant

    half = False
    for node in quantizers(graph):
        value = node.inputs[0]
        if is_constant(value) and value.dtype.kind in "iu":
            value = gs.Constant(f"{value.name}_float", dequantized_constant(node).astype(np.float32))
        node.op, node.inputs, node.attrs = "Identity", [value], {}
        for reader in list(node.outputs[0].outputs):  # an Identity is left where the graph ends
            reader.inputs = [value if tensor is node.outputs[0] else tensor for tensor in reader.inputs]
    for tensor in graph.tensors().values():
        if is_constant(tensor) and tensor.dtype == np.float16:
            tensor.values, half = tensor.values.astype(np.float32), True
        elif not is_constant(tensor) and not any(tensor is end for end in (*graph.inputs, *graph.outputs)):
            tensor.dtype = tensor.shape = None
    for node in graph.nodes:
        if node.op == "Cast" and node.attrs["to"] == onnx.TensorProto.FLOAT16:
            node.attrs["to"] = onnx.TensorProto.FLOAT
    for tensor in (*graph.inputs, *graph.outputs):
        tensor.dtype = np.dtype(np.float32)
        if tensor.shape:
            tensor.shape = [1, *tensor.shape[1:]]
    return half


def _by_pnnx(model: onnx.ModelProto, shape: Sequence[int], folder: Path) -> tuple[Layer, ...]:
    import onnx

    onnx.save(model, folder / "model.onnx")
    size = ",".join(map(str, shape))
    try:
        ran = subprocess.run(
            [pnnx_program(), "model.onnx", f"inputshape=[{size}]", "fp16=0"],
            cwd=folder, capture_output=True, text=True, errors="replace", timeout=_MINUTES * 60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError("pnnx cannot convert the graph", found=str(error)) from None
    if ran.returncode or not (folder / BIN).is_file():
        lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
        found = f"exit code {ran.returncode}: {lines[-1] if lines else 'no output'}"
        foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
        fix = "export it with ONNX's own operators" if foreign else "export it without suppression inside"
        raise EngineError("pnnx cannot convert the graph", found=found, fix=fix)
    return read((folder / PARAM).read_text(encoding="utf-8"), (folder / BIN).read_bytes())


def pnnx_program() -> Path:
    """The converter inside the wheel ``pnnx``, whose Python part is not imported.

    Raises:
        EngineError: it is not installed.
    """
    spec = importlib.util.find_spec("pnnx")
    if spec is None or spec.origin is None:
        raise EngineError("the converter pnnx is not installed here", fix=INSTALL)
    return Path(spec.origin).with_name("pnnx.exe" if os.name == "nt" else "pnnx")


def _run_apart(
    networks: Sequence[Sequence[Layer]], images: NDArray[np.float32], folder: Path
) -> list[list[NDArray[np.float32]]]:
    """Run networks once, in a process of their own: NCNN crashes on some files.

    Raises:
        EngineError: one cannot be loaded or run.
    """
    np.save(folder / "images.npy", images)
    places, words = [folder / str(index) for index in range(len(networks))], list[str]()
    for place, layers in zip(places, networks, strict=True):
        place.mkdir()
        put(layers, place)
        words += [str(place), "half" if has_float16(layers) else "whole"]
    ran = subprocess.run(
        [sys.executable, "-P", _TRIAL, *words], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if ran.returncode:
        said = ran.stderr.partition("Traceback")[0] or ran.stderr.rpartition("Error: ")[2] or "nothing"
        reason = f"exit code {ran.returncode}, it said {said.splitlines()[0]}"
        raise EngineError("NCNN cannot run what pnnx made of the graph", found=reason, fix="use another engine")
    found = []
    for place in places:
        with np.load(place / "outputs.npz") as outputs:
            found.append([outputs[name] for name in outputs.files])
    return found


def put(layers: Sequence[Layer], folder: Path) -> None:
    """Write both files into a folder."""
    param, data = write(layers)
    (folder / PARAM).write_text(param, encoding="utf-8")
    (folder / BIN).write_bytes(data)


def _named(layers: Sequence[Layer], kernels: Mapping[str, NDArray[np.float32]]) -> tuple[Layer, ...]:
    """Layers with the names of those of repq that have as many output channels and the same weights.

    Raises:
        EngineError: this is no bijection.
    """
    ids: dict[tuple[int, bytes], list[str]] = {}
    for name, kernel in kernels.items():
        ids.setdefault((kernel.shape[0], kernel.tobytes()), []).append(name)
    found = {
        layer.name: ids.get((layer.channels, layer.weights[0].tobytes()), [])
        for layer in layers
        if layer.kind in CONVOLUTIONS
    }
    unclear = [name for name, names in found.items() if len(names) != 1]
    missing = sorted(set(kernels).difference(*found.values()))
    if unclear or missing or len(found) != len(kernels):
        raise EngineError(
            "the layers of the graph and those that pnnx wrote cannot be joined by their weights",
            found=f"only in the graph: {', '.join(missing[:5]) or 'none'}; of no or several layers there: "
            f"{', '.join(unclear[:5]) or 'none'}",
            fix="each layer needs weights of its own, and no BatchNorm behind it: export a fused model",
        )
    return tuple(
        replace(layer, name=written_name(found[layer.name][0])) if layer.name in found else layer for layer in layers
    )


def _in_ncnn_order(node: gs.Node) -> NDArray[np.float32]:
    """The weight of a convolution as NCNN stores it: outputs before inputs, also of a transposed one."""
    from repq.graph.surgeon import array, title

    weight = array(node, 1)
    if weight is None:
        raise EngineError(
            "NCNN takes convolutions with stored weights alone",
            found=f"{title(node)} reads one that the graph computes",
            fix="use another engine",
        )
    if node.op == "ConvTranspose":
        inputs, outputs, *kernel = weight.shape
        groups = node.attrs.get("group", 1)
        weight = weight.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
        weight = weight.reshape(groups * outputs, inputs // groups, *kernel)
    return np.ascontiguousarray(weight, np.float32)


def _in_int8(layers: Sequence[Layer], integers: Mapping[str, _Integers]) -> list[Layer]:
    """The same network with INT8 layers where they have integers and NCNN a kernel."""
    by_name = {written_name(name): found for name, found in integers.items()}
    return [
        layer.quantized(found.weight, found.scales, found.input)
        if (found := by_name.get(layer.name)) is not None and _has_kernel(layer)
        else layer
        for layer in layers
    ]


def _has_kernel(layer: Layer) -> bool:
    return layer.kind == "Convolution" or (layer.kind == "ConvolutionDepthWise" and layer.one_to_one)


def _requantized(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The same network with INT8 results of layers that only INT8 layers of one input scale read."""
    readers = {blob: layer for layer in layers for blob in layer.inputs}

    def wanted(blob: str) -> set[float]:
        """Input scales of what reads a blob, 0 of what reads floats."""
        reader = readers.get(blob)
        if reader is not None and reader.kind == "Split":
            return set[float]().union(*map(wanted, reader.outputs))
        return {reader.input_scale if reader is not None and reader.int8 else 0.0}

    found = []
    for layer in layers:
        scales = wanted(layer.outputs[0]) if layer.int8 else {0.0}
        found.append(layer.requantizing(max(scales)) if len(scales) == 1 and min(scales) > 0 else layer)
    return tuple(found)
