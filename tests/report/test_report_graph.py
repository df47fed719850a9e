"""What the report says of the graph that TensorRT gets."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from report_samples import make_accuracy, make_ptq, make_results, make_summary

from repq.report import render_report
from repq.report.sections import sections_of
from repq.report.text import SHOWN, engine_table, export_text, lint_table, shown_on
from repq.results import EngineDescription, Expectation, ExportReport, GraphFinding, LayerPrecision, QdqCount

BEFORE = QdqCount(quantize=80, dequantize=79, extra_kernels=40, avoidable=31)
AFTER = QdqCount(quantize=60, dequantize=58, extra_kernels=9, avoidable=0)
GRAPH = ExportReport(
    out="int8_float16.onnx",
    imgsz=(320, 320),
    batch=1,
    opset=19,
    precision="int8_float16",
    qdq_before_merging=BEFORE,
    qdq=AFTER,
    merged_groups=5,
    fp32_nodes=("neck.loud",),
    raised_scales=("neck.quiet",),
    layers_int8=50,
    layers_float=8,
    size_bytes=1000,
    findings=(
        GraphFinding(rule="extra-kernel", severity="info", where="images", message="one <kernel>", source="guide"),
    ),
)


def page(**changes: object) -> str:
    (blocks,) = graph_sections(**{"export": GRAPH, **changes})
    return repr(blocks)


def graph_sections(**changes: object) -> list[object]:
    return [blocks for section, blocks in sections_of(make_summary(**changes)) if section.name == "graph"]


def test_counts_stand_before_and_after_merging() -> None:
    text = page()
    assert all(str(number) in text for number in (80, 79, 40, 31, 60, 58, 9))
    assert "neck.loud" in text and "neck.quiet" in text and "the largest of each group" in text


def test_shared_scales_stand_against_own_ones_with_what_they_cost() -> None:
    own = BEFORE.model_copy(update={"quantize": 87})
    ptq = make_ptq().model_copy(
        update={
            "accuracy_own_scales": make_accuracy(0.3),
            "qdq_own_scales": own,
            "share_scales": "joint",
            "shared_groups": 4,
        }
    )
    text = page(ptq=ptq)
    assert "87" in text and "4 groups share one scale: calibrated on joint histograms" in text
    assert "AP with own scales" in text


def test_the_whole_report_renders_with_it_and_a_graph_of_fp16_types_beside_the_engines(tmp_path: Path) -> None:
    check = make_results()["check"]
    typed = check.engines[0].model_copy(
        update={"model": "int8_float16.onnx", "snr_db": {"boxes": 51.7, "scores": 47.1}}
    )
    check = check.model_copy(update={"typed": typed})
    paths = render_report(make_summary(check=check, export=GRAPH), tmp_path)
    text = paths["md"].read_text()
    assert "With FP16 types" in text and "| int8_float16.onnx (onnxruntime) | 51.7 | 47.1 |" in text
    assert "one &lt;kernel&gt;" in paths["html"].read_text()
    assert "Predicted extra kernels" in text


def test_a_run_without_a_graph_has_no_section() -> None:
    assert graph_sections() == []


def test_a_graph_without_shared_scales_has_one_count_of_each() -> None:
    own = GRAPH.model_copy(update={"qdq_before_merging": GRAPH.qdq, "merged_groups": 0})
    text = " ".join(export_text(own).split())
    assert f"{own.qdq.quantize} Q, {own.qdq.dequantize} DQ" in text and "->" not in text and "one scale" not in text
    assert "Shared scales" not in page(export=own)


def finding(place: int, rule: str, severity: str) -> GraphFinding:
    return GraphFinding(
        rule=rule, severity=severity, where=f"node{place}", message=f"about {rule}", source="", extra_kernels=0,
        bytes_moved=0,
    )  # fmt: skip


@given(st.lists(st.sampled_from([("a", "error"), ("b", "warning"), ("c", "info")]), max_size=40), st.booleans())
def test_many_findings_are_counted_by_rule_in_the_terminal(rules: list[tuple[str, str]], everything: bool) -> None:
    findings = [finding(place, *rule).model_dump() for place, rule in enumerate(rules)]
    counts = {"quantize": 1, "dequantize": 1, "extra_kernels": 0, "avoidable": 0}
    with shown_on(120, everything=everything):
        text = lint_table({"findings": findings, "layers": [], "counts": counts})
    if everything or len(rules) <= SHOWN:
        assert all(re.search(rf"\bnode{place}\b", text) for place in range(len(rules)))
        return
    for one in set(rules):
        row = rf"{one[1]} +{one[0]} +{rules.count(one)} +node{rules.index(one)}\b"
        assert re.search(row, text)
    assert "--all" in text and text.count("node") == len(set(rules))


def test_the_terminal_says_the_same() -> None:
    text = export_text(GRAPH)
    assert "80 -> 60 Q, 79 -> 58 DQ" in text and "40 -> 9" in text and "neck.loud" in text
    description = EngineDescription(
        engine="tensorrt", version="11", device="T4", input_name="images", input_shape=(1, 3, 8, 8),
        output_names=("y",), size_bytes=1, layers=(LayerPrecision(layer="a", precision="float16"),),
        extra_nodes={"quantize": 2, "reformat": 3}, expected=Expectation(layers={"a": "int8"}, extra_kernels=1),
    )  # fmt: skip
    table = engine_table(description)
    assert "a: expected int8, runs float16" in table
    assert "1 layers otherwise than expected, with 2 such kernels" in table
    unknown = description.model_copy(
        update={"layers": (LayerPrecision(layer="a", precision="unknown"),), "note": "no GPU: none here"}
    )
    assert "no GPU: none here" in engine_table(unknown) and "otherwise" not in engine_table(unknown)
