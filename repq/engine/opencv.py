"""OpenCV's DNN module on the CPU, in FP32.

INT8 is refused. OpenCV 5.0 takes Q/DQ in its importer, but computes no convolution with integers: the engine that it
chooses by itself stops at a MaxPool behind Q/DQ, and the classic one dequantizes before every convolution and computes
that in FP32, so INT8 would only cost accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repq.engine.availability import installed, row
from repq.engine.base import Engine, EngineManifest, Runtime, as_input, cannot_run, check_images, library_version
from repq.engine.conversion import demand_equal, random_images, reference
from repq.errors import EngineError
from repq.results import Availability, EngineDescription, LayerPrecision

if TYPE_CHECKING:
    import onnx

    from repq.engine.source import Source

INSTALL = "pip install opencv-python-headless"
_MODEL = "model.onnx"


class OpenCv(Runtime):
    name, title, install = "opencv", "OpenCV DNN", "comes with repq"
    variants = ("float32",)

    def version(self) -> str:
        return library_version("cv2", "OpenCV", INSTALL)

    def build(self, source: Source, manifest: EngineManifest) -> OpenCvEngine:
        """Import the graph, and compare it with ONNX Runtime."""
        if other := _other_types(source.model.graph):
            fix = "give the FP32 graph, or use another engine"
            raise EngineError("OpenCV computes in FP32 alone", found=f"a graph {other}", fix=fix)
        wanted = source.input
        if (
            wanted.dtype != "float32"
            or len(wanted.shape) != 4
            or any(isinstance(size, str) for size in wanted.shape[1:])
        ):
            found = f"{wanted.dtype} {wanted.shape}"
            fix = "export in FP32 for one size, without preprocessing inside"
            raise EngineError("OpenCV takes FP32 images (B, C, H, W) of one size", found=found, fix=fix)
        engine = OpenCvEngine(manifest, source.model.SerializeToString())
        images = np.repeat(random_images(source), engine.batch or 1, axis=0)
        demand_equal(reference(source.model, images), list(engine.infer(images).values()), "OpenCV")
        return engine

    def load(self, folder: Path, manifest: EngineManifest) -> OpenCvEngine:
        here = manifest.model_copy(update={"version": self.version()})
        return OpenCvEngine(here, (folder / _MODEL).read_bytes())

    def availability(self) -> list[Availability]:
        if not installed("cv2"):
            return [row("opencv", "cpu", False, "not installed", INSTALL)]
        return [row("opencv", "cpu", True, "FP32 only", version=self.version())]


def _other_types(graph: onnx.GraphProto) -> str | None:
    """What of a graph OpenCV would compute in FP32 all the same."""
    from onnx import TensorProto

    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
        return "with Q/DQ"
    float16 = any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.initializer)
    return "in FP16" if float16 else None


class OpenCvEngine(Engine):
    """One network, which runs for one thread at a time: it holds the images that it works on."""

    def __init__(self, manifest: EngineManifest, data: bytes) -> None:
        import cv2

        super().__init__(manifest)
        self._data, self._turn = data, Lock()
        try:
            self._net = cv2.dnn.readNetFromONNX(np.frombuffer(data, np.uint8))
        except cv2.error as error:
            raise EngineError("OpenCV cannot read the graph", found=_reason(error), fix="use another engine") from None

    def infer(self, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        import cv2

        check_images(images, self.manifest.input)
        names = [output.name for output in self.manifest.outputs]
        with self._turn, _threads(self.manifest.threads):
            try:
                self._net.setInput(as_input(images, self.manifest.input), self.manifest.input.name)
                found = self._net.forward(names)
            except cv2.error as error:
                raise cannot_run(self.manifest, images, _reason(error)) from None
        return {name: np.array(values, np.float32) for name, values in zip(names, found, strict=True)}

    def write(self, folder: Path) -> None:
        (folder / _MODEL).write_bytes(self._data)

    def describe(self) -> EngineDescription:
        """OpenCV has one precision on this backend; it does not tell kernels."""
        layers = tuple(LayerPrecision(layer=layer, precision="float32") for layer in self.manifest.layers)
        return self.described(layers=layers, size_bytes=len(self._data))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """OpenCV's threads, which belong to the process."""
    import cv2

    before = cv2.getNumThreads()
    if count is not None:
        cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
