"""NCNN on the CPU, in FP32, FP16 and INT8. It is made for ARM; on x86 it shows what will run there, not how fast.

`repq.engine.ncnn_building` says how a network is made and what differs from the simulation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from repq.engine.availability import installed, int8_note, row
from repq.engine.base import Engine, EngineManifest, Runtime, as_input, check_images, library_version
from repq.engine.ncnn_building import INSTALL, convert, pnnx_program, put, written_name
from repq.engine.ncnn_files import CONVOLUTIONS, Layer, has_float16, read, write
from repq.engine.ncnn_network import BIN, PARAM, given, open_files, run
from repq.files import scratch_folder
from repq.machine.cpu import cpu_features, is_x86
from repq.results import Availability, EngineDescription, LayerPrecision, NodeTime

if TYPE_CHECKING:
    from repq.engine.source import Source

TESTED = "1.0.20261020"
X86_NOTE = "NCNN is made for ARM: on x86 its times say little, and weights in FP16 are computed with in FP32"


class Ncnn(Runtime):
    name, title, install = "ncnn", "NCNN", INSTALL
    variants = ("float32", "float16", "int8")
    settings: ClassVar[Mapping[str, Any]] = {"ptq": {"scheme": "symmetric"}, "export": {"float16": True}}

    def version(self) -> str:
        return library_version("ncnn", "NCNN", INSTALL)

    def build(self, source: Source, manifest: EngineManifest) -> NcnnEngine:
        """Convert the float graph, compare it with ONNX Runtime, and make INT8 layers of those that have scales."""
        return NcnnEngine(manifest, convert(source))

    def load(self, folder: Path, manifest: EngineManifest) -> NcnnEngine:
        return NcnnEngine(manifest.model_copy(update={"version": self.version()}), read_network(folder))

    def availability(self) -> list[Availability]:
        if missing := [name for name in ("ncnn", "pnnx") if not installed(name)]:
            return [row("ncnn", "cpu", False, f"not installed: {', '.join(missing)}", INSTALL)]
        version = self.version()
        tested = "" if version == TESTED else f"; repq was tested with {TESTED}"
        return [row("ncnn", "cpu", pnnx_program().is_file(), f"{int8_note()}{_arm_note('; ')}{tested}")]


class NcnnEngine(Engine):
    """One network; it runs one image after another."""

    def __init__(self, manifest: EngineManifest, layers: Sequence[Layer]) -> None:
        super().__init__(manifest)
        self._layers = layers
        self._net = open_network(layers, manifest.threads)

    def infer(self, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        wanted = self.manifest.input
        check_images(images, wanted)
        rows = [run(self._net, image) for image in as_input(images, wanted).astype(np.float32, copy=False)]
        found = {}
        for output, parts in zip(self.manifest.outputs, zip(*rows, strict=True), strict=True):
            shape = [size for size in output.shape[1:] if isinstance(size, int)]
            values = np.stack(parts)
            found[output.name] = values.reshape(len(rows), *shape) if len(shape) == len(output.shape) - 1 else values
        return found

    def profile(self, images: NDArray[Any], runs: int) -> tuple[NodeTime, ...]:
        """By asking for the result of each layer in turn, of a second network that keeps them all."""
        check_images(images, self.manifest.input)
        net = open_network(self._layers, self.manifest.threads, keep_values=True)
        images = as_input(images, self.manifest.input).astype(np.float32, copy=False)
        layer_times(net, self._layers, images)  # to warm up
        ms = np.mean([layer_times(net, self._layers, images) for _ in range(runs)], axis=0)
        ids = {written_name(layer): layer for layer in self.manifest.layers}
        return tuple(
            NodeTime(
                name=layer.name, kind=layer.kind, ms=float(spent),
                layer=(found := ids.get(layer.name) if layer.kind in CONVOLUTIONS else None),
                precision=_precision(layer) if found else "",
            )
            for layer, spent in zip(self._layers, ms, strict=True)
        )  # fmt: skip

    def write(self, folder: Path) -> None:
        put(self._layers, folder)

    def describe(self) -> EngineDescription:
        param, data = write(self._layers)
        by_name = {layer.name: layer for layer in self._layers if layer.kind in CONVOLUTIONS}
        layers = tuple(_executed(layer, by_name[written_name(layer)]) for layer in self.manifest.layers)
        return self.described(
            layers=layers, extra_nodes=_conversions(self._layers), size_bytes=len(param.encode()) + len(data),
            note=_arm_note() or None,
        )  # fmt: skip


def read_network(folder: Path) -> tuple[Layer, ...]:
    """Read both files of a folder."""
    return read((folder / PARAM).read_text(encoding="utf-8"), (folder / BIN).read_bytes())


def open_network(layers: Sequence[Layer], threads: int | None, *, keep_values: bool = False) -> Any:
    """A network that is ready to run.

    Args:
        keep_values: of every layer, so that each can be asked for.

    Raises:
        EngineError: NCNN does not know a layer, or cannot read the weights.
    """
    with scratch_folder() as scratch:
        put(layers, scratch)
        return open_files(scratch, threads, half=has_float16(layers), keep_values=keep_values)


def layer_times(net: Any, layers: Sequence[Layer], images: NDArray[np.float32]) -> list[float]:
    """Milliseconds of each layer, of all images together; ``net`` keeps the values of every layer."""
    found = [0.0] * len(layers)
    for image in images:
        extractor, _ = given(net, image)
        for place, layer in enumerate(layers):
            start = time.perf_counter()
            extractor.extract(layer.outputs[0], 1)  # as it lies in memory: another form would cost time
            found[place] += 1e3 * (time.perf_counter() - start)
    return found


def _arm_note(before: str = "") -> str:
    return before + X86_NOTE if is_x86() else ""


def _executed(name: str, layer: Layer) -> LayerPrecision:
    kernel = layer.kind + ", requantized" * layer.requantized + ", weights in FP16" * has_float16([layer])
    return LayerPrecision(layer=name, precision=_precision(layer), kernel=kernel)


def _precision(layer: Layer) -> str:
    """What a convolution computes with: FP16 weights become FP32 where the processor has no such arithmetic."""
    stored = layer.weights[0].dtype.name
    return "float32" if stored == "float16" and "arm_fp16" not in cpu_features() else stored


def _conversions(layers: Sequence[Layer]) -> dict[str, int]:
    """INT8 layers that quantize what they read, and that write floats."""
    integers = {blob for layer in layers if layer.requantized for blob in layer.outputs}
    for layer in layers:  # Split comes after what it copies
        if layer.kind == "Split" and layer.inputs[0] in integers:
            integers.update(layer.outputs)
    quantize = sum(layer.int8 and layer.inputs[0] not in integers for layer in layers)
    dequantize = sum(layer.int8 and not layer.requantized for layer in layers)
    return {name: count for name, count in (("dequantize", dequantize), ("quantize", quantize)) if count}
