"""The summary reads back from its JSON; wrong files are refused with a reason."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from report_samples import CREATED, ENVIRONMENT, make_summary

from repq.errors import DataError
from repq.report import ReportSummary, read_summary
from repq.report.render import to_json


def test_summary_reads_back_from_its_json() -> None:
    summary = make_summary()
    assert ReportSummary.model_validate_json(summary.model_dump_json()) == summary


def test_infinite_figures_survive_json() -> None:
    summary = make_summary()
    assert summary.check is not None
    exact = summary.check.engines[0].model_copy(update={"snr_db": {"boxes": math.inf}})
    check = summary.check.model_copy(update={"engines": (exact,)})
    ptq = summary.ptq
    assert ptq is not None
    layer = ptq.layers[1].model_copy(update={"weight_channel_ratio": math.inf})
    ptq = ptq.model_copy(update={"layers": (layer, *ptq.layers[1:])})
    summary = summary.model_copy(update={"check": check, "ptq": ptq})
    assert ReportSummary.model_validate_json(summary.model_dump_json()) == summary
    json.loads(to_json(summary), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_summary_is_read_back_from_the_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(to_json(make_summary()), encoding="utf-8")
    assert read_summary(path) == make_summary()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"summary": {"title": "t"}}', '{"summary": 3}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(DataError, match="no report"):
        read_summary(path)
    with pytest.raises(DataError, match="cannot read"):
        read_summary(tmp_path / "absent.json")


def test_only_title_date_and_environment_are_needed() -> None:
    summary = ReportSummary(title="t", created=CREATED, environment=ENVIRONMENT)
    assert summary.ptq is None
    assert summary.engines == ()
