"""Geometry of the detection head, and what a fresh head says."""

from __future__ import annotations

import pytest
import torch

from repq.model import build
from repq.model.geometry import anchor_points, boxes_from_distances, centre_form, expected_distances
from repq.model.yolov6.heads import PRIOR_PROBABILITY


def test_anchor_points_run_row_by_row_from_the_finest_level() -> None:
    points, strides = anchor_points([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 1)], (8, 16))
    x_y = [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5], [0.5, 0.5]]
    assert points.tolist() == x_y
    assert strides.flatten().tolist() == [8.0] * 6 + [16.0]


def test_distances_to_corners_to_centre_form() -> None:
    corners = boxes_from_distances(torch.tensor([[2.0, 3.0]]), torch.tensor([[[0.5, 1.0, 1.5, 2.0]]]))
    assert corners.tolist() == [[[1.5, 2.0, 3.5, 5.0]]]
    assert centre_form(corners).tolist() == [[[2.5, 3.5, 2.0, 3.0]]]


def test_expected_distance_of_sure_and_of_even_distributions() -> None:
    sure = torch.full((1, 1, 4, 17), -1e4)
    sure[0, 0, torch.arange(4), torch.tensor([0, 3, 8, 16])] = 0
    projection = torch.arange(17.0)
    assert expected_distances(sure.flatten(2), projection).tolist() == [[[0.0, 3.0, 8.0, 16.0]]]
    # FP32 mean of 0..16
    torch.testing.assert_close(expected_distances(torch.zeros(1, 1, 68), projection), torch.full((1, 1, 4), 8.0))


@pytest.mark.parametrize(("name", "strides_wide"), [("yolov6n_v2", 2), ("yolov6s_mbla", 16), ("yolov6lite_s", 2)])
def test_a_fresh_model_says_the_prior_around_every_cell(name: str, strides_wide: int) -> None:
    model = build(name, num_classes=3, deploy=True).eval()
    with torch.no_grad():
        features = model.features(torch.rand(1, 3, 64, 64))
        detections = model.detect(features)[0]
    points, strides = anchor_points(features, model.spec.strides)
    torch.testing.assert_close(detections[:, :2], points * strides)
    torch.testing.assert_close(detections[:, 2:4], (strides_wide * strides).expand(-1, 2))
    assert torch.all(detections[:, 4] == 1)
    torch.testing.assert_close(detections[:, 5:], torch.full_like(detections[:, 5:], PRIOR_PROBABILITY))
