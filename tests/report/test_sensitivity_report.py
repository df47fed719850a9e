"""The report of a measurement: complete in its three forms, with drawings that stand alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_samples import LAYERS, part
from sensitivity_samples import KEPT, make_plan, make_sensitivity, make_sensitivity_summary

from repq.report import ReportSummary, render_report
from repq.report.plots import training_losses
from repq.report.summary import SENSITIVITY
from repq.report.text import sensitivity_table
from repq.results import EpochRow

DRAWINGS = ("measures.svg", "correlation.svg", "seconds.svg", "plans-tried.svg", "front.svg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    render_report(make_sensitivity_summary(), folder)
    return folder


def test_every_figure_is_in_both_forms(folder: Path) -> None:
    summary = make_sensitivity_summary()
    measured = summary[SENSITIVITY]
    rows = measured.layers
    wanted = {f"{row.head.snr_db:.1f}" for row in rows if row.head} | {f"{row.ap_only_float:.4f}" for row in rows}
    wanted |= {"3.25", "1234", "4.22", "9.44", "96.1", "0.0123", "∞"} | set(LAYERS)
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert not [figure for figure in wanted if figure not in text], name
        assert all(text.count(layer) >= 2 for layer in KEPT)
    values = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert ReportSummary.model_validate(values["summary"]) == summary


def test_drawings_are_files_of_their_own_that_markdown_shows(folder: Path) -> None:
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    for name in DRAWINGS:
        drawing = ElementTree.fromstring((folder / name).read_text(encoding="utf-8"))
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        used = set(re.findall(r"var\((--[\w-]+)\)", (folder / name).read_text()))
        style = drawing.findtext("{http://www.w3.org/2000/svg}style") or ""
        assert used and all(f"{variable}:" in style for variable in used)
        assert f"]({name})" in markdown
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == len(DRAWINGS)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_the_pointer_gets_a_layers_name_and_the_page_the_command_that_uses_the_plan(tmp_path: Path) -> None:
    summary = make_sensitivity_summary().model_copy(update={"plan_command": "repq ptq x --plan <y>"})
    render_report(summary, tmp_path)
    drawing = ElementTree.fromstring((tmp_path / "measures.svg").read_text(encoding="utf-8"))
    titles = [title.text for title in drawing.iter("{http://www.w3.org/2000/svg}title")]
    assert titles[: len(LAYERS)] == [f"{place}: {layer}" for place, layer in enumerate(LAYERS, start=1)]
    page = re.sub(r"</?span[^>]*>", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "<code>repq ptq x --plan &lt;y&gt;</code>" in page


def test_a_budget_that_is_not_held_is_marked(tmp_path: Path, folder: Path) -> None:
    render_report(make_sensitivity_summary(holds=False), tmp_path)
    assert "no plan tried holds it" in (tmp_path / "report.md").read_text()
    assert "no plan tried holds it" not in (folder / "report.md").read_text()


def test_a_measurement_of_little_gives_what_it_has(tmp_path: Path) -> None:
    bare = [row.model_copy(update={"neck": None, "head": None, "ap_only_int8": None, "ap_only_float": None})
            for row in make_sensitivity().layers]  # fmt: skip
    changes = {
        "layers": tuple(bare),
        "ap_float": None,
        "ap_int8": None,
        "ap_images": {},
        "correlations": {},
        "notes": (),
    }
    measured = make_sensitivity().model_copy(update=changes)
    render_report(part(sensitivity=measured), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "SNR, dB: local" in text and "SNR, dB: head" not in text and "AP, only" not in text
    assert not (tmp_path / "correlation.svg").exists()


def test_the_terminal_shows_the_same(folder: Path) -> None:
    text = sensitivity_table(make_sensitivity(), make_plan())
    assert all(layer in text for layer in LAYERS)
    assert f"3 of {len(LAYERS)} layers stay in float" in text
    assert "*4.22 ms" in text and "6.33" not in text  # a plan that another one beats is left out


def test_a_plan_that_was_chosen_by_snr_says_what_it_gains() -> None:
    plan = make_plan().model_copy(update={"snr_db": 23.54, "snr_db_int8": 15.0, "images": 8, "drop": None})
    assert "15.0 to 23.5 dB on 8 images" in " ".join(sensitivity_table(make_sensitivity(), plan).split())
    assert "SNR of boxes" not in sensitivity_table(make_sensitivity(), make_plan())


def test_negative_correlations_have_the_minus_of_all_figures(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| −0.33 |" in text and "| -0.33 |" not in text


def test_epochs_are_whole_numbers_on_the_axis() -> None:
    """Of twenty, matplotlib marks every second and a half by itself."""
    epochs = [EpochRow.model_construct(epoch=epoch, losses={"total": 1 / epoch}) for epoch in range(1, 21)]
    labels = re.findall(r">([0-9.]+)</text>", training_losses(epochs))
    assert labels and not {"2.5", "7.5", "12.5", "17.5"} & set(labels)
