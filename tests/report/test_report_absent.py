"""What could not be measured is a dash in every form, never a number; engines and variants may have any name."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import make_accuracy, make_engine, make_results, make_summary, part

from repq.report import numbers, render_report
from repq.report.blocks import Cell, Table, number, table
from repq.report.comparison import comparisons
from repq.report.findings import findings
from repq.report.sections import sections_of
from repq.report.text import render_text
from repq.results import Accuracy

FORMATS = ("fraction", "change", "percent", "significant", "compact", "times", "mebibytes", "milliseconds", "decibels",
           "gain", "count")  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_writes_what_is_no_number(name: str) -> None:
    write = getattr(numbers, name)
    assert write(None) == write(math.nan) == numbers.ABSENT
    assert (write(math.inf), write(-math.inf)) == ("∞", "−∞")


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats()), max_size=8))
def test_a_cell_sorts_by_a_number_or_not_at_all(values: list[float | None]) -> None:
    made = table("t", [number("x", lambda value: value, numbers.compact)], values)
    for (cell,), value in zip(made.rows, values, strict=True):
        absent = value is None or math.isnan(value)
        assert (cell.text == numbers.ABSENT) == (cell.sort is None) == absent
    assert "nan" not in render_text([made]) and "inf" not in render_text([made])


def test_a_column_that_is_optional_vanishes_with_its_last_value() -> None:
    columns = [number("x", "real", str), number("y", lambda value: value.imag or None, str, optional=True)]
    assert [column.title for column in table("t", columns, [1j, 2 + 0j]).columns] == ["x", "y"]
    assert [column.title for column in table("t", columns, [1 + 0j]).columns] == ["x"]


def empty(accuracy: Accuracy) -> Accuracy:
    return accuracy.model_copy(update={"ap": 0.0, "ap50": 0.0, "ap75": 0.0, "objects": 0})


def test_without_objects_there_is_no_ap(tmp_path: Path) -> None:
    nothing = empty(make_accuracy(0.3, classes=("a", "b")))
    summary = part(eval={"openvino-float32": nothing, "openvino-int8": nothing})
    paths = render_report(summary, tmp_path)
    rows = [cells for section, blocks in sections_of(summary) if section.name == "accuracy" for cells in first(blocks)]
    assert len(rows) == 2
    for row in rows:
        assert row[2].text == numbers.ABSENT and len(row) == 4  # no column that holds nothing but dashes
        assert row[2].hint == "the data has no such object"
    assert "0.0000" not in paths["md"].read_text(encoding="utf-8").split("By class")[0]


def first(blocks: object) -> list[list[Cell]]:
    return next(list(block.rows) for block in blocks if isinstance(block, Table))  # type: ignore[attr-defined]


def test_a_runtime_that_does_not_tell_its_layers_has_no_counts(tmp_path: Path) -> None:
    check = make_results()["check"]
    row = check.engines[0].model_copy(update={"int8_layers": None, "float_layers": None})
    check = check.model_copy(update={"engines": (row,)})
    page = render_report(part(check=check), tmp_path)["html"].read_text(encoding="utf-8")
    assert len(re.findall(r'title="the runtime does not tell">–<', page)) == 2


@pytest.mark.parametrize(
    ("passed", "min_snr_db", "level", "words"),
    [
        (True, 30.0, "warn", "AP cannot tell"),
        (True, None, "warn", "were not compared"),
        (False, 60.0, "bad", "the lowest SNR is 48.0 dB"),
        (False, None, "bad", "AP cannot tell"),
    ],
)
def test_a_reference_that_finds_nothing_hides_no_verdict(
    passed: bool, min_snr_db: float | None, level: str, words: str
) -> None:
    check = make_results()["check"]
    rows = tuple(row.model_copy(update={"ap_gap": None, "snr_db": {"boxes": 48.0}}) for row in check.engines)
    check = check.model_copy(update={"engines": rows, "passed": passed, "min_snr_db": min_snr_db})
    found = [entry for entry in findings(part(check=check), ()) if "simulation" in entry.text]
    assert [entry.level for entry in found] == [level] and words in found[0].text


@pytest.mark.parametrize("engine", ["your_engine", "my-engine", "onnxruntime"])
@pytest.mark.parametrize("variant", ["int8", "int8_float16", "int4"])
def test_engines_and_variants_of_any_name(engine: str, variant: str, tmp_path: Path) -> None:
    name = f"{engine}-{variant}"
    built = {name: make_engine(engine, "int8", 1_234_567)}
    paths = render_report(part(eval={name: make_accuracy(0.2345)}, build=built), tmp_path)
    for form in ("html", "md"):
        text = paths[form].read_text(encoding="utf-8")
        assert "0.2345" in text and "1.18 MiB" in text
        assert engine in text or engine == "onnxruntime"


@pytest.mark.parametrize("loss", [0.001, 0.1])
def test_a_gap_to_the_simulation_of_an_engine_that_holds_is_a_warning(loss: float) -> None:
    results = make_results()
    check = results["check"]
    rows = tuple(row.model_copy(update={"ap_gap": 0.009}) for row in check.engines)
    check = check.model_copy(update={"engines": rows, "passed": False})
    summary = make_summary(check=check)
    judged = tuple(
        replace(entry, int8_accuracy=entry.float_accuracy.model_copy(update={"ap": entry.float_accuracy.ap - loss}))
        for entry in comparisons(summary)
        if entry.float_accuracy is not None
    )
    assert judged
    [found] = [entry for entry in findings(summary, judged) if "torch's simulation" in entry.text]
    assert found.level == ("warn" if loss < 0.005 else "bad") and "+0.0090" in found.text
