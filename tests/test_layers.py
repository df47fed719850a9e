"""Selectors are exact ids or globs, and one that matches nothing is an error that helps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repq.errors import SelectorError
from repq.layers import LayerId, QuantPlan, select

LAYERS = tuple(map(LayerId, ("backbone.stem.rbr_reparam", "neck.a.conv", "neck.b.conv", "detect.cls_preds.0")))


def test_selectors_keep_model_order_and_do_not_repeat() -> None:
    assert select(LAYERS, ["neck.b.conv", "neck.*"]) == LAYERS[1:3]


def test_a_part_of_an_id_is_no_selector() -> None:
    with pytest.raises(SelectorError, match=r"neck\.a\.conv"):
        select(LAYERS, ["neck.a"])


def test_an_error_names_the_closest_ids() -> None:
    with pytest.raises(SelectorError, match=r"backbone\.stem\.rbr_reparam"):
        select(LAYERS, ["backbone.stem.rbr_reparm"])


@given(st.sets(st.sampled_from(LAYERS)))
def test_a_plan_splits_the_layers(kept: set[LayerId]) -> None:
    plan = QuantPlan.keeping_float(LAYERS, sorted(kept))
    assert set(plan.float_) == kept
    assert not set(plan.int8) & kept
    assert sorted(plan.int8 + plan.float_) == sorted(LAYERS)
