"""A graph pass is one entry: an export runs it, says what it did, and the report shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
import pytest
from click.testing import CliRunner

from repq.cli import main
from repq.graph import load_onnx
from repq.graph.passes import PASSES, GraphPass, Outcome, PassContext
from repq.machine.environment import capture_environment
from repq.report import ReportSummary, render_report
from repq.results import ExportReport


def _copy_output(graph: Any, _: PassContext) -> Outcome:
    output = graph.outputs[0]
    inner = gs.Variable("inner", output.dtype, output.shape)
    output.inputs[0].outputs = [inner]
    graph.nodes.append(gs.Node("Identity", "toy", {}, [inner], [output]))
    return Outcome(reasons=("the input was not copied",))


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    PASSES.append(
        GraphPass("toy", "A copy of the output", lambda context: context.config.target == "opencv", _copy_output)
    )
    yield
    PASSES.pop()


def test_an_export_runs_it_where_it_is_wanted_and_the_report_shows_it(
    tiny: Path, tmp_path: Path, repq: Callable[..., dict]
) -> None:
    export = ("export", tiny / "weights.safetensors", "-o", tmp_path / "toy.onnx", "--imgsz", 64)
    plain, toy = repq(*export), repq(*export, "--target", "opencv")
    assert [entry["name"] for entry in plain["passes"]] == []
    assert [(entry["name"], entry["changed"]) for entry in toy["passes"]] == [("toy", True)]
    assert load_onnx(tmp_path / "toy.onnx").graph.node[-1].name == "toy"
    text = CliRunner().invoke(main, [*map(str, export), "--target", "opencv"]).output
    assert "graph passes: A copy of the output" in text
    assert "the input was not copied" in text
    report = ExportReport.model_validate({key: value for key, value in toy.items() if key != "format"})
    summary = ReportSummary(
        title="t", created="2026-01-31", environment=capture_environment(), results={"export": report}
    )
    for form in ("html", "md"):
        assert "A copy of the output" in render_report(summary, tmp_path)[form].read_text(encoding="utf-8")
