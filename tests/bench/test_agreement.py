"""When an engine agrees with the simulation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repq.errors import ToleranceError
from repq.results import Accuracy, Agreement, CheckReport
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
