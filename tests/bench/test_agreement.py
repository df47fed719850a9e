"""When an engine agrees with the simulation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repq.results import SAME_DB, Accuracy, Agreement, CheckReport

BOUNDS = st.floats(0, 0.5)
ACCURACY = Accuracy.model_construct(ap=0.3)


def row(gap: float | None, snr: float) -> Agreement:
    return Agreement.model_construct(
        model="m", engine="openvino", ap_gap=gap, snr_db={"boxes": snr + 3, "scores": snr}, accuracy=ACCURACY
    )


@given(gap=st.floats(-1, 1), snr=st.floats(-10, 100), bound=BOUNDS)
def test_outputs_that_are_the_same_may_be_twice_as_far_apart_in_ap(gap: float, snr: float, bound: float) -> None:
    agrees = row(gap, snr).agrees(bound)
    if abs(gap) <= bound:
        assert agrees
    elif abs(gap) > 2 * bound or snr < SAME_DB:
        assert not agrees
    else:
        assert agrees


@given(gap=st.floats(-1, 1).filter(lambda gap: gap != 0))
def test_without_a_bound_to_double_no_gap_is_allowed(gap: float) -> None:
    assert not row(gap, 100.0).agrees(0.0)


@given(snr=st.floats(-10, 100), bound=st.floats(0, 1))
def test_a_gap_that_nobody_measured_holds_no_bound(snr: float, bound: float) -> None:
    assert row(None, snr).agrees(bound) == (bound >= 1)


def test_the_worst_is_one_that_does_not_agree() -> None:
    near, far = row(0.006, 10.0), row(0.008, 35.0)
    assert near.agrees(0.005) is False and far.agrees(0.005) is True
    report = CheckReport.model_construct(engines=(far, near), max_drop=0.005)
    assert report.worst is near


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
