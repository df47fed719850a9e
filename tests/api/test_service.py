"""Whatever the graph does itself, the boxes are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from graph_views import for_serving
from numpy.typing import NDArray
from small_training import tiny_model
from torch import nn

from repq.api.measuring import demand_plain
from repq.api.opening import load
from repq.api.service import service_of
from repq.cli import main
from repq.data import make_demo_set
from repq.errors import DataError, EngineError, RepqError
from repq.export import export_float, save_onnx
from repq.graph import read_metadata
from repq.graph.files import load_onnx
from repq.machine.load import OtherLoad
from repq.model import Detector, build
from repq.recipe import DemoConfig, EvalConfig, ExportConfig, LetterboxConfig, NmsConfig, PreprocessConfig
from repq.results import MachineLoad

IMGSZ = (64, 96)
WHOLE = PreprocessConfig(uint8=True, bgr=True, letterbox=LetterboxConfig())
FORMS = {
    "bytes": (PreprocessConfig(uint8=True), None),
    "bytes, blue first": (PreprocessConfig(uint8=True, bgr=True), None),
    "suppression": (PreprocessConfig(), NmsConfig(confidence=0.4)),
    "letterbox": (PreprocessConfig(uint8=True, letterbox=LetterboxConfig()), None),
    "everything": (WHOLE, NmsConfig(confidence=0.4)),
}
CONFIG = EvalConfig(confidence=0.4)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    model = build(tiny_model(classes=3).spec, deploy=True).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            inputs = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            nn.init.normal_(module.weight, 0, (2 / inputs) ** 0.5)
            assert module.bias is not None
            nn.init.normal_(module.bias, 0, 0.1)
    return model


@pytest.fixture(scope="module")
def exported(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    save_onnx(path, export_float(detector, IMGSZ, ExportConfig(batch=None), names=("a", "b", "c")))
    return path


def images(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def saved(plain: Path, folder: Path, preprocess: PreprocessConfig, nms: NmsConfig | None) -> Path:
    path = folder / "served.onnx"
    save_onnx(path, for_serving(load_onnx(plain), preprocess, nms))
    return path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", FORMS)
def test_boxes_are_the_same(exported: Path, tmp_path: Path, form: str, engine) -> None:
    """Sizes that need no scaling, or half of it: else a rounded pixel may move a score across the threshold."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    pictures = images(IMGSZ, (64, 96), (128, 192), (64, 40))
    plain = service_of(load(exported, engine=engine), IMGSZ, CONFIG)
    served = load(saved(exported, tmp_path, *FORMS[form]), engine=engine)
    assert not served.plain and served.names == ("a", "b", "c")
    expected, found = plain.detect(pictures), service_of(served, IMGSZ, CONFIG).detect(pictures)
    assert any(len(boxes) for boxes in expected)
    for before, after in zip(expected, found, strict=True):
        assert before.shape == after.shape
        np.testing.assert_array_equal(after[:, 5], before[:, 5])
        np.testing.assert_allclose(after[:, :5], before[:, :5], atol=5e-2, rtol=1e-3)


def test_the_file_says_what_is_inside(exported: Path, tmp_path: Path) -> None:
    metadata = read_metadata(load_onnx(saved(exported, tmp_path, *FORMS["everything"])))
    assert metadata is not None
    assert (metadata.preprocess, metadata.nms) == FORMS["everything"]
    plain = read_metadata(load_onnx(exported))
    assert plain is not None and (plain.preprocess, plain.nms) == (PreprocessConfig(), None)


def test_decoding_gives_the_colours_that_the_model_takes(exported: Path, tmp_path: Path) -> None:
    import cv2

    picture = images((20, 30))[0]
    data = cv2.imencode(".png", picture)[1].tobytes()  # OpenCV writes what it takes for BGR
    blue_first = service_of(load(saved(exported, tmp_path, WHOLE, None)), IMGSZ, CONFIG)
    np.testing.assert_array_equal(blue_first.decode(data), picture)
    np.testing.assert_array_equal(service_of(load(exported), IMGSZ, CONFIG).decode(data), picture[..., ::-1])


def test_settings_that_contradict_the_graph(exported: Path, tmp_path: Path) -> None:
    model = load(saved(exported, tmp_path, *FORMS["everything"]))
    with pytest.raises(RepqError, match="suppresses by itself"):
        service_of(model, IMGSZ, EvalConfig())
    with pytest.raises(RepqError, match="letterboxes by itself"):
        service_of(model, IMGSZ, EvalConfig(confidence=0.4, letterbox=LetterboxConfig(border=4)))
    with pytest.raises(RepqError, match="cannot be compared"):
        demand_plain(model)


def test_images_of_another_size_than_the_graph_takes(exported: Path, tmp_path: Path) -> None:
    fixed = WHOLE.model_copy(update={"source": (50, 60)})
    model = load(saved(exported, tmp_path, fixed, None))
    service = service_of(model, IMGSZ, CONFIG)
    assert len(service.detect(images((50, 60), (50, 60)))) == 2
    with pytest.raises(DataError, match="an image of 60x50"):
        service.detect(images((50, 60), (60, 50)))
    with pytest.raises(EngineError, match="uint8 images"):
        model.infer(np.zeros((1, 50, 60, 3), np.float32))


def test_a_letterbox_without_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        PreprocessConfig(letterbox=LetterboxConfig())
    with pytest.raises(ValueError, match="set letterbox"):
        PreprocessConfig(uint8=True, source=(5, 5))


def test_the_command_line(detector: Detector, tmp_path: Path) -> None:
    from repq.model import save_checkpoint

    save_checkpoint(tmp_path / "m.safetensors", detector)
    command = ["export", str(tmp_path / "m.safetensors"), "-o", str(tmp_path / "m.onnx"), "--imgsz", "64x96", "--json"]
    flags = ["--letterbox-in-graph", "--source-size", "50x60", "--bgr", "--nms", "--conf", "0.4"]
    values = json.loads(CliRunner().invoke(main, [*command, *flags]).stdout)
    assert values["preprocess"]["source"] == [50, 60] and values["nms"]["confidence"] == 0.4
    assert len(service_of(load(tmp_path / "m.onnx"), IMGSZ, CONFIG).detect(images((50, 60)))) == 1
    assert CliRunner().invoke(main, [*command, "--source-size", "50x60"]).exit_code == 2


def test_a_graph_of_one_source_size_is_timed_beside_others(exported: Path, tmp_path: Path) -> None:
    from repq.data import load_dataset, make_demo_set
    from repq.recipe import BenchConfig, DemoConfig
    from repq.stages import bench_models

    data = load_dataset(make_demo_set(tmp_path / "set", DemoConfig(train_images=1, val_images=2, size=64)), "val")

    fixed = saved(exported, tmp_path, WHOLE.model_copy(update={"source": (50, 60)}), NmsConfig())
    config = BenchConfig(batches=(2,), threads=(1,), rounds=1, runs_per_round=1, warmup=1, end_to_end=True)
    found = bench_models([exported, fixed], IMGSZ, config, dataset=data)
    assert [(row.model, row.scope) for row in found.rows] == [
        (path.name, scope) for scope in ("infer", "end_to_end") for path in (exported, fixed)
    ]
    assert found.images == 2
    assert bench_models([exported], IMGSZ, config, dataset=data, images=1).images == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs cores to be bound to")
def test_all_cores_are_those_that_the_process_may_use(exported: Path) -> None:
    core = min(os.sched_getaffinity(0))
    words = ["--imgsz", "64x96", "--rounds=1", "--runs=1", "--json"]
    command = [sys.executable, "-m", "repq", "bench", str(exported), *words]
    ran = subprocess.run(command, capture_output=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    found = json.loads(ran.stdout)
    assert found["environment"]["cores"] == 1 and {row["threads"] for row in found["models"]} == {1}


def test_from_files_to_boxes(exported: Path, tmp_path: Path) -> None:
    """Every arrangement on real files: the steps add up, and the graph takes over what it says."""
    from repq.data import make_demo_set
    from repq.recipe import BenchConfig, DemoConfig
    from repq.stages import bench_service

    data = make_demo_set(tmp_path / "set", DemoConfig(train_images=1, val_images=4, size=64))
    served = saved(exported, tmp_path, WHOLE, NmsConfig())
    config = BenchConfig(batches=(2,), threads=(1,), rounds=1)
    plain, whole = bench_service([exported, served], data, "val", IMGSZ, config, images=4)
    assert (plain.letterbox, plain.nms, whole.letterbox, whole.nms) == ("host", "host", "graph", "graph")
    for row in (plain, whole):
        assert (row.images, row.loader) == (4, "opencv")
        total = row.decode_ms + row.preprocess_ms + row.infer_ms + row.postprocess_ms
        assert row.images_per_s == pytest.approx(1e3 / total)
        assert row.overlapped_images_per_s > 0


@pytest.mark.parametrize("crowded", [(False, False), (True, False), (False, True)])
def test_a_load_during_any_part_of_a_timing_marks_it(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crowded: tuple[bool, bool]
) -> None:
    """The network alone, then the way from files to boxes."""
    data = make_demo_set(tmp_path / "set", DemoConfig(train_images=1, val_images=1, size=64))
    loads = iter(crowded)
    monkeypatch.setattr(OtherLoad, "so_far", lambda self, threads: MachineLoad(others=1.0, crowded=next(loads)))
    words = ["bench", exported, "--imgsz", "64x96", "--data", data, "--rounds=1", "--runs=1", "--threads=1", "--json"]
    ran = CliRunner().invoke(main, list(map(str, words)))
    assert ran.exit_code == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["crowded"], len(found["service"])) == (any(crowded), 1)


WITHOUT_TORCH = """
import sys
import numpy as np
import repq

graph, folder = repq.load(sys.argv[1]), sys.argv[2]
built = graph.build("onnxruntime", imgsz=(64, 96), out=folder)
for model in (graph, built, repq.load(folder)):
    model.describe()
    model.detect(np.zeros((50, 60, 3), np.uint8), imgsz=(64, 96))
assert "torch" not in sys.modules
"""


def test_graphs_and_engines_do_without_torch(exported: Path, tmp_path: Path) -> None:
    """Loading it takes longer than finding objects in an image."""
    words = [sys.executable, "-c", WITHOUT_TORCH, str(exported), str(tmp_path / "engine")]
    ran = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert ran.returncode == 0, ran.stderr
