"""NCNN on the CPU, in FP32, FP16 and INT8. It is made for ARM; on x86 it shows what will run there, not how fast.

`repq.engine.ncnn_building` says how a network is made and what differs from the simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from repq.engine.availability import installed, int8_note, row
from repq.engine.base import Engine, EngineManifest, Runtime, as_input, check_images, library_version
from repq.engine.ncnn_building import BIN, INSTALL, PARAM, convert, pnnx_program, put, written_name
from repq.engine.ncnn_files import CONVOLUTIONS, Layer, read, write
from repq.errors import EngineError
from repq.files import scratch_folder
from repq.machine.cpu import is_x86
from repq.results import Availability, EngineDescription, LayerPrecision

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
        here = manifest.model_copy(update={"version": self.version()})
        return NcnnEngine(here, read((folder / PARAM).read_text(encoding="utf-8"), (folder / BIN).read_bytes()))

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
        with scratch_folder() as scratch:
            put(layers, scratch)
            self._net = open_network(scratch, manifest.threads)

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


def open_network(folder: Path, threads: int | None) -> Any:
    """Load both files of a folder.

    Raises:
        EngineError: NCNN does not know a layer, or cannot read the weights.
    """
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = False  # boxes lose digits in it from 512 pixels on
    if threads is not None:
        net.opt.num_threads = threads
    if net.load_param(str(folder / PARAM)) or net.load_model(str(folder / BIN)):
        raise EngineError("NCNN cannot load the network", fix="see what it printed above, or use another engine")
    return net


def run(net: Any, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The outputs of one image (C, H, W), in the order of the graph.

    Raises:
        EngineError: NCNN gives up, for example because memory does not suffice.
    """
    import ncnn

    extractor = net.create_extractor()
    # A Mat of an array does not own its values; a clone does.
    failed = extractor.input("in0", ncnn.Mat(np.ascontiguousarray(image)).clone())
    outputs = []
    for index in range(len(net.output_names())):
        code, values = extractor.extract(f"out{index}")
        failed = failed or code
        outputs.append(np.array(values, np.float32))
    if failed:
        raise EngineError("NCNN cannot run the network", found=f"code {failed}", fix="use smaller images, free memory")
    return outputs


def trial(folder: str) -> None:
    """Run the network in a folder on ``images.npy`` beside it and write ``outputs.npz`` into it."""
    outputs = run(open_network(Path(folder), 1), np.load(Path(folder).parent / "images.npy")[0])
    np.savez(Path(folder) / "outputs.npz", *outputs)


def _arm_note(before: str = "") -> str:
    return before + X86_NOTE if is_x86() else ""


def _executed(name: str, layer: Layer) -> LayerPrecision:
    precision = layer.weights[0].dtype.name
    return LayerPrecision(layer=name, precision=precision, kernel=layer.kind + ", requantized" * layer.requantized)


def _conversions(layers: Sequence[Layer]) -> dict[str, int]:
    """INT8 layers that quantize what they read, and that write floats."""
    integers = {blob for layer in layers if layer.requantized for blob in layer.outputs}
    for layer in layers:  # Split comes after what it copies
        if layer.kind == "Split" and layer.inputs[0] in integers:
            integers.update(layer.outputs)
    quantize = sum(layer.int8 and layer.inputs[0] not in integers for layer in layers)
    dequantize = sum(layer.int8 and not layer.requantized for layer in layers)
    return {name: count for name, count in (("dequantize", dequantize), ("quantize", quantize)) if count}
