"""The summary reads back from its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from report_samples import CREATED, ENVIRONMENT, make_results, make_summary

from repq.report import ReportSummary
from repq.report.render import to_json
from repq.report.sections import SECTIONS
from repq.results import BenchRow, MachineLoad


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


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def unmarked_times(annotation: Any) -> set[str]:
    """Times in ms of which the result does not say what else the machine did."""
    found: set[str] = set()
    for model in models_in(annotation):
        if not issubclass(model, MachineLoad):
            found |= {f"{model.__name__}.{name}" for name in model.model_fields if "ms" in name.split("_")}
            found = found.union(*(unmarked_times(field.annotation) for field in model.model_fields.values()))
    return found


def test_every_time_is_in_a_result_that_says_what_else_the_machine_did() -> None:
    assert "BenchRow.latency_ms_median" in unmarked_times(dict[str, BenchRow])
    keys = [key for section in SECTIONS for key in (*section.needs, *section.uses)]
    assert {key.stage: unmarked_times(key.type) for key in keys} == {key.stage: set() for key in keys}
