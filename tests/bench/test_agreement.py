"""When an engine agrees with the simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from repq.bench import check_agreement
from repq.data import load_dataset, make_demo_set
from repq.errors import RepqError, ToleranceError
from repq.evaluate import Predict
from repq.recipe import CheckConfig, DemoConfig, EvalConfig
from repq.results import Accuracy, Agreement, CheckReport, ModelInfo
from repq.stages import demand_agreement

ACCURACY = Accuracy.model_construct(ap=0.3, images=8)
GAPS = st.none() | st.floats(-1, 1)
SNRS = st.floats(-10, 100)


def row(gap: float | None, snr: float, engine: str = "openvino") -> Agreement:
    return Agreement.model_construct(
        model=engine,
        engine=engine,
        variant="int8",
        ap_gap=gap,
        snr_db={"boxes": snr + 3, "scores": snr},
        accuracy=ACCURACY,
    )


def report(*rows: Agreement, max_drop: float = 0.005, min_snr_db: float | None = None) -> CheckReport:
    return CheckReport.model_construct(
        engines=rows, reference=ACCURACY, images=8, max_drop=max_drop, min_snr_db=min_snr_db, passed=False
    )


@given(gap=GAPS, snr=SNRS, max_drop=st.floats(0, 1), min_snr_db=st.none() | SNRS)
def test_bounds(gap: float | None, snr: float, max_drop: float, min_snr_db: float | None) -> None:
    checked = report(row(gap, snr), max_drop=max_drop, min_snr_db=min_snr_db)
    sounds_alike = min_snr_db is None or snr >= min_snr_db
    near = (max_drop >= 1 or min_snr_db is not None) if gap is None else abs(gap) <= max_drop
    assert (not checked.failing()) == (sounds_alike and near)
    # An engine whose own AP holds is judged by its outputs alone.
    assert (not checked.failing(["openvino"])) == sounds_alike
    assert checked.failing(["onnxruntime"]) == checked.failing()


@given(gaps=st.lists(st.floats(0.01, 1), min_size=1, max_size=4))
def test_the_widest_gap_is_named(gaps: list[float]) -> None:
    failing = report(row(0.0, 50.0, "ncnn"), *(row(gap, 50.0) for gap in gaps)).failing()
    assert [found.ap_gap for found in failing] == sorted(gaps, reverse=True)
    with pytest.raises(ToleranceError, match="AP gap") as caught:
        demand_agreement(report(*(row(gap, 50.0) for gap in gaps)))
    assert f"{max(gaps):+.4f}" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "title"),
    [
        ("openvino", "openvino"),
        ("openvino-int8", "openvino"),
        ("for-openvino.onnx", "for-openvino.onnx (openvino)"),
        ("int8.onnx", "int8.onnx (openvino)"),
    ],
)
def test_files_with_an_engine_in_their_names_are_told_apart(model: str, title: str) -> None:
    found = row(0.0, 50.0).model_copy(update={"model": model, "variant": "int8"})
    assert found.title == title


@pytest.mark.parametrize("silent", ["boxes", "scores"])
@pytest.mark.parametrize("candidate", [0.0, 1.0])
def test_an_snr_of_an_output_that_is_zero_is_an_error(silent: str, candidate: float, tmp_path: Path) -> None:
    """Equal zeros would be an SNR of infinity: a gate that passes on nothing."""
    dataset = load_dataset(make_demo_set(tmp_path / "set", DemoConfig(train_images=1, val_images=2, size=32)), "val")

    def answering(value: float) -> Predict:
        part = slice(0, 4) if silent == "boxes" else slice(5, None)

        def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
            found = np.ones((len(images), 4, 5 + dataset.num_classes), np.float32)
            found[..., part] = value
            return found

        return predict

    model = ModelInfo(model="m", engine="onnxruntime", variant="int8", precision="int8", size_bytes=None)
    given = answering(0.0), [(model, answering(candidate))], dataset, (32, 32)
    with pytest.raises(ToleranceError, match=f"zero in all images, in the reference: {silent}"):
        check_agreement(*given, CheckConfig(min_snr_db=30), EvalConfig(batch=2))
    assert check_agreement(*given, CheckConfig(max_drop=1), EvalConfig(batch=2)).images == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_no_number_never_agrees(value: float, tmp_path: Path) -> None:
    dataset = load_dataset(make_demo_set(tmp_path / "set", DemoConfig(train_images=1, val_images=2, size=32)), "val")

    def answering(first: float) -> Predict:
        def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
            found = np.ones((len(images), 4, 5 + dataset.num_classes), np.float32)
            found[:, 0, 0] = first
            return found

        return predict

    model = ModelInfo(model="m", engine="onnxruntime", variant="int8", precision="int8", size_bytes=None)
    config, evaluation = CheckConfig(min_snr_db=-1000, max_drop=1), EvalConfig(batch=2)
    candidates = [(model, answering(value))]
    found = check_agreement(answering(1.0), candidates, dataset, (32, 32), config, evaluation)
    assert not np.isfinite(found.engines[0].max_abs_error["boxes"]) and not found.passed


@given(snr=st.floats(-99, 99), name=st.sampled_from(["boxes", "scores"]))
def test_the_message_has_figures_as_people_write_them(snr: float, name: str) -> None:
    bad = row(0.5, 50.0).model_copy(update={"snr_db": {name: snr}})
    with pytest.raises(ToleranceError) as caught:
        demand_agreement(report(bad))
    assert f"SNR {snr:.1f} dB of {name}" in str(caught.value) and "{" not in str(caught.value)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_as_many_boxes_are_compared_as_the_reference_gives(rows: int, tmp_path: Path) -> None:
    """One alone would be compared with each of the reference's, others with none."""
    dataset = load_dataset(make_demo_set(tmp_path / "set", DemoConfig(train_images=1, val_images=2, size=32)), "val")

    def answering(count: int) -> Predict:
        return lambda images: np.ones((len(images), count, 5 + dataset.num_classes), np.float32)

    model = ModelInfo(model="m", engine="onnxruntime", variant="int8", precision="int8", size_bytes=None)
    with pytest.raises(RepqError, match="m gives another number of boxes"):
        check_agreement(answering(4), [(model, answering(rows))], dataset, (32, 32), CheckConfig(), EvalConfig(batch=2))
