"""Tables on terminals of any width: the worst rows first, no line wider than the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import ENVIRONMENT, LAYERS, make_ptq, make_results
from sensitivity_samples import make_plan, make_sensitivity

from repq.report.blocks import Column, table
from repq.report.text import (
    SHOWN,
    bench_table,
    check_table,
    profile_table,
    ptq_table,
    render_text,
    run_table,
    sensitivity_table,
    settings_table,
    shown_on,
)
from repq.results import LayerQuantization, NodeTime, ProfileReport

TEXTS = {
    "ptq": lambda: ptq_table(make_ptq()),
    "sensitivity": lambda: sensitivity_table(make_sensitivity(), make_plan()),
    "check": lambda: check_table(make_results()["check"]),
    "bench": lambda: bench_table(make_results()["bench"].model_copy(update={"crowded": True, "others": 1.5})),
}


def make_profile() -> ProfileReport:
    nodes = [NodeTime(name=f"node {place}", kind="Conv", layer=layer, ms=0.5) for place, layer in enumerate(LAYERS)]
    return ProfileReport(
        model="s.onnx", engine="onnxruntime", imgsz=(64, 64), batch=1, runs=2, total_ms=3.0, nodes=tuple(nodes),
        environment=ENVIRONMENT,
    )  # fmt: skip


TIMED: dict[str, Callable[[dict[str, Any]], str]] = {
    "bench": lambda load: bench_table(make_results()["bench"].model_copy(update=load)),
    "profile": lambda load: profile_table(make_profile().model_copy(update=load)),
    "sensitivity": lambda load: sensitivity_table(
        make_sensitivity(), (plan := make_plan()).model_copy(update={"latency": plan.latency.model_copy(update=load)})
    ),
}


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("name", TIMED)
def test_times_that_are_not_to_be_trusted_are_marked_on_the_terminal(name: str, crowded: bool) -> None:
    shown = " ".join(TIMED[name]({"crowded": crowded, "others": 1.5}).split())
    assert ("no latency and no speedup is to be trusted" in shown) == crowded
    assert ("Other processes kept 1.5" in shown) >= crowded


def test_the_table_of_a_run_calls_engines_what_the_others_do() -> None:
    figures = {"ap": 0.3, "ap50": 0.4, "latency_ms_median": 1.0, "images_per_s": 1000.0, "size_bytes": 1 << 20}
    names = ("onnxruntime-float32", "openvino-int8")
    shown = run_table({"name": "run", "models": [{"model": name, **figures} for name in names]}, None)
    assert "ONNX Runtime FP32" in shown and "OpenVINO INT8" in shown
    assert not [name for name in names if name in shown]


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_no_line_is_wider_than_the_terminal(name: str, everything: bool, width: int) -> None:
    with shown_on(width, everything=everything):
        lines = TEXTS[name]().splitlines()
    assert [line for line in lines if len(line) > width] == []


def test_a_long_table_shows_its_worst_rows_and_says_how_to_see_the_rest() -> None:
    def noise(row: LayerQuantization) -> float:
        return sum(10 ** (-db / 10) for db in (row.weight_snr_db, row.activation_snr_db) if db is not None)

    ptq = make_ptq()
    ranked = [row.layer for row in sorted(ptq.layers, key=noise, reverse=True)]
    with shown_on(200, everything=False):
        short = ptq_table(ptq)
    with shown_on(200, everything=True):
        whole = ptq_table(ptq)
    shown = [line.split()[0] for line in short.splitlines() if line.split()[:1] and line.split()[0] in ranked]
    assert sorted(shown, key=ranked.index) == shown
    assert shown == ranked[:SHOWN] and "--all" in short
    assert all(layer in whole for layer in ranked) and "--all" not in whole


KINDS = st.sampled_from([{}, {"numeric": True}, {"code": True}, {"wrap": True}])
WORDS = st.text("abc.|_-", min_size=1, max_size=40)
CELLS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


@given(st.data(), st.integers(1, 6), st.integers(40, 200))
def test_no_character_of_a_table_is_cut_off(data: st.DataObject, columns: int, width: int) -> None:
    kinds = [data.draw(KINDS) for _ in range(columns)]
    titles = [data.draw(CELLS) for _ in range(columns)]
    rows = data.draw(
        st.lists(st.tuples(*(WORDS if "numeric" in kind or "code" in kind else CELLS for kind in kinds)), max_size=3)
    )
    shape = [
        Column(title, lambda row, place=place: row[place], **kind)  # type: ignore[misc]
        for place, (title, kind) in enumerate(zip(titles, kinds, strict=True))
    ]
    text = render_text([table("", shape, rows)], width)
    assert max(map(len, text.splitlines())) <= width
    written = "".join(titles) + "".join(map("".join, rows))
    assert sorted("".join(text.replace("\u2500", "").split())) == sorted("".join(written.split()))


@pytest.mark.parametrize("width", [80, 120])
def test_sentences_have_room_beside_long_names(width: int) -> None:
    row = {"name": "recovery.letterbox.inner_size", "required": False, "default": None, "option": "--inner-size"}
    rows = [row | {"range": "onnxruntime|openvino|tensorrt|ncnn|opencv", "help": "Long side of the image. " * 9}]
    with shown_on(width, everything=True):
        lines = settings_table("prune", rows, "about").splitlines()
    title = next(line for line in lines if "Meaning" in line)
    assert width - title.index("Meaning") >= 24 and ("Option" in title) == (width == 120)


@pytest.mark.parametrize("name", ["猫 → Füße", "ネコ と イヌ", "cat and dog"])
def test_letters_of_two_columns_break_no_line(name: str) -> None:
    shape = [Column("Class", lambda row: row[0]), Column("Boxes", lambda row: row[1], numeric=True)]
    assert f"{name}  " in render_text([table("Found", shape, [(name, "85")])], 80)


def test_a_title_is_not_folded_into_a_narrow_table() -> None:
    title = "ONNX Runtime 1.31.1 on an imaginary processor"
    text = render_text([table(title, [Column("A", str)], ["b"])], 80)
    assert text.splitlines()[0] == title
    narrow = render_text([table(title, [Column("A", str)], ["b"])], 20).splitlines()
    assert max(map(len, narrow)) <= 20 and " ".join(narrow[:3]) == title
