"""The loss against the reference implementation's numbers, and its behaviour on its own."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from repq.train.assigner import Objects, pad_objects
from repq.train.boxes import anchor_grid
from repq.train.losses import (
    ClassLoss,
    IouLoss,
    LossOptions,
    class_loss,
    detection_loss,
    distribution_focal_loss,
    iou_loss,
)
from repq.train.simota import assign_simota

CASES = range(7)
RELATIVE = 1e-4  # the reference ran in float32 with another order of sums


def padded(rows: np.ndarray, batch: int, size: int) -> Objects:
    """Rows of image, class, cx, cy, w, h (0..1) as a padded batch."""
    centre, extent = rows[:, 2:4] * size, rows[:, 4:6] * size
    labels = np.hstack((rows[:, 1:2], centre - extent / 2, centre + extent / 2)).astype(np.float32)
    return pad_objects([labels[rows[:, 0] == image] for image in range(batch)])


@pytest.mark.parametrize("assigner", ["atss", "tal"])
@pytest.mark.parametrize("index", CASES)
def test_reproduces_the_reference(shared: Path, index: int, assigner: str) -> None:
    case = json.loads((shared / "golden" / "losses.json").read_text())[index]
    arrays = np.load(shared / "golden" / "losses.npz")
    scores = torch.from_numpy(arrays[f"{index}_scores"]).requires_grad_()
    distances = torch.from_numpy(arrays[f"{index}_distri"]).requires_grad_()
    size, strides = case["size"], case["strides"]
    objects = padded(arrays[f"{index}_targets"].reshape(-1, 6), case["batch"], size)
    grid = anchor_grid([(size // s, size // s) for s in strides], strides, torch.device("cpu"))
    loss = detection_loss(
        scores,
        distances,
        objects,
        grid,
        reg_max=case["reg_max"],
        options=LossOptions(iou_kind=case["iou_type"]),
        warm_up=assigner == "atss",
    )
    loss.total.backward()
    expected = case["expected"][assigner]
    found = tuple(loss.part(name).item() if name in loss.sums else 0.0 for name in ("iou", "dfl", "class"))
    assert loss.total.item() == pytest.approx(expected["loss"], rel=RELATIVE)
    assert found == pytest.approx(tuple(expected["items_iou_dfl_cls"]), rel=RELATIVE)
    assert scores.grad is not None
    assert scores.grad.abs().sum().item() == pytest.approx(expected["grad_scores_abs_sum"], rel=RELATIVE)
    grad_distances = 0.0 if distances.grad is None else distances.grad.abs().sum().item()
    assert grad_distances == pytest.approx(expected["grad_distri_abs_sum"], rel=RELATIVE)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou", "siou"])
def test_iou_loss_is_zero_only_for_equal_boxes(kind: IouLoss) -> None:
    rng = torch.Generator().manual_seed(0)
    low = torch.rand(50, 2, generator=rng) * 10
    boxes = torch.cat((low, low + 1 + torch.rand(50, 2, generator=rng) * 10), dim=-1)
    assert iou_loss(boxes, boxes, kind).abs().max() < 1e-5
    assert (iou_loss(boxes, boxes + torch.tensor([1.0, 0.5, 2.0, 0.0]), kind) > 0.01).all()
    assert torch.allclose(iou_loss(boxes * 7, boxes.flip(0) * 7, kind), iou_loss(boxes, boxes.flip(0), kind), atol=1e-5)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou", "siou"])
def test_iou_loss_has_finite_gradients_at_awkward_boxes(kind: IouLoss) -> None:
    """Equal centres, no extent, no overlap, and a negative extent, as an untrained head may give."""
    target = torch.tensor([[2.0, 2.0, 6.0, 6.0]]).expand(5, 4)
    predicted = torch.tensor(
        [[2.0, 2, 6, 6], [1.0, 1, 7, 7], [4.0, 4, 4, 4], [9.0, 9, 12, 12], [7.0, 7, 1, 1]], requires_grad=True
    )
    iou_loss(predicted, target, kind).sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def test_focal_distribution_is_least_at_the_truth() -> None:
    """Cross entropy with the two neighbours is least where they hold the truth's two shares (2006.04388, eq. 6)."""
    sides = torch.tensor([[3.25, 0.0, 15.9, 99.0]])
    logits = torch.zeros(1, 4, 17, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(150):
        optimizer.zero_grad()
        distribution_focal_loss(logits, sides).sum().backward()
        optimizer.step()
    mean = logits.softmax(-1).detach() @ torch.arange(17.0)
    assert mean[0].tolist() == pytest.approx([3.25, 0.0, 15.9, 15.99], abs=0.02)


@pytest.mark.parametrize("kind", get_args(ClassLoss))
def test_class_losses_are_their_formulas(kind: ClassLoss) -> None:
    for p, y, q in [(0.3, 1.0, 0.8), (0.9, 1.0, 0.2), (0.3, 0.0, 0.0), (0.99, 0.0, 0.0)]:
        entropy = -q * math.log(p) - (1 - q) * math.log(1 - p)
        right = p if y else 1 - p
        focal = (0.25 if y else 0.75) * (1 - right) ** 2 * -math.log(right)
        expected = {
            "varifocal": entropy * (q if y else 0.75 * p**2),
            "quality_focal": entropy * (q - p) ** 2,
            "focal": focal,
            "poly": focal + (0.25 if y else 0.75) * (1 - right) ** 3,
        }[kind]
        found = class_loss(torch.tensor(p), torch.tensor(y), torch.tensor(q), kind)
        assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", get_args(ClassLoss))
def test_class_losses_fall_towards_the_truth_and_stay_finite(kind: ClassLoss) -> None:
    scores = torch.tensor([0.0, 1.0, 0.2, 0.2], requires_grad=True)
    labels, quality = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.9, 0.0, 0.9, 0.0])
    class_loss(scores, labels, quality, kind).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[2] < 0 < scores.grad[3]


def test_options_add_and_weigh_parts() -> None:
    rng = torch.Generator().manual_seed(0)
    grid = anchor_grid([(8, 8)], [8], torch.device("cpu"))
    scores, distances = torch.rand(2, 64, 3, generator=rng), 1 + torch.rand(2, 64, 4, generator=rng)
    rows = np.array([[1, 5, 5, 40, 40], [2, 30, 20, 60, 62]], np.float32)
    objects = pad_objects([rows, rows[:1]])

    def parts(**changes: object) -> dict[str, float]:
        options = replace(LossOptions(), **changes)  # type: ignore[arg-type]
        loss = detection_loss(scores, distances, objects, grid, reg_max=0, options=options)
        return {name: value.item() for name, value in loss.sums.items()}

    plain = parts()
    assert set(plain) == {"class", "iou"}
    assert parts(l1=1.0)["l1"] > 0
    assert parts(class_weights=(2.0, 2.0, 2.0))["class"] == pytest.approx(2 * plain["class"])
    each = [parts(class_weights=weights)["class"] for weights in ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0))]
    assert sum(each) == pytest.approx(plain["class"])
    assert parts(assign=assign_simota) != plain
    assert parts(iou_kind="ciou")["iou"] != plain["iou"]
