"""Timings of several machines side by side, and published figures beside what was measured of the same models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from report_samples import CREATED, ENVIRONMENT

from repq.cli import main
from repq.model import family_named
from repq.report import ReportSummary, render_report
from repq.results import BenchReport, BenchRow, GpuReadings, ServiceRow

READINGS = GpuReadings(
    sm_clock_mhz=1005, sm_clock_range_mhz=(1005, 1005), max_sm_clock_mhz=1590, power_w=68.4, power_limit_w=70,
    temperature_c=61, limited_by=("power limit",), samples=40,
)  # fmt: skip


def row(**changes: object) -> BenchRow:
    values = {
        "model": "s.onnx", "engine": "tensorrt", "variant": "float16", "precision": "float16", "batch": 1, "threads": 1,
        "scope": "infer", "latency_ms_median": 4.0, "latency_ms_p95": 4.4, "images_per_s": 250.0, "runs": 50,
        "size_bytes": 10**7, "spec": "yolov6s_v2_opt", "device_ms_median": 3.1, "device_graph_ms_median": 2.9,
        "gpu": READINGS,
    }  # fmt: skip
    return BenchRow.model_validate(values | changes)


def service(loader: str) -> ServiceRow:
    return ServiceRow(
        model="s.onnx", engine="tensorrt", variant="float16", precision="float16", size_bytes=10**7,
        loader=loader, letterbox="host", nms="graph", batch=1,
        threads=2, images=64, decode_ms=5.125, preprocess_ms=1.375, infer_ms=4.5, postprocess_ms=0.25,
        images_per_s=88.9, overlapped_images_per_s=151.0, bottleneck="decode", bottleneck_share=0.456,
    )  # fmt: skip


def bench(*rows: BenchRow, gpu: str | None = None, imgsz: tuple[int, int] = (640, 640), **more: object) -> BenchReport:
    environment = ENVIRONMENT.model_copy(update={"gpu": gpu})
    return BenchReport(rows=rows, environment=environment, imgsz=imgsz, rounds=3, **more)


def text_of(folder: Path, *benches: tuple[str, BenchReport], single: bool = False) -> str:
    summary = ReportSummary(
        title="T", created=CREATED, environment=ENVIRONMENT,
        results={"bench": benches[0][1] if single else None, "machines": dict(benches)},
    )  # fmt: skip
    return render_report(summary, folder)["md"].read_text()


def line(text: str, *parts: str) -> str:
    return next(line for line in text.splitlines() if all(part in line for part in parts))


def test_measured_stands_beside_published(tmp_path: Path) -> None:
    gpu, cpu = bench(row(), gpu="Imaginary T4"), bench(row(variant="float32", device_ms_median=None, gpu=None))
    text = text_of(tmp_path, ("one", gpu), ("two", cpu))
    for table, published in (("17", 377), ("18", 362)):
        found = line(text, "yolov6s_v2", "FP16", f"| {table} (T4", f"| {published} |")
        assert "| one: TensorRT | 250 |" in found and f"{250 / published:.2f}" in found
    assert "not measured" in line(text, "yolov6n_v2", "810")
    assert "Imaginary T4" in line(text, "| one |", "held at 1005 MHz, 68 W", "| 2.90 |")
    assert ENVIRONMENT.cpu in line(text, "| two |", "FP32")


@pytest.mark.parametrize("other", [{"spec": "yolov6n"}, {"batch": 8}, {"variant": "float32"}, {"spec": None}])
def test_only_the_same_is_set_beside(tmp_path: Path, other: dict[str, object]) -> None:
    text = text_of(tmp_path, ("one", bench(row(**other))))
    assert "one: TensorRT" not in text
    assert "one: TensorRT" not in text_of(tmp_path, ("one", bench(row(), imgsz=(320, 320))))


@pytest.mark.parametrize("crowded", [(False, False), (True, False), (False, True), (True, True)])
def test_a_disturbed_machine_is_named_and_has_no_ratio(tmp_path: Path, crowded: tuple[bool, bool]) -> None:
    machines = {name: bench(row(), others=0.75, crowded=busy) for name, busy in zip("ab", crowded, strict=True)}
    text = text_of(tmp_path, *machines.items())
    page = (tmp_path / "report.html").read_text()
    for name, busy in zip("ab", crowded, strict=True):
        warning = f"{name}: Other processes kept 0.8 of {ENVIRONMENT.cores} cores busy meanwhile: no latency and no "
        assert (warning in text, warning in page) == (busy, busy)
        assert line(text, f"| {name}: TensorRT | 250 |").endswith("| – |") == busy


def test_all_that_was_timed_on_several_machines_is_there(tmp_path: Path) -> None:
    rows = [row(threads=threads, scope=scope) for threads in (1, 2) for scope in ("infer", "end_to_end")]
    machines = {name: bench(*rows, gpu=name * 3, service=(service(f"decoder {name}"),)) for name in "ab"}
    text = text_of(tmp_path, *machines.items())
    for name in machines:
        for threads in (1, 2):
            for scope in ("inference", "end to end"):
                assert f"| {scope} | 1 | {threads} | 4.00 |" in line(
                    text, f"| {name} |", f"| {scope} | 1 | {threads} |"
                )
        assert f"JPEG to boxes on {name}" in text and line(text, f"decoder {name}", "| 5.12 |")
    assert "aaa, bbb" in line(text, "| Machine | ")


def test_every_published_row_is_there_once(tmp_path: Path) -> None:
    text = text_of(tmp_path, ("one", bench(row(spec=None))))
    family = family_named("yolov6")
    assert text.count("not measured |") == len(family.published) == 12
    assert family.architecture("yolov6s_v2_opt") == family.architecture("yolov6s_v2_hs") == "yolov6s_v2"


def test_steps_and_device_times_of_one_machine(tmp_path: Path) -> None:
    report = bench(row(), service=(service("opencv"), service("dali (gpu)")))
    text = text_of(tmp_path, ("one", report), single=True)
    assert "1005 … 1005" in line(text, "| 4.00 | 3.10 | 2.90 |", "68.4 of 70.0", "power limit")
    found = line(text, "dali (gpu)", "| 5.12 | 1.38 | 4.50 | 0.250 |")
    assert "decode, 45.6" in found or "decode, 46" in found
    html = (tmp_path / "report.html").read_text()
    assert "JPEG to boxes" in html and "postprocess" in html


def test_the_command_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bench.json").write_text(bench(row()).model_dump_json())
    arguments = ["report", str(tmp_path / "a"), str(tmp_path / "b" / "bench.json"), "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| a |" in text and "| b |" in text
    (tmp_path / "c.json").write_text('{"rows": 3}')
    for wrong in ("c.json", "nothing.json"):
        result = CliRunner().invoke(main, ["report", str(tmp_path / wrong), "-o", str(tmp_path / "other")])
        assert result.exit_code == 2 and "bench.json" in result.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("place", ["rows", "service", "environment", "gpu"])
def test_a_file_with_a_figure_that_is_none_is_refused(tmp_path: Path, place: str, value: str) -> None:
    values = json.loads(bench(row(), service=(service("opencv"),)).model_dump_json())
    (of,) = values[place] if place in ("rows", "service") else [values.get(place) or values["rows"][0]["gpu"]]
    for name in [name for name, found in of.items() if type(found) is float]:
        changed = json.dumps(values).replace(f'"{name}": {json.dumps(of[name])}', f'"{name}": {value}')
        assert value in changed
        (tmp_path / "bench.json").write_text(changed)
        result = CliRunner().invoke(main, ["report", str(tmp_path), "-o", str(tmp_path / "out")])
        assert (result.exit_code, name in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "out").exists()


def test_every_file_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / name for name in ("x/a", "y/a", "x/a (2)", "here/below")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "bench.json").write_text(bench(row()).model_dump_json())
    monkeypatch.chdir(folders[-1])
    arguments = [*map(str, folders[:-1]), ".", "../below/bench.json"]
    result = CliRunner().invoke(main, ["report", *arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    machines = json.loads((tmp_path / "out" / "report.json").read_text())["summary"]["results"]["machines"]
    assert len(machines) == len(arguments) and all(machines)
    assert sum(name.startswith("below") for name in machines) == 2


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime-gpu"])
def test_the_version_of_every_runtime_is_told_whatever_its_package(package: str, tmp_path: Path) -> None:
    libraries = {package: "1.31.1", "opencv-python-headless": "5.0.0", "onnx": "1.23.2"}
    rows = [row(engine=engine, model=engine) for engine in ("onnxruntime", "opencv")]
    report = bench(*rows)
    environment = report.environment.model_copy(update={"libraries": libraries})
    text = text_of(tmp_path, ("one", report.model_copy(update={"environment": environment})))
    assert line(text, "| one | ").endswith(f"| {package} 1.31.1, opencv-python-headless 5.0.0 |")
