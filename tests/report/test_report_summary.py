"""The summary reads back from its JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from report_samples import CREATED, ENVIRONMENT, make_results, make_summary

from repq.report import ReportSummary
from repq.report.render import to_json


def test_summary_reads_back_from_its_json() -> None:
    summary = make_summary()
    assert ReportSummary.model_validate_json(summary.model_dump_json()) == summary


def test_infinite_figures_survive_json() -> None:
    results = make_results()
    check, ptq = results["check"], results["ptq"]
    exact = check.engines[0].model_copy(update={"snr_db": {"boxes": math.inf}})
    check = check.model_copy(update={"engines": (exact,)})
    layer = ptq.layers[1].model_copy(update={"weight_channel_ratio": math.inf})
    ptq = ptq.model_copy(update={"layers": (layer, *ptq.layers[1:])})
    summary = make_summary(check=check, ptq=ptq)
    assert ReportSummary.model_validate_json(summary.model_dump_json()) == summary
    json.loads(to_json(summary), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_summary_is_read_back_from_the_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(to_json(make_summary()), encoding="utf-8")
    assert ReportSummary.model_validate(json.loads(path.read_text(encoding="utf-8"))["summary"]) == make_summary()


def test_only_title_date_and_environment_are_needed() -> None:
    summary = ReportSummary(title="t", created=CREATED, environment=ENVIRONMENT)
    assert summary.results == {}
