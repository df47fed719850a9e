"""LiteRT (TFLite) in INT8 with repq's scales: AP beside the simulation, what runs in INT8, latency, size.

litert-torch makes a float network of the graph without Q/DQ, ai-edge-quantizer quantizes it within the ranges that
repq's scales have, and the simulation is ONNX Runtime on the Q/DQ graph, without optimizations. docs/engines.md says
what differs. The float network has the weights that the integers stand for.

It needs an environment of its own: litert-torch 0.10.0 asks for an older typing_extensions than repq's tested set has.

    python -m venv litert
    litert/bin/pip install -e . torch==2.13.0 litert-torch==0.10.0 ai-edge-quantizer==0.10.0 ai-edge-litert==2.3.0
    litert/bin/python benchmarks/litert.py int8.onnx --data data.yaml --conf 0.03
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import litert_torch
import numpy as np
import onnx
import onnxruntime
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import qtyping, quantizer
from numpy.typing import NDArray

from repq.data import load_dataset
from repq.engine.conversion import demand_equal, random_images, reference
from repq.engine.ncnn_building import without_integers
from repq.engine.source import Source, read_source
from repq.evaluate import evaluate
from repq.graph import parse_metadata
from repq.graph.integers import arriving_parameters, is_int8_layer
from repq.graph.surgeon import array, export_graph, import_graph, producer
from repq.machine.environment import capture_environment
from repq.model.onnx_graph.opening import load_graph
from repq.recipe import EvalConfig

Range = tuple[float, float]
Run = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]

INPUT = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 0, "TRANSPOSE_CONV": 2}
"""Where an operator has its input; its weight is the input 1."""
COPYING = ("CONCATENATION", "MAX_POOL_2D", "PAD", "RESIZE_NEAREST_NEIGHBOR")
"""Operators whose result has the scale of what they read."""
QUANTIZER_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
CODES = {code: name for name, code in vars(flatbuffer_utils.BuiltinOperator).items() if isinstance(code, int)}
TYPES = {code: name for name, code in vars(flatbuffer_utils.TensorType).items() if isinstance(code, int)}
LOGISTIC_RANGE = (0.0, 255 / 256)  # TFLite's kernels know this one alone


@dataclass(frozen=True, eq=False)
class Scales:
    """Of an INT8 layer: the range of its input, and the scale of each output channel of its weight."""

    input: Range
    weight: NDArray[np.float64]


class Network:
    """A TFLite file with one graph."""

    def __init__(self, data: bytes) -> None:
        self._model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
        self.graph = self._model.subgraphs[0]
        self.operators = self.graph.operators
        self.producers = {tensor: op for op in self.operators for tensor in op.outputs}

    def kind(self, op: Any) -> str:
        return CODES[self._model.operatorCodes[op.opcodeIndex].builtinCode]

    def name(self, tensor: int) -> str:
        return str(self.graph.tensors[tensor].name.decode())

    def rank(self, tensor: int) -> int:
        return len(self.graph.tensors[tensor].shape)

    def type(self, tensor: int) -> str:
        return TYPES[self.graph.tensors[tensor].type]

    def values(self, tensor: int) -> NDArray[Any]:
        stored = self.graph.tensors[tensor]
        kind = {"FLOAT32": np.float32, "INT8": np.int8}[self.type(tensor)]
        return np.frombuffer(bytes(self._model.buffers[stored.buffer].data), kind).reshape(stored.shape)

    def layers(self, weights: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
        """The operator of each layer, by equal weights, bit by bit."""
        ids = {array.tobytes(): name for name, array in weights.items()}
        found = {}
        for op in self.operators:
            if self.kind(op) in INPUT:
                axes = (0, 3, 1, 2) if self.kind(op) == "CONV_2D" else (3, 0, 1, 2)
                found[ids[np.ascontiguousarray(self.values(op.inputs[1]).transpose(axes)).tobytes()]] = op
        if found.keys() != weights.keys():
            raise SystemExit(f"layers without an operator: {sorted(weights.keys() - found.keys())}")
        return found


def scales_of(source: Source) -> tuple[onnx.ModelProto, dict[str, NDArray[np.float32]], dict[str, Scales]]:
    """The graph without Q/DQ, the weights of all layers, and what Q/DQ said of those in INT8."""
    graph = import_graph(source.model)
    scales = {}
    for node in graph.nodes:
        if node.name in source.layers and is_int8_layer(node):
            parameters, dequantize = arriving_parameters(node.inputs[0]), producer(node.inputs[1])
            scales[node.name] = Scales(parameters.range, np.asarray(array(dequantize, 1), np.float64).ravel())
    without_integers(graph)
    weights = {node.name: node.inputs[1].values for node in graph.nodes if node.name in source.layers}
    return export_graph(graph), weights, scales


class Whole(torch.nn.Module):
    """A graph from its image to its outputs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.detector = load_graph(path).model.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.detector.outputs(self.detector.features(images)))


def float_network(model: onnx.ModelProto, source: Source, folder: Path) -> bytes:
    """The graph by litert-torch, whose outputs must be ONNX Runtime's to 1e-3 of their range."""
    plain, written = folder / "float.onnx", folder / "float.tflite"
    onnx.save(model, plain)
    images = random_images(source)
    litert_torch.convert(Whole(plain).eval(), (torch.from_numpy(images),)).export(str(written))
    data = written.read_bytes()
    demand_equal(reference(model, images), in_litert(data, 1)(images), "litert-torch")
    return data


def ranges_of(network: Network, layers: Mapping[str, Any], scales: Mapping[str, Scales]) -> dict[int, Range]:
    """The range of every tensor that is to be INT8.

    A kernel of TFLite has an INT8 result, so a tensor that no layer reads takes the range of what is made of it:
    through operators that copy values, and through SiLU from its result back to what it reads.
    """
    ranges = {op.inputs[INPUT[network.kind(op)]]: scales[name].input for name, op in layers.items() if name in scales}
    for tensor in list(ranges):  # padding in front of a layer is part of it
        if (op := network.producers.get(tensor)) is not None and network.kind(op) == "PAD":
            ranges[op.inputs[0]] = ranges[tensor]
    read_by_layers = set(ranges)
    for op in reversed(network.operators):
        result = ranges.get(op.outputs[0])
        if result is None:
            continue
        if network.kind(op) in COPYING:
            values = op.inputs if network.kind(op) == "CONCATENATION" else op.inputs[:1]
            for tensor in set(values) - read_by_layers:
                known = ranges.get(tensor, result)
                ranges[tensor] = min(result[0], known[0]), max(result[1], known[1])
        elif (gate := silu_gate(network, op)) is not None:
            ranges[gate.inputs[0]], ranges[gate.outputs[0]] = before_silu(result), LOGISTIC_RANGE
    return ranges


def silu_gate(network: Network, op: Any) -> Any:
    """The Logistic of an ``x * logistic(x)``; None: ``op`` is something else."""
    if network.kind(op) != "MUL":
        return None
    for tensor, other in (op.inputs, reversed(op.inputs)):
        gate = network.producers.get(tensor)
        if gate is not None and network.kind(gate) == "LOGISTIC" and gate.inputs[0] == other:
            return gate
    return None


def before_silu(result: Range) -> Range:
    """What SiLU has to read for a result within a range of 255 steps.

    Far below zero SiLU is nearly zero. What it makes into less than one step is left out: a wider range has coarser
    steps, which cost more.
    """
    low, high = result
    falling, rising = np.linspace(-20, -1.2785, 20001), np.linspace(-1.2785, max(high, 0) + 1, 20001)
    silu = [x / (1 + np.exp(-x)) for x in (falling, rising)]
    return float(np.interp((high - low) / 255, -silu[0], falling)), float(np.interp(high, silu[1], rising))


def quantized(data: bytes, network: Network, layers: Mapping[str, Any], scales: Mapping[str, Scales]) -> bytes:
    """The network by ai-edge-quantizer: INT8 wherever the range of an operator's result is known."""
    ranges = ranges_of(network, layers, scales)
    silent_layers = {id(op) for name, op in layers.items() if name not in scales}
    tool = quantizer.Quantizer(data)
    for op in network.operators:
        kind = network.kind(op)
        known = op.outputs[0] in ranges and id(op) not in silent_layers
        if known and (kind in INPUT or kind in COPYING or kind == "LOGISTIC" or silu_gate(network, op) is not None):
            granularity = qtyping.QuantGranularity["TENSORWISE" if kind == "TRANSPOSE_CONV" else "CHANNELWISE"]
            scope = f"^{re.escape(';'.join(map(network.name, op.outputs)))};?$"
            tool.add_static_config(scope, qtyping.TFLOperationName(QUANTIZER_NAMES.get(kind, kind)), 8, 8, granularity)
    given = {network.name(tensor): as_limits(*found, network.rank(tensor)) for tensor, found in ranges.items()}
    for name, found in scales.items():
        op = layers[name]
        shape = (1, 1, 1, -1) if network.kind(op) == "DEPTHWISE_CONV_2D" else (-1, 1, 1, 1)
        amax = 127 * found.weight.reshape(shape if found.weight.size > 1 else (1, 1, 1, 1))
        given[network.name(op.inputs[1])] = {"min": -amax, "max": amax}
    return bytes(tool.quantize(given, enable_progress_report=False).quantized_model)


def as_limits(low: float, high: float, rank: int) -> dict[str, NDArray[np.float64]]:
    return {"min": np.full((1,) * rank, low), "max": np.full((1,) * rank, high)}


def demand_scales(network: Network, scales: Mapping[str, Scales], weights: Mapping[str, NDArray[np.float32]]) -> int:
    """Demand repq's integers in every INT8 layer; return how many layers have them."""
    wanted = Counter()
    for name, found in scales.items():
        channels = found.weight.reshape(-1, *[1] * 3)
        wanted[np.rint(weights[name] / channels).astype(np.int8).tobytes()] += 1
    count = 0
    for op in network.operators:
        if network.kind(op) in INPUT and network.type(op.inputs[1]) == "INT8":
            axes = (0, 3, 1, 2) if network.kind(op) == "CONV_2D" else (3, 0, 1, 2)
            if not wanted[np.ascontiguousarray(network.values(op.inputs[1]).transpose(axes)).tobytes()]:
                raise SystemExit(f"{network.name(op.outputs[0])} has other integers than repq")
            count += 1
    return count


def in_litert(data: bytes, threads: int) -> Run:
    interpreter = Interpreter(model_content=data, num_threads=threads)
    interpreter.allocate_tensors()
    (taken,), given = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        interpreter.set_tensor(taken["index"], images)
        interpreter.invoke()
        return [interpreter.get_tensor(output["index"]) for output in given]

    return run


def in_simulation(model: onnx.ModelProto) -> Run:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    name = session.get_inputs()[0].name
    return lambda images: list(session.run(None, {name: images}))


def accuracy(run: Run, source: Source, data: Path, conf: float, count: int) -> float:
    """COCO AP on the val split, or on its first images."""
    metadata = parse_metadata(source.metadata)
    if metadata is None:
        raise SystemExit(f"{source.name} has no metadata of repq")
    dataset = load_dataset(data, "val")
    dataset = replace(dataset, records=dataset.records[: count or None])

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([metadata.layout.decode(run(image[None]), metadata.imgsz) for image in images])

    found = evaluate(
        predict, dataset, metadata.imgsz, EvalConfig(confidence=conf), layout=metadata.layout,
        preprocessing=metadata.preprocessing,
    )  # fmt: skip
    return float("nan") if found.ap is None else found.ap


def latencies(runs: Mapping[str, Run], images: NDArray[np.float32], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each run, in turns; the first of each is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            started = time.perf_counter()
            runs[name](images)
            times[name].append((time.perf_counter() - started) * 1e3)
    return {name: np.array(found[1:]) for name, found in times.items()}


@click.command(help=__doc__)
@click.argument("graph", type=Path)
@click.option("--data", type=Path, required=True)
@click.option("--conf", default=0.03, show_default=True, help="Score threshold.")
@click.option("--images", "count", default=0, show_default=True, help="The first images of val; 0: all.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=30, show_default=True, help="Timed runs of each network.")
@click.option("--out", type=Path, required=True, help="Folder for float.tflite and int8.tflite.")
def main(graph: Path, data: Path, conf: float, count: int, threads: int, rounds: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    source = read_source(graph)
    plain, weights, scales = scales_of(source)
    floats = float_network(plain, source, out)
    network = Network(floats)
    int8 = quantized(floats, network, network.layers(weights), scales)
    (out / "int8.tflite").write_bytes(int8)
    in_int8 = demand_scales(Network(int8), scales, weights)
    aps = [
        accuracy(run, source, data, conf, count)
        for run in (in_litert(floats, 1), in_simulation(source.model), in_litert(int8, 1))
    ]
    runs = {"float": in_litert(floats, threads), "int8": in_litert(int8, threads)}
    times = latencies(runs, random_images(source), rounds)
    machine = capture_environment()
    click.echo(f"{machine.cpu}, {', '.join(machine.cpu_features)}; load {machine.load_average}\n")
    click.echo(f"{graph.name}: AP of the simulation {aps[1]:.4f}; {len(scales)} of {len(weights)} layers have scales\n")
    click.echo("| network | layers in INT8 | AP | ms, least | median | MB |\n|---|---|---|---|---|---|")
    for name, layers, ap, content in (("float", 0, aps[0], floats), ("int8", in_int8, aps[2], int8)):
        ms = times[name]
        click.echo(
            f"| {name} | {layers} of {len(weights)} | {ap:.4f} | {ms.min():.1f} | {np.median(ms):.1f} | "
            f"{len(content) / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
