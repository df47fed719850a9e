"""The report of a pruning: every figure of the sweep in every form, and what zeros do not gain."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_samples import make_summary

from repq.report import ReportSummary, render_report
from repq.report.sections.pruning import pruned_to
from repq.report.summary import PRUNE
from repq.report.text import prune_table
from repq.results import PrunedGroup, PruneReport, SweptGroup


def swept(*losses: float) -> tuple[SweptGroup, ...]:
    return tuple(
        SweptGroup(left=32 - 8 * number, loss=loss, macs_saved=0.01 * number)
        for number, loss in enumerate(losses, start=1)
    )


def report(**changes: Any) -> PruneReport:
    groups = (
        PrunedGroup(layers=("backbone.stem", "backbone.block.0"), before=32, after=16, sweep=swept(0.01234, 0.0456)),
        PrunedGroup(layers=("neck.reduce",), before=32, after=32, sweep=swept(0.0, 7.891)),
        PrunedGroup(layers=("head.stem",), before=8, after=8),
    )
    values = {
        "model": "yolov6n", "importance": "l2", "groups": groups, "fixed": 9, "macs_before": 10**9,
        "macs_after": 7 * 10**8, "parameters_before": 4_000_000, "parameters_after": 3_000_000,
    }  # fmt: skip
    return PruneReport(**{**values, **changes})


def summary(found: PruneReport) -> ReportSummary:
    return make_summary().model_copy(update={"results": {"prune": found}, "manifests": ()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    render_report(summary(report()), folder)
    return folder


def test_every_trial_of_the_sweep_is_in_both_forms(folder: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert all(f"{value:.4g}" in text for value in (0.01234, 0.0456, 7.891))
        assert "backbone.stem and 1 more" in text and "70.0 %" in text
        assert "All 4 trials of the sweep" in text and "Pruned groups (1 of 3)" in text
    values = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert ReportSummary.model_validate(values["summary"])[PRUNE] == report()


def test_the_drawing_is_a_file_that_names_the_groups_that_were_tried(folder: Path) -> None:
    drawing = ElementTree.fromstring((folder / "pruning-sweep.svg").read_text(encoding="utf-8"))
    titles = {title.text for title in drawing.iter("{http://www.w3.org/2000/svg}title")}
    assert {"1: backbone.stem + backbone.block.0", "2: neck.reduce"} <= titles
    assert not any("head.stem" in (title or "") for title in titles)
    assert "](pruning-sweep.svg)" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_sweep_in_which_nothing_costs_anything_is_drawn_too(tmp_path: Path) -> None:
    groups = tuple(group.model_copy(update={"sweep": swept(0.0)}) for group in report().groups)
    render_report(summary(report(groups=groups)), tmp_path)
    assert (tmp_path / "pruning-sweep.svg").is_file()


def test_zeros_are_said_to_gain_no_latency(tmp_path: Path) -> None:
    found = report(groups=(), zeros=0.6, macs_after=10**9, parameters_after=4_000_000)
    render_report(summary(found), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for form in (text, prune_table(found)):
        assert re.search(r"60\.0 % of the weights are zero.*gain no latency", form.replace("\n", " "))
    assert "Pruned groups" not in text


@pytest.mark.parametrize("macs", [9, 34_567, 10**6, 10**9, 10**12])
def test_models_of_every_size_have_figures_that_tell_them_apart(macs: int) -> None:
    found = pruned_to(report(macs_before=macs, macs_after=macs * 2 // 3))
    left, whole = map(float, re.match(r"([\d.]+) of ([\d.]+) million", found).groups())  # type: ignore[union-attr]
    assert whole == pytest.approx(macs / 1e6, rel=5e-3) and left == pytest.approx(macs * 2 // 3 / 1e6, rel=5e-3)
