"""OpenVINO on the CPU.

Float layers run in FP32: on processors with AVX512-BF16 or AMX the plugin would otherwise take bfloat16 by itself, and
an FP32 baseline would not be one. INT8 layers come from the Q/DQ pairs of the graph.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repq.engine.availability import installed, int8_note, row, saturation_note
from repq.engine.base import (
    Engine,
    EngineManifest,
    Runtime,
    as_input,
    cannot_run,
    check_images,
    library_version,
    names_before,
)
from repq.engine.source import SUM
from repq.engine.storage import folder_size
from repq.errors import EngineError
from repq.files import scratch_folder
from repq.layers import LayerId
from repq.results import UNKNOWN, Availability, EngineDescription, LayerPrecision, NodeTime

if TYPE_CHECKING:
    from repq.engine.source import Source

INSTALL = "pip install 'repq[openvino]'"

_IR = "model.xml"
# What OpenVINO appends to a node's name when it takes its bias or its scales off, and what `source` did.
_ADDED = re.compile(rf"(/WithoutBiases|/Dequantization(Subtract|Multiply)|{SUM})$")
_PRECISIONS = {"i8": "int8", "u8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_FLOATS = frozenset({"float32", "float16", "bfloat16"})
_MOST_RUNS = 8
"""At once: each has activations of its own."""
_LAYER_TYPES = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


class OpenVino(Runtime):
    name, title, by_default, install = "openvino", "OpenVINO", True, INSTALL

    def version(self) -> str:
        return library_version("openvino", "OpenVINO", INSTALL)

    def build(self, source: Source, manifest: EngineManifest) -> OpenVinoEngine:
        """Compile what `repq.graph.lowering_openvino` makes of the model; a float model is laid out likewise."""
        from repq.graph.channels_last import channels_last
        from repq.graph.lowering_openvino import lower

        if kinds := sorted({node.op_type for node in source.model.graph.node if node.op_type.startswith("QLinear")}):
            raise EngineError(
                f"OpenVINO computes something else of ONNX Runtime's integer operators than {source.name} says",
                found=", ".join(kinds), fix="build it with --engine onnxruntime, or quantize it in Q/DQ form",
            )  # fmt: skip
        model = channels_last(lower(source.model))
        return OpenVinoEngine(manifest, _read(model.SerializeToString(), source.name))

    def load(self, folder: Path, manifest: EngineManifest) -> OpenVinoEngine:
        here = manifest.model_copy(update={"version": self.version()})
        return OpenVinoEngine(here, _read(str(folder / _IR), str(folder / _IR), fix="build it again"))

    def saturation(self) -> str | None:
        return saturation_note()

    def availability(self) -> list[Availability]:
        if not installed("openvino"):
            return [row("openvino", "cpu", False, "not installed", INSTALL)]
        import openvino

        core = openvino.Core()
        rows = []
        for device in core.available_devices:
            name = str(core.get_property(device, "FULL_DEVICE_NAME"))
            if device == "CPU":
                rows.append(row("openvino", "cpu", True, f"{name}; {int8_note()}"))
            else:
                detail = f"{name}: OpenVINO can use it, repq's engine runs on the CPU only"
                rows.append(row("openvino", device.lower(), False, detail))
        if "CPU" not in core.available_devices:
            rows.append(
                row("openvino", "cpu", False, "OpenVINO has no CPU plugin here", "pip install 'repq[openvino]'")
            )
        return rows


def _read(model: bytes | str, name: str, fix: str | None = None) -> Any:
    import openvino

    try:
        return openvino.Core().read_model(model)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot read {name}", found=_reason(error), fix=fix) from None


class _SignalStack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Give the thread its alternate signal stack back after OpenVINO has compiled a model.

    The CPU plugin gives every compiled model one (sigaltstack(2)) and frees it with the model. Where models end in the
    order in which they began, the thread would keep a stack that is freed, and the next signal end the process.
    """
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)


class OpenVinoEngine(Engine):
    """One model, compiled for the CPU when it is first needed.

    Args:
        hint: ``LATENCY``, or ``THROUGHPUT``, with which OpenVINO divides the cores among runs that go on at once.
    """

    def __init__(self, manifest: EngineManifest, model: Any, hint: str = "LATENCY") -> None:
        super().__init__(manifest)
        self._model, self._hint = model, hint

    @cached_property
    def _compiled(self) -> Any:
        return self._compile({})

    @cached_property
    def _requests(self) -> SimpleQueue[Any]:
        free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.runs_at_once):
            free.put(self._compiled.create_infer_request())
        return free

    @property
    def runs_at_once(self) -> int:
        wanted = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        return max(1, int(wanted)) if self._hint == "THROUGHPUT" else 1

    def concurrent(self) -> OpenVinoEngine:
        return OpenVinoEngine(self.manifest, self._model, "THROUGHPUT")

    def infer(self, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        check_images(images, self.manifest.input)
        request = self._requests.get()
        try:
            try:
                results = request.infer([as_input(images, self.manifest.input)], share_inputs=True)
            except RuntimeError as error:
                raise cannot_run(self.manifest, images, _reason(error)) from None
            names = (output.name for output in self.manifest.outputs)
            # The runtime reuses its output buffers in the next run, so each result is a copy.
            found = {name: np.array(values, np.float32) for name, values in zip(names, results.values(), strict=True)}
        finally:
            self._requests.put(request)
        self._demand_whole(images, found)
        return found

    def _demand_whole(self, images: NDArray[Any], found: Mapping[str, NDArray[np.float32]]) -> None:
        """Refuse the results of an earlier batch: where memory for another size is short, OpenVINO may leave them.

        Seen with 2026.4, of graphs with a free batch axis, without any error.
        """
        batch = self.manifest.input.shape[0]
        for output in self.manifest.outputs:
            given = len(found[output.name]) if output.shape and output.shape[0] == batch else len(images)
            if given != len(images):
                raise cannot_run(self.manifest, images, f"results of {given}, as where memory does not suffice")

    def profile(self, images: NDArray[Any], runs: int) -> tuple[NodeTime, ...]:
        """By OpenVINO's own counters, of a copy that is compiled for it: counting itself costs time.

        They give means over all runs from the first one on, which takes several times as long as those after it: it
        is taken out again.
        """
        check_images(images, self.manifest.input)
        compiled = self._compile({"PERF_COUNT": True})
        request = compiled.create_infer_request()
        request.infer([as_input(images, self.manifest.input)], share_inputs=True)
        first = executed_nodes(compiled)
        for _ in range(runs):
            request.infer([as_input(images, self.manifest.input)], share_inputs=True)
        return node_times(executed_nodes(compiled), first, runs, self.manifest.layers)

    def _compile(self, extra: Mapping[str, Any]) -> Any:
        import openvino

        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": self._hint, **extra}
        if self._hint == "THROUGHPUT":
            options["PERFORMANCE_HINT_NUM_REQUESTS"] = _MOST_RUNS
        if self.manifest.threads is not None:
            options["INFERENCE_NUM_THREADS"] = self.manifest.threads
        # Its table of numpy's types is made at the first use. Two threads that make it at once wait for each other for
        # ever: one holds the table and wants the interpreter, the other the reverse (OpenVINO 2026.4).
        openvino.Type.f32.to_dtype()
        try:
            with _own_signal_stack():
                return openvino.Core().compile_model(self._model, "CPU", options)
        except RuntimeError as error:
            raise EngineError("OpenVINO cannot compile the model", found=_reason(error)) from None

    def describe(self) -> EngineDescription:
        nodes = executed_nodes(self._compiled)
        with scratch_folder() as scratch:
            self.write(scratch)
            size = folder_size(scratch)
        layers = executed_layers(nodes, self.manifest.layers)
        note = saturation_note() if any(layer.precision == "int8" for layer in layers) else None
        return self.described(layers=layers, extra_nodes=conversions(nodes), size_bytes=size, note=note)

    def write(self, folder: Path) -> None:
        import openvino

        self._compiled  # noqa: B018 (what cannot be compiled is not written)
        # OpenVINO halves the weights by default; an FP32 engine must hold what was measured.
        openvino.save_model(self._model, str(folder / _IR), compress_to_fp16=False)


def executed_nodes(compiled: Any) -> list[dict[str, str]]:
    """What OpenVINO notes about every node of a compiled model's execution graph."""
    keys = ("layerType", "runtimePrecision", "outputPrecisions", "primitiveType", "originalLayersNames", "execTimeMcs")
    notes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return [{key: note[key].astype(str) if key in note else "" for key in keys} for note in notes]


def node_times(
    nodes: Sequence[Mapping[str, str]], first: Sequence[Mapping[str, str]], runs: int, layers: Iterable[LayerId]
) -> tuple[NodeTime, ...]:
    """The times of the nodes that were run, each with the layer that it computes.

    Args:
        nodes: after a first run and ``runs`` others.
        first: the same nodes after the first run.
    """
    owner = {id(node): layer for layer, node in _nodes_of_layers(nodes, layers).items()}
    return tuple(
        NodeTime(
            name=node["originalLayersNames"] or node["layerType"],
            kind=node["layerType"],
            layer=owner.get(id(node)),
            ms=max(0.0, (runs + 1) * float(node["execTimeMcs"]) - float(before["execTimeMcs"])) / runs / 1e3,
            precision=_PRECISIONS.get(node["runtimePrecision"], node["runtimePrecision"]),
        )
        for node, before in zip(nodes, first, strict=True)
        if node["execTimeMcs"].isdecimal() and before["execTimeMcs"].isdecimal()
    )


def executed_layers(nodes: Iterable[Mapping[str, str]], layers: Iterable[LayerId]) -> tuple[LayerPrecision, ...]:
    """Look up every layer among the nodes of the execution graph.

    A node lists the names of all that was fused into it; a convolution with a bias is there as ``ID/WithoutBiases``.
    A layer without a node of its own is ``unknown``.
    """
    wanted = tuple(layers)
    found = _nodes_of_layers(nodes, wanted)
    rows = []
    for layer in wanted:
        executed = found.get(layer)
        precision = _PRECISIONS.get(executed["runtimePrecision"], executed["runtimePrecision"]) if executed else UNKNOWN
        rows.append(
            LayerPrecision(layer=layer, precision=precision, kernel=executed["primitiveType"] if executed else "")
        )
    return tuple(rows)


def _nodes_of_layers(nodes: Iterable[Mapping[str, str]], layers: Iterable[LayerId]) -> dict[LayerId, Mapping[str, str]]:
    wanted = frozenset(layers)
    found: dict[LayerId, Mapping[str, str]] = {}
    for node in nodes:
        if node["layerType"] in _LAYER_TYPES:
            for name in _listed(node["originalLayersNames"], max((layer.count(",") for layer in wanted), default=0)):
                layer = next((LayerId(known) for known in names_before(name, _ADDED) if known in wanted), None)
                if layer is not None:
                    found.setdefault(layer, node)
    return found


def _listed(names: str, commas: int) -> Iterator[str]:
    """The names of a list, of which each may hold so many commas, and the list does not say where one ends."""
    parts = names.split(",")
    for start in range(len(parts)):
        for end in range(start + 1, min(start + commas + 1, len(parts)) + 1):
            yield ",".join(parts[start:end])


def conversions(nodes: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """Count the nodes of the execution graph that only change type or layout."""
    return dict(sorted(Counter(kind for node in nodes if (kind := _conversion(node)) is not None).items()))


def _conversion(node: Mapping[str, str]) -> str | None:
    kind = node["layerType"]
    if kind in {*_LAYER_TYPES, "Const", "Input", "Output"}:
        return None
    before, after = (_PRECISIONS.get(node[key].split(",")[0]) for key in ("runtimePrecision", "outputPrecisions"))
    if kind == "FakeQuantize" or (after == "int8" and before in _FLOATS):
        return "quantize"
    if before == "int8" and after in _FLOATS:
        return "dequantize"
    return {"Reorder": "reorder", "Convert": "convert"}.get(kind)


def _reason(error: Exception) -> str:
    """The line of a message that says most: what OpenVINO has no operator for, else the last one."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines() if line.strip()]
    unknown = [line for line in lines if line.startswith("No conversion rule")]
    return (unknown or lines or [type(error).__name__])[-1]
