"""An engine is one runtime and one entry: it is built, evaluated, checked, timed and listed by every command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from repq.engine import ENGINES, Engine, EngineManifest, Runtime
from repq.engine.base import as_input, check_images
from repq.errors import EngineError
from repq.results import Availability, EngineDescription, LayerPrecision

FILE = "toy.onnx"


class ToyEngine(Engine):
    """The graph as it is written, node by node, without any optimization."""

    def __init__(self, manifest: EngineManifest, data: bytes) -> None:
        import onnxruntime

        super().__init__(manifest)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.data = data
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def infer(self, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        check_images(images, self.manifest.input)
        names = [output.name for output in self.manifest.outputs]
        found = self.session.run(names, {self.manifest.input.name: as_input(images, self.manifest.input)})
        return dict(zip(names, found, strict=True))

    def write(self, folder: Path) -> None:
        (folder / FILE).write_bytes(self.data)

    def describe(self) -> EngineDescription:
        layers = tuple(LayerPrecision(layer=layer, precision="float32") for layer in self.manifest.layers)
        return self.described(layers=layers, size_bytes=len(self.data), note="a toy")


class ToyRuntime(Runtime):
    name, title = "toy", "Toy Engine"
    missing = False

    def version(self) -> str:
        if self.missing:
            raise EngineError("the toy is not installed here", fix="buy one")
        return "0.1"

    def build(self, source: Any, manifest: EngineManifest) -> ToyEngine:
        return ToyEngine(manifest, source.model.SerializeToString())

    def load(self, folder: Path, manifest: EngineManifest) -> ToyEngine:
        return ToyEngine(manifest, (folder / FILE).read_bytes())

    def availability(self) -> list[Availability]:
        return [Availability(runtime="toy", device="table", usable=True, version=self.version(), detail="a toy")]

    def build_command(self, manifest: EngineManifest, onnx: Path, folder: Path) -> str:
        return f"toymaker {onnx.name}"


@pytest.fixture(autouse=True)
def toy() -> Iterator[ToyRuntime]:
    ENGINES.append(ToyRuntime())
    yield ENGINES[-1]  # type: ignore[misc]
    ENGINES.pop()


@pytest.fixture(scope="module")
def graph(tiny: Path, repq: Callable[..., dict]) -> Path:
    """A quantized model as ONNX, and the engine of it."""
    data = ("--data", tiny / "set/data.yaml", "--imgsz", 64, "--images", 2, "--scheme", "asymmetric", "--method", "max")
    repq("ptq", tiny / "weights.safetensors", *data, "--plain", "-o", tiny / "int8.safetensors")
    repq("export", tiny / "int8.safetensors", "--imgsz", 64, "-o", tiny / "int8.onnx")
    return tiny / "int8.onnx"


def test_it_goes_through_every_command(tiny: Path, graph: Path, tmp_path: Path, repq: Callable[..., dict]) -> None:
    data = ("--data", tiny / "set/data.yaml", "--imgsz", 64)
    built = repq("build", graph, "--engine", "toy", "-o", tmp_path / "engine")
    assert (built["engine"], built["version"], built["note"]) == ("toy", "0.1", "a toy")
    of_file = repq("eval", graph, *data, "--engine", "toy")
    of_folder = repq("eval", tmp_path / "engine", *data)
    assert of_file["engine"] == of_folder["engine"] == "toy" and of_file["ap"] == of_folder["ap"]
    checked = repq("check", tiny / "int8.safetensors", graph, *data, "--engine", "toy", "--max-drop", 1)
    assert checked["engines"][0]["engine"] == "toy"
    quick = ("--infer-only", "--rounds", 1, "--runs", 1, "--warmup", 0, "--threads", 1, "-o", tmp_path / "bench")
    timed = repq("bench", graph, "--imgsz", 64, "--engine", "toy", "--engine", "onnxruntime", *quick)
    assert [row["engine"] for row in timed["models"]] == ["toy", "onnxruntime"]
    assert "Toy Engine" in (tmp_path / "bench/report.html").read_text(encoding="utf-8")
    assert {"toy", "onnxruntime"} <= {row["runtime"] for row in repq("doctor")["runtimes"]}


def test_a_name_that_is_not_in_the_list_is_refused(
    graph: Path, tmp_path: Path, toy: ToyRuntime, repq: Callable[..., dict]
) -> None:
    repq("build", graph, "--engine", "toy", "-o", tmp_path / "engine")
    toy.missing = True
    assert "buy one" in repq("build", graph, "--engine", "toy", "-o", tmp_path / "other", exit=2)["error"]
    ENGINES.remove(toy)
    try:
        assert "the closest is" in repq("build", graph, "--engine", "toy", "-o", tmp_path / "other", exit=2)["error"]
        assert "does not know" in repq("describe", tmp_path / "engine", exit=2)["error"]
    finally:
        ENGINES.append(toy)


def test_the_list_is_read_without_any_runtime() -> None:
    code = (
        "import sys, repq.engine, repq.quant.calibration, repq.quant.corrections\n"
        "from repq.recipe import BuildConfig, PtqConfig\n"
        "BuildConfig(), PtqConfig()\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'cv2', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
