"""A toy section, and the result of a toy stage, defined here and added to the list: they are in every form."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from repq.machine.environment import capture_environment
from repq.report import Key, ReportSummary, Section, render_report
from repq.report.blocks import Block, Column, Columns, Figure, Text, number, table
from repq.report.numbers import decibels
from repq.report.sections import SECTIONS
from repq.report.text import render_text
from repq.results import Result


class Toy(Result):
    name: str
    loudness_db: float | None
    why: str = ""


class ToyReport(Result):
    toys: tuple[Toy, ...]


TOYS = Key("toys", ToyReport)
COLUMNS: Columns[Toy] = (
    Column("Toy", "name"),
    number("Loudness, dB", "loudness_db", decibels, note=lambda toy: toy.why),
)


def toy_blocks(summary: ReportSummary) -> list[Block]:
    toys = summary[TOYS].toys
    drawing = Figure("How loud", lambda: "<svg><title>loud</title></svg>", "a picture of noise", file="loud.svg")
    return [Text(f"{len(toys)} toys were shaken."), drawing, table("Toys", COLUMNS, toys)]


TOY_SECTION = Section("toys", "Toys", toy_blocks, needs=(TOYS,))
REPORT = ToyReport(
    toys=(
        Toy(name="rattle <1>", loudness_db=63.25),
        Toy(name="bear", loudness_db=None, why="it makes no sound"),
        Toy(name="void", loudness_db=float("inf")),
        Toy(name="broken", loudness_db=float("nan")),
    )
)


@pytest.fixture(autouse=True)
def toy_section() -> Iterator[None]:
    SECTIONS.append(TOY_SECTION)
    yield
    SECTIONS.remove(TOY_SECTION)


def summary(**results: object) -> ReportSummary:
    return ReportSummary(title="t", created="2026-01-31", environment=capture_environment(), results=results)


def test_it_is_in_every_form(tmp_path: Path) -> None:
    paths = render_report(summary(toys=REPORT), tmp_path)
    page = html.unescape(paths["html"].read_text(encoding="utf-8"))
    markdown = paths["md"].read_text(encoding="utf-8")
    for text in (
        page,
        markdown.replace("&lt;", "<").replace("&gt;", ">"),
        render_text(toy_blocks(summary(toys=REPORT))),
    ):
        assert "4 toys were shaken." in text
        assert "rattle <1>" in text and "63.2" in text
    assert '<section id="toys">' in page and '<a href="#toys">Toys</a>' in page
    assert "## Toys" in markdown and "| bear | – |" in markdown
    assert "<svg><title>loud</title></svg>" in page and (tmp_path / "loud.svg").is_file()
    values = json.loads(paths["json"].read_text(encoding="utf-8"))
    assert values["summary"]["results"]["toys"]["toys"][0] == {"name": "rattle <1>", "loudness_db": 63.25, "why": ""}


def test_what_was_not_measured_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    page = render_report(summary(toys=REPORT), tmp_path)["html"].read_text(encoding="utf-8")
    assert '<td class="n " title="it makes no sound">–</td>' in page
    assert '<td class="n " data-sort="Infinity">∞</td>' in page
    assert "nan" not in page.lower().split('<section id="toys">')[1].split("</section>")[0]


def test_without_its_result_it_is_left_out(tmp_path: Path) -> None:
    assert "toys" not in render_report(summary(), tmp_path)["html"].read_text(encoding="utf-8")


def test_its_result_reads_back_and_is_checked() -> None:
    whole = summary(toys=REPORT.model_copy(update={"toys": REPORT.toys[:3]}))
    assert ReportSummary.model_validate_json(whole.model_dump_json()) == whole
    with pytest.raises(ValidationError, match="toys"):
        summary(toys=3)


def test_a_result_that_no_section_knows_is_in_the_json(tmp_path: Path) -> None:
    values = json.loads(render_report(summary(other=REPORT), tmp_path)["json"].read_text(encoding="utf-8"))
    assert values["summary"]["results"]["other"]["toys"][1]["name"] == "bear"
