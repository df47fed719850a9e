"""Profiles name the model's own layers, in every runtime that tells."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from few_blocks import give_few_blocks
from hypothesis import given
from hypothesis import strategies as st

from repq import build_model
from repq.api.profiling import _mean_run, chrome_trace, nsight_lines, profiled
from repq.cli import main
from repq.engine import ENGINES, availability
from repq.report.text import profile_table
from repq.results import ProfileReport

SIZE = (64, 64)
with pytest.MonkeyPatch.context() as patch:
    give_few_blocks(patch, "yolov6n_v2")
    MODEL = build_model("yolov6n_v2", 3)
ON_CPU = [entry.name for entry in ENGINES if not entry.on_gpu and entry.name != "opencv"]  # which does not tell


@pytest.mark.parametrize(("engine", "fused"), [("torch", True), *((name, False) for name in ("torch", *ON_CPU))])
def test_layers_of_the_profile_are_the_models(engine: str, fused: bool) -> None:
    if engine not in {row.runtime for row in availability() if row.usable}:
        pytest.skip(f"{engine} is not here")
    report = profiled(MODEL.fuse() if fused else MODEL, SIZE, engine=engine, runs=2)
    named = {node.layer for node in report.nodes} - {None}
    assert named <= set(MODEL.layers)
    assert len(named) >= 0.9 * len(MODEL.layers)  # a runtime may take a layer and its neighbour as one
    assert all(node.ms >= 0 for node in report.nodes)
    assert any(node.layer is None for node in report.nodes)  # pooling, resizing
    events = [event for event in chrome_trace(report)["traceEvents"] if event["ph"] == "X"]
    assert sum(event["dur"] for event in events) == pytest.approx(1e3 * report.nodes_ms)
    assert all(before["ts"] <= after["ts"] for before, after in pairwise(events))


def test_a_process_that_computes_beside_the_model_is_told_of() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        report = profiled(MODEL, SIZE, engine="onnxruntime", runs=100)
        child.kill()
    assert report.others is not None and report.others > 0.25
    assert report.crowded and "is to be trusted" in " ".join(profile_table(report).split())


def test_torch_tells_every_operator_in_the_order_of_execution() -> None:
    report = profiled(MODEL.fuse(), SIZE, runs=3)
    pools = [place for place, node in enumerate(report.nodes) if "pool" in node.name]
    layers = {node.layer: place for place, node in enumerate(report.nodes) if node.layer}
    assert len(pools) == 3  # those of SPPF, each a node of its own, between its two convolutions
    assert layers["backbone.ERBlock_5.2.sppf.cv1.block.conv"] < min(pools)
    assert max(pools) < layers["backbone.ERBlock_5.2.sppf.cv2.block.conv"]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), st.integers(1, 4), st.booleans(), st.randoms())
def test_the_mean_run_takes_as_long_as_the_runs_on_average(names, runs: int, shuffled: bool, random) -> None:
    every = names * runs
    if shuffled:
        random.shuffle(every)
    spent = [random.random() for _ in every]
    found = _mean_run(every, spent, runs)
    assert sum(ms for _, ms in found) == pytest.approx(sum(spent) / runs)
    if not shuffled:
        assert [name for name, _ in found] == names


@pytest.mark.parametrize("batch", [1, 2])
def test_the_command_writes_tables_plot_and_trace(tmp_path: Path, batch: int) -> None:
    path = MODEL.export(tmp_path / "tiny.onnx", imgsz=64, batch=batch).path
    out = tmp_path / "profile"
    result = CliRunner().invoke(
        main, ["profile", str(path), "--batch", str(batch), "--runs", "2", "--threads", "1", "-o", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    report = ProfileReport.model_validate_json((out / "profile.json").read_text())
    assert (report.engine, report.batch, report.runs) == ("onnxruntime", batch, 2)
    assert json.loads((out / "trace.json").read_text())["traceEvents"]
    page = (out / "report.html").read_text()
    assert "Slowest layers" in page and MODEL.layers[0] in page


def test_nsight_is_named_only_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nsight_lines(["python", "-m", "repq"], tmp_path) == ()
    (tmp_path / "nsys").write_text("#!/bin/sh\n")
    (tmp_path / "nsys").chmod(0o755)
    trace, stats = nsight_lines(["python", "-m", "repq"], tmp_path / "a b")
    assert trace.startswith(str(tmp_path / "nsys")) and trace.endswith("python -m repq") and "'" in trace
    assert stats.endswith(".nsys-rep'")
