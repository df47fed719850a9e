"""The three forms: complete, alone, safe against names, the same bytes for the same run."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import (
    CLASSES,
    CREATED,
    ENVIRONMENT,
    HOSTILE,
    LAYERS,
    MANIFESTS,
    STRAYED,
    make_results,
    make_summary,
    part,
)

from repq.report import ReportSummary, render_report
from repq.report.html import _code_spans
from repq.report.numbers import change, compact, decibels, fraction, mebibytes, significant
from repq.report.sections import sections_of
from repq.report.summary import BENCH, BUILD, CHECK, EVAL, FUSE, PTQ, SIZES, TRAIN

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that tags close in order and ids are unique."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "xlink:href"):
                self.links.append(value or "")
            if name in ("src", "srcset", "data", "action"):
                self.sources.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    paths = render_report(make_summary(), folder / "new")
    assert sorted(paths) == ["html", "json", "md"]
    return folder / "new"


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def markdown(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def figures(summary: ReportSummary) -> set[str]:
    """Every figure that was measured, as the report writes it."""
    ptq, bench, check, fusion, training = (summary[key] for key in (PTQ, BENCH, CHECK, FUSE, TRAIN))
    found: set[str] = set()
    for accuracy in summary[EVAL].values():
        found |= {fraction(accuracy.ap), fraction(accuracy.ap50), fraction(accuracy.ap75), fraction(accuracy.ap_small)}
        found |= {fraction(value) for row in accuracy.per_class for value in (row.ap, row.ap50)}
    for layer in ptq.layers:
        found |= {compact(value) for value in (*layer.weight_range, *layer.activation_range, layer.activation_scale)}
        found |= {decibels(layer.weight_snr_db), decibels(layer.activation_snr_db), significant(layer.macs / 1e6)}
        found.add(significant(layer.weight_channel_ratio))
    for row in bench.rows:
        found |= {significant(v) for v in (row.latency_ms_median, row.latency_ms_p95, row.images_per_s)}
    for block in fusion.blocks:
        found |= {compact(block.max_abs_error), compact(block.max_rel_error)}
        found |= {compact(value) for value in (*block.weight_range_before, *block.weight_range_after)}
    for agreement in check.engines:
        found |= {change(agreement.ap_gap), *map(decibels, agreement.snr_db.values())}
        found |= set(map(compact, agreement.max_abs_error.values()))
    for epoch in training.epochs:
        found |= {*map(compact, epoch.losses.values()), compact(epoch.learning_rate), fraction(epoch.ap)}
    found |= {mebibytes(size) for size in summary[SIZES].values()}
    found |= {mebibytes(built.size_bytes) for built in summary[BUILD].values()}
    found |= set(ENVIRONMENT.libraries.values()) | {ENVIRONMENT.cpu, ENVIRONMENT.python} | set(LAYERS)
    return found


def test_html_and_markdown_hold_every_figure(page: str, markdown: str) -> None:
    for text in (html.unescape(page), markdown):
        assert [figure for figure in sorted(figures(make_summary())) if figure not in text] == []


def test_html_is_well_formed_and_stands_alone(page: str) -> None:
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "link" not in parsed.tags
    assert all(link[1:] in parsed.ids for link in parsed.links if link.startswith("#"))
    assert all(link.startswith("#") for link in parsed.links)
    assert all(source.startswith("data:image/jpeg;base64,") for source in parsed.sources)
    assert "://" not in page
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert "default-src 'none'" in page


def test_names_are_escaped(page: str, markdown: str) -> None:
    assert HOSTILE in CLASSES
    assert "<b>" not in page
    assert html.escape(HOSTILE, quote=False) in page
    assert "<b>" not in re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)


def test_a_hostile_title_and_manifest_do_nothing(tmp_path: Path) -> None:
    text = "</title></pre><script>alert(1)</script>"
    summary = ReportSummary(
        title=text, created=CREATED, environment=ENVIRONMENT, manifests=({"stage": text, "x": "``` </details>"},)
    )
    paths = render_report(summary, tmp_path)
    assert Page(paths["html"].read_text()).tags.count("script") == 1
    assert "````json" in paths["md"].read_text()


def test_markdown_tables_are_well_formed(markdown: str) -> None:
    plain = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    tables = re.findall(r"(?:^\|.*\|\n?)+", plain, flags=re.MULTILINE)
    assert len(tables) > 8
    for table in tables:
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.strip().split("\n")]
        assert {len(line) for line in lines} == {len(lines[0])}
        assert all(re.fullmatch(r" (---|---:) ", rule) for rule in lines[1])


def test_json_holds_headline_findings_and_summary(folder: Path) -> None:
    values = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert values["headline"][2]["layers_not_int8"][0] == STRAYED
    assert values["findings"][0]["level"] == "bad"
    assert ReportSummary.model_validate(values["summary"]) == make_summary()


def test_same_run_gives_the_same_bytes_whatever_the_users_style_which_stays(folder: Path, tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 31, "axes.grid": True}):
        paths = render_report(make_summary(), tmp_path)
        assert matplotlib.rcParams["font.size"] == 31 and matplotlib.rcParams["axes.grid"]
    for path in paths.values():
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_nothing_but_the_three_files_is_left(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json", "report.md"]


PARTS = {
    "train": {"training"},
    "fuse": {"fusion"},
    "ptq": {"headline", "accuracy", "layers"},
    "qat": {"qat"},
    "build": {"headline", "size", "execution"},
    "check": {"headline", "agreement"},
    "bench": {"headline", "timing"},
    "sizes": {"size"},
    "pictures": {"pictures"},
    "eval": {"headline", "accuracy"},
}


@pytest.mark.parametrize("stage", PARTS)
def test_one_part_alone_gives_its_sections_alone(stage: str, tmp_path: Path) -> None:
    check_sections(part(**{stage: make_results()[stage]}), PARTS[stage], tmp_path)


def test_manifests_alone_give_their_section_alone(tmp_path: Path) -> None:
    check_sections(part().model_copy(update={"manifests": MANIFESTS}), {"manifests"}, tmp_path)


def check_sections(summary: ReportSummary, names: set[str], folder: Path) -> None:
    expected = {"measured", "environment"} | names | ({"headline"} if "fusion" in names else set())
    assert {section.name for section, _ in sections_of(summary)} == expected
    paths = render_report(summary, folder)
    assert set(re.findall(r'<section id="(\w+)"', paths["html"].read_text())) == expected


def test_the_least_report(tmp_path: Path) -> None:
    summary = ReportSummary(title="nothing yet", created=CREATED, environment=ENVIRONMENT)
    paths = render_report(summary, tmp_path)
    text = paths["html"].read_text()
    Page(text)
    assert "nothing yet" in text
    assert "None" not in text


def test_no_value_is_printed_as_python(page: str, markdown: str) -> None:
    for text in (page, markdown):
        for word in ("None", "nan", "inf", "float64"):
            assert not re.search(rf">\s*{word}\s*<|\|\s*{word}\s*\|", text)


@pytest.mark.filterwarnings("error")
def test_names_that_drawing_could_trip_over(tmp_path: Path) -> None:
    summary = make_summary()
    names = {HOSTILE: "$\\frac{1$", "class 1": "猫", "class 2": ""}
    measured = {}
    for key, accuracy in summary[EVAL].items():
        rows = [row.model_copy(update={"name": names.get(row.name, row.name)}) for row in accuracy.per_class[:4]]
        measured[key] = accuracy.model_copy(update={"per_class": tuple(rows)})
    summary = part(eval=measured)
    text = render_report(summary, tmp_path)["html"].read_text(encoding="utf-8")
    assert text.count("猫") >= 3  # two tables at least and the drawing


def test_what_each_setting_gained_is_in_every_form(folder: Path) -> None:
    for name in ("report.html", "report.md", "report.json"):
        text = html.unescape((folder / name).read_text(encoding="utf-8"))
        assert "+ outputs=mean" in text
    assert "Split layers add" in (folder / "report.md").read_text(encoding="utf-8")


def test_no_name_steers_a_terminal_or_turns_text_around(tmp_path: Path) -> None:
    evil = " ".join(("\x1b[31mred\x07", "\u202ecod.exe", "a\x9b2Jb", "\u2066x\u2069", "\x00\x7f", "\u2028"))
    text = make_summary().model_dump_json()
    for name in (HOSTILE, LAYERS[0], LAYERS[4]):
        text = text.replace(json.dumps(name)[1:-1], json.dumps(evil + name)[1:-1])
    summary = ReportSummary.model_validate_json(text).model_copy(update={"title": f"{evil} and {evil}"})
    paths = render_report(summary, tmp_path)
    assert json.loads(paths["json"].read_text())["summary"]["title"] == summary.title
    hidden = set(evil) - set(evil.translate({ord(c): None for c in evil if not c.isprintable()}))
    assert len(hidden) == 9
    for file in tmp_path.iterdir():
        assert not hidden & set(file.read_text()), file


@given(st.text(alphabet="ab-`<>& \n'\""))
def test_code_in_a_sentence_is_code_on_the_page_and_nothing_else_becomes_markup(text: str) -> None:
    page = str(_code_spans(text))
    spans = re.findall(r"<code>(.*?)</code>", page, re.DOTALL)
    assert len(spans) == (text.count("`") // 2 if text.count("`") % 2 == 0 else 0)
    plain = re.sub(r"</?code>", "`", re.sub(r'<span class="whole">(.*?)</span>', r"\1", page))
    assert "<" not in plain and html.unescape(plain) == text
