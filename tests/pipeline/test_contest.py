"""Engines side by side: real engines of a tiny model, and which of made-up figures is chosen."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from repq import build_model, load
from repq.api.sizes import as_metadata
from repq.cli import main
from repq.data import load_dataset
from repq.pipeline.contest import RESULT, _timing, chosen, compare
from repq.pipeline.whole_run import run
from repq.recipe import Recipe
from repq.report.comparison import row_title
from repq.report.text import contest_choice, contest_table
from repq.results import Accuracies, BatchTiming, Contender, Contest

QUICK = [
    "bench.batches=[2]", "bench.rounds=2", "bench.runs_per_round=2", "bench.warmup=1", "bench.threads=[1]",
    "bench.settle_ms=0", "ptq.calibration={method: max, images: 4, batch: 2}",
]  # fmt: skip


def contender(name: str, ap: float, ms: float | None, variant: str = "float32") -> Contender:
    timing = BatchTiming(batch=1, p50_ms=ms, reason=None if ms else "too large")
    return Contender(
        model=name, engine=name, variant=variant, precision=variant, size_bytes=1, ap=ap, ap50=ap,
        timings=(timing,), int8_macs_share=None, setup="",
    )  # type: ignore[arg-type]  # fmt: skip


@st.composite
def fields(draw: st.DrawFn) -> list[Contender]:
    share, ms = st.floats(0, 1), st.one_of(st.none(), st.floats(0.1, 100))
    kinds = st.sampled_from(["float32", "float16", "int8"])
    rows = draw(st.lists(st.tuples(share, ms, kinds), min_size=1, max_size=6))
    return [contender("torch", 0.5, 50.0), *(contender(f"e{n}", *row) for n, row in enumerate(rows))]


@given(fields(), st.floats(0, 0.5), st.one_of(st.none(), st.floats(1, 100)))
def test_the_choice_is_the_fastest_within_the_bounds(
    rows: list[Contender], max_drop: float, max_ms: float | None
) -> None:
    choice = chosen(rows, max_drop, max_ms)
    good = {
        row.model: row.first.p50_ms for row in rows
        if row.first.p50_ms is not None and 0.5 - row.ap <= max_drop and (max_ms is None or row.first.p50_ms <= max_ms)
    }  # fmt: skip
    assert (choice.ship is None) == (not good)
    if choice.ship is not None:
        assert good[choice.ship] == min(good.values())
    assert choice.reasons


@given(fields(), st.floats(0, 1))
def test_nothing_is_chosen_where_the_float_model_finds_nothing(rows: list[Contender], max_drop: float) -> None:
    choice = chosen([contender("torch", 0.0, 50.0), *rows], max_drop)
    assert choice.ship is None and not choice.int8_pays
    assert "cannot be measured" in choice.reasons[0]


def test_int8_has_to_earn_its_place() -> None:
    rows = [contender("torch", 0.5, 50.0), contender("a", 0.5, 10.0), contender("b", 0.499, 9.0, "int8")]
    assert chosen(rows, 0.005).ship == "b"
    kept = chosen(rows, 0.005, min_speedup=1.2)
    assert (kept.ship, kept.int8_pays) == ("a", False) and "not worth it" in kept.reasons[-1]
    assert "outside the bounds" in chosen(rows, 0.0005).reasons[-1]


@given(fields(), st.floats(0, 0.5), st.floats(1, 100))
def test_the_reasons_call_engines_what_tables_call_them(rows: list[Contender], max_drop: float, max_ms: float) -> None:
    engines = ("torch", "onnxruntime", "openvino", "ncnn", "opencv", "tensorrt")
    named = [
        row.model_copy(update={"engine": engine, "model": f"{engine}-{row.variant}"})
        for row, engine in zip(rows, engines, strict=False)
    ]
    text = "\n".join(chosen(named, max_drop, max_ms).reasons)
    assert not [row.model for row in named if row.model in text]
    assert any(f"{row_title(row)}, AP" in text for row in named)


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=300), st.integers(1, 64))
def test_the_figures_of_a_row_are_those_of_its_runs(samples: list[float], batch: int) -> None:
    row = _timing(samples, batch, 7)
    ordered = sorted(samples)
    assert row.mean_ms == pytest.approx(sum(samples) / len(samples)) and row.runs == len(samples)
    assert row.p50_ms == pytest.approx((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)
    assert row.images_per_s == pytest.approx(1000 * batch / row.p50_ms)
    for percent, found in ((95, row.p95_ms), (99, row.p99_ms)):
        assert (found is None) == (len(samples) * (100 - percent) < 100)
        if found is not None:
            below = ordered[math.floor((len(ordered) - 1) * percent / 100)]
            assert below * (1 - 1e-9) <= found <= ordered[-1] * (1 + 1e-9)
            assert found == below or sum(value > found for value in samples) >= 1


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    from repq.data.demo import make_demo_set
    from repq.recipe.data import DemoConfig

    folder = tmp_path_factory.mktemp("contest")
    data = make_demo_set(folder / "set", DemoConfig(train_images=4, val_images=4, size=64))
    model = build_model("yolov6n_v2", 3)
    assert model.weights is not None
    for name, parameter in model.weights.model.detect.named_parameters():
        if "_preds" in name and name.endswith("weight"):  # they start at zero: all scores would be alike
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        elif "_preds" in name:
            parameter.data.fill_(-1.0 if "cls" in name else 1.0)
    model = load(model.save(folder / "tiny.safetensors"))
    for record in load_dataset(data, "val").records:  # the labels are what the model finds, so that it has an AP
        found = model.detect(record.path, imgsz=64, conf=0.0, max_detections=3)
        boxes = np.column_stack([(found[:, :2] + found[:, 2:4]) / 2, found[:, 2:4] - found[:, :2]]) / 64
        rows = [" ".join(map(str, (int(row[5]), *box))) for row, box in zip(found, boxes, strict=True)]
        next((folder / "set").rglob(f"labels/val/{record.path.stem}.txt")).write_text("\n".join(rows))
    arguments = [
        "compare", str(folder / "tiny.safetensors"), "--data", str(folder / "set/data.yaml"), "--imgsz", "64",
        "-o", str(folder / "out"), *(part for text in QUICK for part in ("--set", text)),
    ]  # fmt: skip
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return arguments, folder / "out"


def demand_timings(found: Contest, batches: list[int]) -> None:
    """Every contender was timed at every batch size and its memory measured, or there is a reason."""
    for row in found.contenders:
        assert [timing.batch for timing in row.timings] == batches
        for timing in row.timings:
            assert timing.reason or (timing.p50_ms and timing.runs == 4)
            assert timing.p95_ms is None and timing.p99_ms is None, "of so few runs they would be the slowest one"
            assert timing.reason or (timing.memory_bytes and timing.memory_bytes > 10 << 20)


def test_every_engine_is_compared_or_has_a_reason(compared: tuple[list[str], Path]) -> None:
    from repq.engine import ENGINES, availability

    found = Contest.model_validate_json((compared[1] / RESULT).read_text())
    usable = {row.runtime for row in availability() if row.usable}
    assert {row.engine for row in found.contenders} == {"torch"} | (usable & {entry.name for entry in ENGINES})
    assert {row.runtime for row in found.missing} == {entry.name for entry in ENGINES} - usable
    assert all(row.detail for row in found.missing)
    demand_timings(found, [2])
    for row in found.contenders:
        assert row.variant == "int8" or not row.int8_macs_share
    assert found.choice is not None and found.contenders[0].ap > 0
    assert found.others is not None
    quiet, crowded = (contest_table(found.model_copy(update={"crowded": value})) for value in (False, True))
    assert "is to be trusted" in " ".join(crowded.split()) and "trusted" not in quiet
    page = (compared[1] / "report.html").read_text()
    assert "AP against latency" in page and all(row.detail[:20] in page for row in found.missing)


def test_what_was_measured_is_reused_and_the_bounds_are_anew(compared: tuple[list[str], Path]) -> None:
    arguments, out = compared
    before = Contest.model_validate_json((out / RESULT).read_text())
    result = CliRunner().invoke(main, [*arguments, "--best", "--max-ms", "0.000001"])
    assert result.exit_code == 1 and "none loses" in result.output, result.output
    after = Contest.model_validate_json((out / RESULT).read_text())
    assert after.contenders == before.contenders
    assert after.choice is not None and after.choice.ship is None


def test_the_choice_alone_says_what_spoilt_the_times(compared: tuple[list[str], Path]) -> None:
    found = Contest.model_validate_json((compared[1] / RESULT).read_text())
    quiet, crowded = (contest_choice(found.model_copy(update={"crowded": value})) for value in (False, True))
    assert "is to be trusted" in crowded and crowded.endswith(quiet)


def test_several_batches_are_timed_and_nothing_is_checked_where_nothing_runs_in_int8(
    compared: tuple[list[str], Path], tmp_path: Path
) -> None:
    both = ["--set", "bench.batches=[1, 2]"]
    result = CliRunner().invoke(main, [*compared[0], "--engines", "opencv", *both, "-o", str(tmp_path)])
    assert result.exit_code in (0, 1), result.output
    found = Contest.model_validate_json((tmp_path / RESULT).read_text())
    assert [row.engine for row in found.contenders] == ["torch", "opencv"]
    demand_timings(found, [1, 2])
    (known,) = tmp_path.glob("check/*/accuracies.json")
    assert Accuracies.model_validate_json(known.read_text()).models == {}
    assert not list(tmp_path.glob("check/*/check.json")), "engines that nobody asked for were compared"


def test_one_number_of_threads_is_compared(compared: tuple[list[str], Path]) -> None:
    result = CliRunner().invoke(main, [*compared[0], "--set", "bench.threads=[1, 2]"])
    assert result.exit_code == 2 and "one number of threads" in result.output


def test_a_batch_that_fails_has_a_reason(compared: tuple[list[str], Path]) -> None:
    from repq.api.footprint import footprint
    from repq.errors import EngineError

    folder = next((compared[1] / "build").glob("*/onnxruntime-int8"))
    with pytest.raises(EngineError, match="images of shape"):
        footprint(folder, (65, 64), 1, 1)


def test_memory_is_measured_without_what_lies_in_the_working_folder(
    compared: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repq.api.footprint import footprint

    for name in ("random", "json", "numpy", "cv2"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the user is run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [place for place in sys.path if place])
    assert footprint(next((compared[1] / "build").glob("*/onnxruntime-int8")), (64, 64), 1, 1) > 0


def test_nothing_that_works_is_an_error(compared: tuple[list[str], Path]) -> None:
    from repq.engine import ENGINES, availability

    usable = {row.runtime for row in availability() if row.usable}
    absent = [part for entry in ENGINES if entry.name not in usable for part in ("--engines", entry.name)]
    if not absent:
        pytest.skip("every engine works here")
    result = CliRunner().invoke(main, [*compared[0], *absent])
    assert result.exit_code == 2 and "none of the engines works here" in result.output


class _BeginsError(Exception):
    """Carries the recipe with which the work would begin."""


def _begin(recipe: Recipe, *_: object, **__: object) -> NoReturn:
    raise _BeginsError(recipe)


@pytest.mark.parametrize("own", [None, (64, 96)])
@pytest.mark.parametrize("in_file", [None, 192])
@pytest.mark.parametrize("override", [None, 224])
@pytest.mark.parametrize("option", [None, 256])
def test_runs_and_comparisons_take_the_size_that_was_asked_for_and_else_the_weights_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    own: tuple[int, int] | None, in_file: int | None, override: int | None, option: int | None,
) -> None:  # fmt: skip
    monkeypatch.setattr("repq.pipeline.contest.make_artifacts", _begin)
    monkeypatch.setattr("repq.pipeline.whole_run.run_recipe", _begin)
    metadata = {} if own is None else as_metadata(own)
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "w.safetensors", metadata=metadata)
    (tmp_path / "data.yaml").write_text("")
    text = "name: a\nweights: w.safetensors\ndata: {path: data.yaml}\n"
    (tmp_path / "recipe.yaml").write_text(text + ("" if in_file is None else f"imgsz: {in_file}\n"))
    given = {
        "recipe": tmp_path / "recipe.yaml", "imgsz": option,
        "overrides": [] if override is None else [f"imgsz={override}"],
    }  # fmt: skip
    asked_for = option or override or in_file
    expected = (asked_for, asked_for) if asked_for else own or (640, 640)
    with pytest.raises(_BeginsError) as compared:
        compare(tmp_path / "w.safetensors", tmp_path / "data.yaml", tmp_path / "out", **given)
    with pytest.raises(_BeginsError) as ran:
        run(**given)
    assert compared.value.args[0].imgsz == ran.value.args[0].imgsz == expected


@pytest.mark.parametrize(("batch", "expected"), [(1, (1, (1,))), (4, (4, (4,))), ("N", (None, (1, 8, 32)))])
def test_a_file_of_one_batch_size_is_exported_and_timed_as_it_is(
    batch: int | str, expected: tuple[int | None, tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repq.pipeline.contest.make_artifacts", _begin)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, 64, 64]) for name in ("images", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["output"])], "net", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "w.onnx")
    (tmp_path / "data.yaml").write_text("")
    said: list[str] = []
    with pytest.raises(_BeginsError) as compared:
        compare(tmp_path / "w.onnx", tmp_path / "data.yaml", tmp_path / "out", log=said.append)
    recipe = compared.value.args[0]
    assert (recipe.export.batch, recipe.bench.batches) == expected and recipe.imgsz == (64, 64)
    assert any(f"takes batches of {batch} only" in line for line in said) == isinstance(batch, int)
