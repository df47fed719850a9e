"""The headline's figures, and that it owns up to what is not well."""

from __future__ import annotations

import pytest
from report_samples import LAYERS, STRAYED, make_bench, make_engine, make_fusion, make_ptq, make_summary, part

from repq.report import ReportSummary, headline
from repq.report.comparison import Comparison, comparisons
from repq.report.findings import findings
from repq.report.sections import SECTIONS
from repq.report.sections.overview import HEADLINE
from repq.report.summary import BENCH, EVAL
from repq.report.text import bench_table, render_text
from repq.report.verdict import sentences
from repq.results import Verdict


def by_engine(summary: ReportSummary) -> dict[str, Comparison]:
    return {item.engine: item for item in comparisons(summary)}


def texts(summary: ReportSummary, level: str) -> list[str]:
    found = findings(summary, comparisons(summary))
    return [f"{finding.text} {finding.remedy}" for finding in found if finding.level == level]


def test_figures_of_the_headline() -> None:
    found = by_engine(make_summary())
    assert list(found) == ["torch", "onnxruntime", "openvino"]
    openvino = found["openvino"]
    assert openvino.ap_change == pytest.approx(0.2842 - 0.3043)
    assert openvino.speedup == pytest.approx(88.4 / 35.9)
    assert openvino.size_ratio == pytest.approx(4_934_567 / 18_823_456)
    assert (openvino.int8_layers, openvino.layers) == (len(LAYERS) - 11, len(LAYERS))
    assert openvino.accuracy_level == "bad" and found["onnxruntime"].accuracy_level == "bad"


def resampled(summary: ReportSummary, **changes: float) -> ReportSummary:
    """The same with the AP of three resamples, which INT8 changes by ``changes`` in OpenVINO."""
    names = {"openvino-float32": (0.29, 0.30, 0.31), "openvino-int8": tuple(changes.values())}
    found = {name: accuracy.model_copy(update={"resampled": names.get(name, ())})
             for name, accuracy in summary[EVAL].items()}  # fmt: skip
    return make_summary(eval=found)


def test_a_change_that_the_images_cannot_tell_from_none_is_not_red() -> None:
    noisy = resampled(make_summary(), one=0.28, two=0.29, three=0.312)
    openvino = by_engine(noisy)["openvino"]
    assert openvino.ap_interval == pytest.approx((-0.01, 0.002))
    assert openvino.accuracy_level == "warn"
    assert any("more images" in text and "OpenVINO" in text for text in texts(noisy, "warn"))
    clear = by_engine(resampled(make_summary(), one=0.28, two=0.29, three=0.30))["openvino"]
    assert (clear.in_noise, clear.accuracy_level) == (False, "bad")
    assert by_engine(make_summary())["openvino"].ap_interval is None


def test_every_trouble_has_a_remedy() -> None:
    summary = make_summary(fuse=make_fusion(error=0.2))
    found = [finding for finding in findings(summary, comparisons(summary)) if finding.level in ("warn", "bad")]
    assert found and all(finding.remedy for finding in found if "does not say" not in finding.text)


def test_titles_say_model_engines_and_threads() -> None:
    subjects = {section.name: make_summary().subject(section) for section in SECTIONS}
    assert "OpenVINO" in subjects["accuracy"] and "threads" not in subjects["accuracy"]
    assert "OpenVINO" in subjects["timing"] and "threads" in subjects["timing"]
    assert "OpenVINO" not in subjects["training"] and not subjects["manifests"]


def test_speedup_compares_one_setting() -> None:
    openvino = by_engine(make_summary())["openvino"]
    assert openvino.float_latency is not None
    assert openvino.int8_latency is not None
    for row in (openvino.float_latency, openvino.int8_latency):
        assert (row.scope, row.batch, row.threads) == ("infer", 1, 2)


def test_layers_that_ran_in_float_are_named() -> None:
    openvino = by_engine(make_summary())["openvino"]
    assert STRAYED in [layer.layer for layer in openvino.not_int8]
    assert openvino.precision_level == "warn"
    (text,) = [text for text in texts(make_summary(), "warn") if "executed in float32" in text]
    assert STRAYED in text
    assert "8 of 72 layers" in text


@pytest.mark.parametrize("target", [None, "onnxruntime", "openvino"])
def test_a_run_is_not_told_to_take_the_target_that_it_has(target: str | None) -> None:
    (text,) = [
        text
        for text in texts(make_summary().model_copy(update={"target": target}), "warn")
        if "executed in float32" in text and text.startswith("OpenVINO")
    ]
    assert ("--target openvino" in text) == (target != "openvino") and "repq lint" in text


def test_layers_kept_float_by_plan_are_no_finding() -> None:
    summary = make_summary()
    assert LAYERS[0] not in " ".join(texts(summary, "warn"))


def test_an_engine_that_ran_all_in_float_is_bad() -> None:
    built = make_engine("openvino", "int8", 5_000_000, strayed=LAYERS)
    summary = part(ptq=make_ptq(), build={"openvino-int8": built})
    openvino = by_engine(summary)["openvino"]
    assert openvino.int8_layers == 0
    assert openvino.level == "bad"
    assert not texts(summary, "good")


def test_layers_that_the_runtime_does_not_report_are_said() -> None:
    built = make_engine("openvino", "int8", 5_000_000)
    built = built.model_copy(update={"layers": built.layers[:-1]})
    summary = part(ptq=make_ptq(), build={"openvino-int8": built})
    (text,) = texts(summary, "warn")
    assert LAYERS[-1] in text


def test_an_unfair_baseline_is_said() -> None:
    built = make_engine("openvino", "float32", 18_000_000)
    rows = tuple(row.model_copy(update={"precision": "bfloat16"}) for row in built.layers)
    summary = part(build={"openvino-float32": built.model_copy(update={"layers": rows})})
    (text,) = texts(summary, "warn")
    assert "bfloat16" in text


@pytest.mark.parametrize("budget", [0.0, 0.005, 0.05])
@pytest.mark.parametrize("drop", [-0.01, 0.004, 0.02, 0.2])
def test_a_loss_is_bad_above_the_budget(drop: float, budget: float) -> None:
    ptq = make_ptq()
    worse = ptq.accuracy_float.model_copy(update={"ap": ptq.accuracy_float.ap - drop})
    ptq = ptq.model_copy(update={"accuracy_quantized": worse})
    summary = part(ptq=ptq).model_copy(update={"max_drop": budget})
    assert by_engine(summary)["torch"].accuracy_level == ("bad" if drop > budget else "good")
    assert any(f"{budget:g} allowed" in text for text in texts(summary, "bad")) == (drop > budget)


def test_a_slower_int8_is_said() -> None:
    summary = make_summary()
    rows = [
        row.model_copy(update={"latency_ms_median": 100.0 * row.batch}) if row.variant == "int8" else row
        for row in summary[BENCH].rows
    ]
    bench = summary[BENCH].model_copy(update={"rows": tuple(rows)})
    assert any("does not pay" in text for text in texts(make_summary(bench=bench), "warn"))


def test_times_that_others_disturbed_are_said() -> None:
    bench = make_bench().model_copy(update={"others": 1.3, "crowded": True})
    quiet, summary = make_summary(), make_summary(bench=bench)
    said = "Other processes kept 1.3 of 2 cores busy meanwhile: no latency and no speedup is to be trusted."
    assert any(said in text for text in texts(summary, "warn"))
    assert not any(said in text for text in texts(quiet, "warn"))
    assert said in " ".join(bench_table(bench).split())
    verdict = Verdict(max_drop=0.005, min_speedup=1, engines=(), ways=(), ship=None)
    lines = [sentences(verdict.model_copy(update={"crowded": crowded})) for crowded in (False, True)]
    assert [any("not to be trusted" in line for line in found) for found in lines] == [False, True]


def test_an_engine_where_int8_pays_is_named_beside_one_where_it_does_not() -> None:
    summary = make_summary()
    rows = [
        row.model_copy(update={"latency_ms_median": 1000.0 * row.batch})
        if (row.variant, row.engine) == ("int8", "onnxruntime") else row
        for row in summary[BENCH].rows
    ]  # fmt: skip
    bench = summary[BENCH].model_copy(update={"rows": tuple(rows)})
    (text,) = [
        text
        for text in texts(make_summary(bench=bench).model_copy(update={"max_drop": 0.05}), "warn")
        if "does not pay" in text
    ]
    assert "ONNX Runtime" in text and "OpenVINO" in text


def test_failed_check_and_failed_fusion_are_bad() -> None:
    summary = make_summary(fuse=make_fusion(error=0.2))
    bad = texts(summary, "bad")
    assert any("do not agree" in text and "OpenVINO" in text for text in bad)
    assert any("Fusing changes the model" in text for text in bad)


def test_the_worst_comes_first() -> None:
    summary = make_summary()
    levels = [finding.level for finding in findings(summary, comparisons(summary))]
    assert levels == sorted(levels, key=("bad", "warn", "good").index)


def test_torch_is_the_baseline_where_the_engine_has_none() -> None:
    kept = {name: accuracy for name, accuracy in make_summary()[EVAL].items() if name != "openvino-float32"}
    openvino = by_engine(make_summary(eval=kept))["openvino"]
    assert openvino.float_engine == "torch"
    assert openvino.float_accuracy is not None
    assert openvino.float_accuracy.ap == pytest.approx(0.3044)


def test_headline_as_plain_values() -> None:
    row = headline(make_summary())[2]
    assert row["engine"] == "openvino"
    assert row["latency_ms_int8"] == 35.9
    assert STRAYED in row["layers_not_int8"]


@pytest.mark.parametrize("variant", ["int8", "float32"])
def test_layers_of_which_nothing_is_known_are_not_said_to_have_strayed(variant: str) -> None:
    """As of TensorRT without a GPU, or of TensorRT inside ONNX Runtime."""
    built = make_engine("tensorrt", variant, 5_000_000)
    rows = tuple(row.model_copy(update={"precision": "unknown"}) for row in built.layers)
    summary = part(ptq=make_ptq(), build={f"tensorrt-{variant}": built.model_copy(update={"layers": rows})})
    said = [finding.text for finding in findings(summary, comparisons(summary))]
    assert not any("unknown" in text or "executed" in text for text in said)
    for compared in comparisons(summary):
        assert compared.int8_layers is None and not compared.not_int8
        assert compared.engine != "tensorrt" or compared.precision_level == "warn"
    shown = render_text(HEADLINE.blocks(summary))
    assert "not all in INT8" not in shown and "0 of" not in shown
