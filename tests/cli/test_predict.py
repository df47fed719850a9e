"""`repq predict`: every kind of source and of output, two models side by side, and everything that can be wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from command_lines import SIZE, Material, invoke, refused
from few_blocks import few_blocks
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from repq.api.opening import load
from repq.errors import RepqError
from repq.predict.outputs import CocoFile, DrawnImages, DrawnVideo, Prediction, YoloFiles
from repq.predict.sources import open_sources
from repq.recipe import EvalConfig

FRAMES = 7


@pytest.fixture(scope="module")
def engine(material: Material, detector_onnx: Path) -> Path:
    onnx, folder = detector_onnx, material.folder / "engine"
    assert invoke("build", onnx, "--engine", "onnxruntime", "-o", folder).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes and forms, one in a folder below, and one that is damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (50, 80)), ("a.png", (64, 64)), ("below/c.jpg", (120, 70)), ("000123.gif", (40, 40))):
        assert cv2.imwrite(str(folder / name), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:600])
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for number in range(FRAMES):
        writer.write(np.full((64, 96, 3), 30 * number, np.uint8))
    writer.release()
    return path


def run(*arguments: object) -> dict:
    result = invoke("predict", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def written(folder: Path) -> dict:
    return json.loads((folder / "predictions.json").read_text())


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_becomes_boxes_in_every_form(engine: Path, pictures: Path, folder: Path) -> None:
    report = run(engine, pictures, "-o", "out", "--conf", 0.0005, "--txt", "--scores", "--coco")
    names = {"a.jpg", "a.png", "below/c.jpg", "000123.gif"}
    assert files(folder / "out") == {
        "predictions.json", "coco.json", "drawn/a.jpg", "drawn/a.png", "drawn/below/c.jpg", "drawn/000123.gif.jpg",
        "labels/a.txt", "labels/a.png.txt", "labels/below/c.txt", "labels/000123.txt",
    }  # fmt: skip
    assert (report["images"], report["skipped_count"]) == (4, 1) and "broken.jpg" in report["skipped"][0]
    found = written(folder / "out")
    assert {entry["image"] for entry in found["images"]} == names
    assert [entry["image"] for entry in found["skipped"]] == ["broken.jpg"]
    assert sum(len(entry["boxes"]) for entry in found["images"]) == report["boxes"] > 0
    coco = json.loads((folder / "out/coco.json").read_text())
    assert {image["file_name"]: image["id"] for image in coco["images"]}["000123.gif"] == 123
    assert len(coco["annotations"]) == report["boxes"]
    model = load(engine)
    for entry in found["images"]:
        path = pictures / entry["image"]
        expected = model.detect(path, conf=0.0005)
        boxes = np.array([[*box["box"], box["score"], box["class"]] for box in entry["boxes"]]).reshape(-1, 6)
        np.testing.assert_allclose(boxes, expected, atol=1e-2)
        assert all(box["name"] == ("ring", "triangle", "cross")[box["class"]] for box in entry["boxes"])
    label = np.loadtxt(folder / "out/labels/a.txt", ndmin=2)
    boxes = model.detect(pictures / "a.jpg", conf=0.0005)
    np.testing.assert_allclose(label[:, 3] * 80, boxes[:, 2] - boxes[:, 0], atol=1e-3)
    np.testing.assert_allclose(label[:, 5], boxes[:, 4], atol=1e-6)


def scored(truth: Path, found: Path) -> tuple[float, float, float]:
    """AP, AP50 and AP75 of ``coco.json`` by faster-coco-eval, images joined by their names."""
    from faster_coco_eval import COCO, COCOeval_faster

    expected, told = COCO(str(truth)), json.loads(found.read_text())
    ids = {Path(image["file_name"]).name: image["id"] for image in expected.dataset["images"]}
    places = {image["id"]: ids[Path(image["file_name"]).name] for image in told["images"]}
    rows = [{**row, "image_id": places[row["image_id"]]} for row in told["annotations"]]
    measured = COCOeval_faster(expected, expected.loadRes(rows), "bbox")
    measured.evaluate()
    measured.accumulate()
    measured.summarize()
    return tuple(float(value) for value in measured.stats[:3])


def test_ap_of_the_boxes_as_eval_counts_them_is_that_of_eval(engine: Path, pictures: Path, folder: Path) -> None:
    """Of a drawn set whose objects are some of the boxes that the model finds, moved a little."""
    model, rng = load(engine), np.random.default_rng(1)
    (folder / "images").mkdir()
    annotations, images = [], []
    for number in range(6):
        path = folder / f"images/{number}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (50 + 9 * number, 90 - 7 * number, 3), dtype=np.uint8))
        images.append({"id": number + 7, "file_name": path.name, "width": 90 - 7 * number, "height": 50 + 9 * number})
        for x1, y1, x2, y2, _, label in model.detect(path, conf=0.0005)[::9].tolist():
            x, y = x1 + rng.uniform(0, 0.1) * (x2 - x1), y1
            annotations.append({"id": len(annotations) + 1, "image_id": number + 7, "category_id": int(label),
                                "bbox": [x, y, x2 - x, y2 - y], "area": (x2 - x) * (y2 - y), "iscrowd": 0})  # fmt: skip
    names = [{"id": place, "name": name} for place, name in enumerate(("ring", "triangle", "cross"))]
    truth = folder / "truth.json"
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    (folder / "data.yaml").write_text("val: truth.json\nval_images: images\n")
    told = json.loads(invoke("eval", engine, "--data", "data.yaml", "--conf", 0.0005, "--json").stdout)
    line = (engine, folder / "images", "--coco", "--no-draw", "--conf", 0.0005)
    run(*line, "--as-eval", "-o", "same")
    assert told["ap"] > 0.01
    np.testing.assert_allclose(
        scored(truth, folder / "same/coco.json"), [told["ap"], told["ap50"], told["ap75"]], atol=1e-6
    )
    run(*line, "-o", "use")
    assert len(json.loads((folder / "use/coco.json").read_text())["annotations"]) < told["detections"]
    run(engine, folder / "images", "--coco", "--as-eval", "--no-draw", "-o", "usual")
    measured, used = EvalConfig(), written(folder / "usual")
    for name in ("confidence", "iou", "max_detections"):
        assert used[name] == getattr(measured, name)


def test_every_way_to_name_images(engine: Path, pictures: Path, folder: Path) -> None:
    listed = folder / "list.txt"
    listed.write_text(f"{pictures}/a.jpg\n{pictures}/below/c.jpg\n")
    for places, names in (
        ([pictures / "a.jpg"], {"a.jpg"}),
        ([pictures / "a.*"], {"a.jpg", "a.png"}),
        ([f"{pictures}/**/c.jpg"], {"c.jpg"}),
        ([listed], {"a.jpg", "below/c.jpg"}),
        ([pictures / "below", pictures / "a.png"], {"a.png", "below/c.jpg"}),
    ):
        run(engine, *places, "-o", "out", "--no-draw")  # predictions of before are replaced
        assert {entry["image"] for entry in written(folder / "out")["images"]} == names
        assert files(folder / "out") == {"predictions.json"}
    assert run(engine, pictures, "-o", "out", "--frames", 2)["images"] == 2


def test_an_image_that_several_places_lead_to_is_looked_at_once(pictures: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(pictures)
    for places in (
        ["below", pictures / "below", "below/../below", "a.png"],
        ["a.png", pictures / "a.png", "below/c.jpg", "*/c.jpg"],
    ):
        (source,) = open_sources([str(place) for place in places])
        assert sorted(frame.name for frame in source.frames) == ["a.png", "below/c.jpg"]
        assert source.total == 2


def test_a_path_out_of_a_linked_folder_leads_where_the_system_says(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "inner")
    for folder, level in ((tmp_path, 10), (tmp_path / "far", 200)):
        cv2.imwrite(str(folder / "a.png"), np.full((4, 4, 3), level, np.uint8))
    monkeypatch.chdir(tmp_path)
    (source,) = open_sources(["near/../a.png"])
    assert [int(frame.read().max()) for frame in source.frames] == [200]


def test_a_video_becomes_a_video(engine: Path, video: Path, folder: Path) -> None:
    report = run(engine, video, video, "-o", "out", "--batch", 2, "--txt")
    assert report["images"] == 2 * FRAMES
    assert {path.name for path in (folder / "out/drawn").iterdir()} == {"clip.mp4", "clip-2.mp4"}
    capture = cv2.VideoCapture(str(folder / "out/drawn/clip.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (FRAMES, 10)
    names = [entry["image"] for entry in written(folder / "out")["images"]]
    assert names == [f"{clip}/{number:06d}" for clip in ("clip", "clip-2") for number in range(FRAMES)]
    assert (folder / "out/labels/clip/000003.txt").is_file()


@pytest.mark.parametrize("frames", [1, 2, 40])
def test_a_video_that_has_no_room_is_an_error(frames: int, folder: Path) -> None:
    """OpenCV writes as far as it gets and says nothing."""
    frame, writer = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8), DrawnVideo(Path("v"), 25)
    for place in range(frames):
        writer.add(Prediction(str(place), (120, 160), (), drawn=frame))
    writer.close()
    (video,) = folder.glob("v.*")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (video.stat().st_size // 2, before[1]))
    try:
        writer = DrawnVideo(Path("w"), 25)
        for place in range(frames):
            writer.add(Prediction(str(place), (120, 160), (), drawn=frame))
        with pytest.raises(RepqError, match=rf"of {frames} frames in w\."):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_damaged_frames_are_counted(engine: Path, video: Path, folder: Path) -> None:
    data = bytearray(video.read_bytes())
    start = data.find(b"00dc", data.find(b"00dc", data.find(b"movi")) + 4)  # the second frame: its name, size, content
    size = int.from_bytes(data[start + 4 : start + 8], "little")
    data[start + 8 : start + 8 + size] = bytes(size)
    (folder / "damaged.avi").write_bytes(data)
    report = run(engine, "damaged.avi", "-o", "out", "--no-draw")
    assert report["skipped_count"] >= 1
    assert report["images"] + report["skipped_count"] == FRAMES


def test_two_models_side_by_side(material: Material, engine: Path, pictures: Path, folder: Path) -> None:
    weights = material.files["WEIGHTS"]
    report = run(engine, pictures / "a.jpg", "--compare", weights, "--imgsz", SIZE, "-o", "out", "--conf", 0.0005)
    compared = report["compared"]
    assert (compared["lost"], compared["new"], compared["same"]) == (0, 0, report["boxes"])
    drawn = cv2.imread(str(folder / "out/drawn/a.jpg"))
    assert drawn is not None and drawn.shape[1] > 160
    entry = written(folder / "out")["images"][0]
    assert entry["lost"] == entry["new"] == [] and len(entry["other"]) == len(entry["boxes"])
    other = folder / "other.safetensors"
    from repq.model import build, save_checkpoint

    save_checkpoint(other, build(few_blocks("yolov6lite_s", 4)).eval())
    message = refused(invoke("predict", engine, pictures, "--compare", other, "--imgsz", SIZE))
    assert "other classes" in message


@pytest.mark.parametrize("names", [("cross", "ring", "triangle"), None, ("ring", "triangle", "x"), ("ring",) * 3])
def test_classes_of_two_models_are_matched_by_name(
    names: tuple[str, ...] | None, material: Material, pictures: Path, folder: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights, other = material.files["WEIGHTS"], folder / "other.safetensors"
    with safe_open(str(weights), "pt") as file:
        entries = {**file.metadata(), "repq.names": json.dumps(names)}
    save_file(load_file(weights), other, {key: value for key, value in entries.items() if value != "null"})
    line = ["predict", weights, pictures / "a.jpg", "--compare", other, "--imgsz", SIZE, "--conf", 0.0005, "-o", "out"]
    if names is not None and set(names) != {"cross", "ring", "triangle"}:
        assert "does not know every class" in refused(invoke(*line))
        return
    assert invoke(*line).exit_code == 0
    entry = written(folder / "out")["images"][0]
    own = ("ring", "triangle", "cross")
    expected = [(names or own)[own.index(box["name"])] for box in entry["boxes"]]
    assert [box["name"] for box in entry["other"]] == expected


def test_every_image_has_an_id_of_its_own(tmp_path: Path) -> None:
    names = ["2.jpg", "a.jpg", "1.jpg", "01.jpg", "b.jpg", "2.png", "x/2.jpg", "3.jpg", "\u0663.jpg", "c.jpg"]
    file = CocoFile(tmp_path / "coco.json", ["a"], 1)
    for name in names:
        file.add(Prediction(name, (9, 9), (np.array([[0, 0, 5, 5, 0.5, 0]], np.float32),)))
    file.close()
    coco = json.loads((tmp_path / "coco.json").read_text())
    ids = {image["file_name"]: image["id"] for image in coco["images"]}
    assert len(set(ids.values())) == len(names) == len(ids)
    assert ids["2.jpg"] == 2
    assert [annotation["image_id"] for annotation in coco["annotations"]] == [ids[name] for name in names]


@given(
    names=st.lists(
        st.builds(
            "{}{}{}{}".format,
            *map(st.sampled_from, (["", "x/"], ["a", "a-2"], ["", ".gif", ".jpg", ".txt", ".gif.jpg"])),
            st.sampled_from([".gif", ".jpg", ".png"]),
        ),
        unique=True,
        max_size=12,
    )
)
def test_no_image_takes_the_file_of_another(names: list[str]) -> None:
    with TemporaryDirectory() as folder:
        drawn, labels = DrawnImages(Path(folder) / "drawn"), YoloFiles(Path(folder) / "labels", scores=False)
        for number, name in enumerate(names):
            boxes = np.array([[0, 0, 5, 5, 0.5, number]], np.float32)
            for output in (drawn, labels):
                output.add(Prediction(name, (9, 9), (boxes,), drawn=str(number).encode()))
        written = [path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()]
        assert sorted(int(text.split()[0]) for text in written) == sorted([*range(len(names))] * 2)
        assert all((Path(folder) / "drawn" / name).is_file() for name in names[:1] if not name.endswith(".gif"))


@given(values=st.lists(st.floats(0, 4000, width=32), min_size=4, max_size=4), score=st.floats(0, 1, width=32))
def test_coco_annotations_have_all_digits(values: list[float], score: float) -> None:
    x1, x2, y1, y2 = *sorted(values[:2]), *sorted(values[2:])
    with TemporaryDirectory() as folder:
        file = CocoFile(Path(folder) / "coco.json", ["a"], 1)
        file.add(Prediction("a.jpg", (9, 9), (np.array([[x1, y1, x2, y2, score, 0]], np.float32),)))
        file.close()
        (found,) = json.loads((Path(folder) / "coco.json").read_text())["annotations"]
    x, y, width, height = found["bbox"]
    assert [np.float32(value) for value in (x, y, found["score"])] == [x1, y1, np.float32(score)]
    np.testing.assert_allclose([x + width, y + height], [x2, y2], rtol=1e-8)


BAD_SOURCES = {
    "nothing": lambda folder: "nowhere.jpg",
    "an empty folder": lambda folder: (folder / "empty").mkdir() or "empty",
    "a pattern of nothing": lambda folder: "*.jpeg",
    "text": lambda folder: (folder / "a.xyz").write_text("x") and "a.xyz",
    "no video": lambda folder: (folder / "a.mp4").write_bytes(b"x" * 999) and "a.mp4",
    "an empty video": lambda folder: (folder / "a.mp4").touch() or "a.mp4",
    "a camera that is not there": lambda folder: "97",
    "a stream that does not answer": lambda folder: "rtsp://127.0.0.1:1/x",
    "an image that is none": lambda folder: (folder / "a.png").write_bytes(b"x" * 999) and "a.png",
    "a pipe": lambda folder: os.mkfifo(folder / "a.jpg") or "a.jpg",
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_a_source_that_cannot_be_used(kind: str, engine: Path, folder: Path) -> None:
    make: Callable[[Path], object] = BAD_SOURCES[kind]
    source = make(folder)
    before = sorted(folder.rglob("*"))
    message = refused(invoke("predict", engine, source, "-o", "out"))
    assert "fix:" in message
    assert sorted(folder.rglob("*")) == before


def test_many_images_at_once_give_what_each_gives_alone(material: Material, detector_onnx: Path, folder: Path) -> None:
    assert invoke("build", detector_onnx, "--engine", "openvino", "-o", "engine").exit_code == 0
    rng, model = np.random.default_rng(1), load("engine")
    (folder / "many").mkdir()
    for number in range(40):
        image = rng.integers(0, 256, (48 + number, 64, 3), dtype=np.uint8)
        assert cv2.imwrite(f"many/{number:02d}.png", image)
    run("engine", "many", "--conf", 0.01, "-o", "out")
    rows = written(folder / "out")["images"]
    assert [row["image"] for row in rows] == [f"{number:02d}.png" for number in range(40)]
    for row in rows:
        found = [[*box["box"], box["score"]] for box in row["boxes"]]
        alone = model.detect(f"many/{row['image']}", conf=0.01)
        np.testing.assert_allclose(np.reshape(found, (-1, 5)), alone[:, :5], atol=0.0051)  # they are rounded
    assert any(row["boxes"] for row in rows)


def test_what_is_there_is_not_overwritten(engine: Path, pictures: Path, folder: Path) -> None:
    (folder / "out/labels").mkdir(parents=True)
    (folder / "out/labels/a.txt").write_text("mine")
    line = ("predict", engine, pictures / "a.jpg", "-o", "out", "--txt")
    assert "--force" in refused(invoke(*line))
    assert files(folder / "out") == {"labels/a.txt"}
    assert (folder / "out/labels/a.txt").read_text() == "mine"
    (folder / "out/labels/other.txt").write_text("mine too")
    assert invoke(*line, "--force").exit_code == 0
    assert (folder / "out/labels/other.txt").read_text() == "mine too"
    assert (folder / "out/labels/a.txt").read_text() != "mine"
    (folder / "own").mkdir()
    shutil.copy(pictures / "a.jpg", folder / "own/a.jpg")
    assert "lies in the folder" in refused(invoke("predict", engine, folder / "own", "-o", "own", "--force"))
    assert "is a folder" in refused(invoke("predict", engine, pictures, "-o", "own/a.jpg"))


def test_a_terminal_of_few_letters(detector_onnx: Path, folder: Path) -> None:
    """Class names of any script are printed where the terminal's encoding has none of their letters."""
    import subprocess
    import sys

    model = onnx.load(detector_onnx)
    (names,) = (entry for entry in model.metadata_props if entry.key == "repq.names")
    names.value = json.dumps([f"猫 → Füße {number}" for number in range(3)])
    onnx.save(model, folder / "model.onnx")
    assert invoke("build", "model.onnx", "--engine", "onnxruntime", "-o", "engine").exit_code == 0
    cv2.imwrite(str(folder / "a.png"), np.zeros((64, 64, 3), np.uint8))
    command = [sys.executable, "-m", "repq", "predict", "engine", "a.png", "--conf", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": "latin-1"}
    environment["PYTHONUNBUFFERED"] = ""
    done = subprocess.run(command, capture_output=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("latin-1")
    assert "\\u732b -> Füße" in text
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, cwd=folder)
    assert done.returncode == 2 and b"space" in done.stderr and b"Traceback" not in done.stderr


def test_what_is_no_detector_is_refused(material: Material, pictures: Path, folder: Path) -> None:
    onnx = material.files["build MODEL"]
    assert invoke("build", onnx, "--engine", "onnxruntime", "-o", "other").exit_code == 0
    for model in (onnx, "other"):
        assert "no detector" in refused(invoke("predict", model, pictures, "-o", "out"))


def test_a_program_gets_what_the_command_writes(engine: Path, pictures: Path, video: Path, folder: Path) -> None:
    said: list[str] = []
    model = load(engine, log=said.append)
    run(engine, pictures, video, "--conf", 0.01, "-o", "out")
    written_boxes = {row["image"]: row["boxes"] for row in written(Path("out"))["images"]}
    found = list(model.predict([pictures, str(video)], confidence=0.01))
    assert [one.name for one in found] == list(written_boxes)
    for one in found:
        assert one.drawn().shape == one.image.shape and one.names == model.class_names
        expected = [[*row["box"], row["score"]] for row in written_boxes[one.name]]
        np.testing.assert_allclose(one.boxes[:, :5], np.reshape(expected, (-1, 5)), atol=1e-3)
    assert any("broken.jpg" in line for line in said)
    arrays = [one.image for one in found[:2]]
    for one, same in zip(found, model.predict(arrays, confidence=0.01), strict=False):
        np.testing.assert_array_equal(one.boxes, same.boxes)
    assert len(list(model.predict(video, frames=2))) == 2
