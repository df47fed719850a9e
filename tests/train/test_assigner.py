"""Properties of the assigners on random predictions and objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from repq.train.assigner import (
    MOST_PAIRS,
    Assignment,
    Objects,
    assign_atss,
    assign_in_slices,
    assign_task_aligned,
    pad_objects,
)
from repq.train.boxes import AnchorGrid, anchor_grid, pairwise_iou, points_inside
from repq.train.simota import assign_simota

SIZE, CLASSES = 96, 4
STRIDES = (8, 16, 32)
ASSIGNERS = [assign_task_aligned, assign_atss, assign_simota]


@pytest.fixture(scope="module")
def grid() -> AnchorGrid:
    return anchor_grid([(SIZE // stride, SIZE // stride) for stride in STRIDES], STRIDES, torch.device("cpu"))


def random_batch(grid: AnchorGrid, counts: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Objects]:
    """Scores, predicted boxes around the points, and ``counts`` objects per image."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.uniform(0, 1, (len(counts), len(grid.points), CLASSES)).astype(np.float32))
    reach = torch.from_numpy(rng.uniform(0.5, 3, (len(counts), len(grid.points), 4)).astype(np.float32)) * grid.strides
    boxes = torch.cat((grid.points - reach[..., :2], grid.points + reach[..., 2:]), dim=-1)
    labels = []
    for count in counts:
        centre, half = rng.uniform(10, SIZE - 10, (count, 2)), rng.uniform(3, 30, (count, 2))
        corners = np.clip(np.hstack((centre - half, centre + half)), 0, SIZE)
        labels.append(np.hstack((rng.integers(0, CLASSES, (count, 1)), corners)).astype(np.float32))
    return scores, boxes, pad_objects(labels)


def fields(assignment: Assignment) -> tuple[Tensor, ...]:
    return assignment.positive, assignment.boxes * assignment.positive[..., None], assignment.labels, assignment.scores


@pytest.mark.parametrize("assign", ASSIGNERS)
@pytest.mark.parametrize("seed", range(5))
def test_positives_lie_inside_an_object_of_their_class(assign, seed: int, grid: AnchorGrid) -> None:
    scores, boxes, objects = random_batch(grid, [0, 1, 6, 12], seed)
    result = assign(scores, boxes, objects, grid)
    assert not result.positive[0].any()
    for image, point in result.positive.nonzero().tolist():
        box = result.boxes[image, point]
        owner = (objects.boxes[image] == box).all(-1) & objects.valid[image]
        if assign is not assign_simota:  # which takes points near the centre of a small object too
            assert points_inside(grid.points[point : point + 1], box[None]).all()
        assert result.labels[image, point].argmax() in objects.classes[image][owner]
    assert (result.labels.sum(-1) == result.positive).all()
    assert (result.scores >= 0).all()
    assert (result.scores <= result.labels + 1e-6).all()


@pytest.mark.parametrize("assign", ASSIGNERS)
def test_images_do_not_influence_each_other(assign, grid: AnchorGrid) -> None:
    scores, boxes, objects = random_batch(grid, [3, 9, 0, 5])
    whole = fields(assign(scores, boxes, objects, grid))
    order = torch.tensor([2, 0, 3, 1])
    shuffled = Objects(objects.boxes[order], objects.classes[order], objects.valid[order])
    for first, second in zip(whole, fields(assign(scores[order], boxes[order], shuffled, grid)), strict=True):
        assert torch.equal(first[order], second)
    alone = Objects(objects.boxes[:1, :3], objects.classes[:1, :3], objects.valid[:1, :3])  # without the padding
    for first, second in zip(whole, fields(assign(scores[:1], boxes[:1], alone, grid)), strict=True):
        assert torch.equal(first[:1], second)


@pytest.mark.parametrize("assign", ASSIGNERS)
def test_slices_change_nothing(assign, grid: AnchorGrid) -> None:
    scores, boxes, objects = random_batch(grid, [3, 9, 0, 5, 1])
    whole = fields(assign(scores, boxes, objects, grid))
    for most_pairs in (1, 2 * 9 * len(grid.points), 1 << 24):
        parts = fields(assign_in_slices(assign, scores, boxes, objects, grid, most_pairs))
        assert all(torch.equal(first, second) for first, second in zip(whole, parts, strict=True))


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for found in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(found, torch.Tensor):
                self.elements = max(self.elements, found.untyped_storage().nbytes() // found.element_size())
        return result


@pytest.mark.parametrize("assign", ASSIGNERS)
def test_memory_does_not_grow_with_crowded_images(assign, grid: AnchorGrid) -> None:
    scores, boxes, objects = random_batch(grid, [300] * 8)
    pairs_of_an_image = 300 * len(grid.points)
    with LargestTensor() as largest:
        assign_in_slices(assign, scores, boxes, objects, grid)
    assert largest.elements <= 2 * max(MOST_PAIRS["cpu"], pairs_of_an_image)  # two coordinates of a pair at the most
    with LargestTensor() as whole:
        assign_in_slices(assign, scores, boxes, objects, grid, most_pairs=1 << 30)
    assert whole.elements >= 8 * pairs_of_an_image  # what it would be


@pytest.mark.parametrize("seed", range(4))
def test_simota_is_the_loop_over_objects_of_its_paper(seed: int, grid: AnchorGrid) -> None:
    scores, boxes, objects = random_batch(grid, [7], seed)
    found = assign_simota(scores, boxes, objects, grid)
    costs, taken = [], []
    for box, class_id in zip(objects.boxes[0], objects.classes[0], strict=True):
        overlap = pairwise_iou(box[None], boxes[0])[0]
        one_hot = torch.nn.functional.one_hot(class_id, CLASSES).float().expand_as(scores[0])
        cost = torch.nn.functional.binary_cross_entropy(scores[0], one_hot, reduction="none").sum(-1)
        cost = cost - 3 * overlap.log()
        inside = points_inside(grid.points, box[None])[0]
        near = ((grid.points - (box[:2] + box[2:]) / 2).abs() < 2.5 * grid.strides).all(-1)
        cost = cost.where(inside & near, cost + 1e5).where(inside | near, torch.tensor(torch.inf))
        count = max(1, int(overlap.where(inside | near, 0).topk(10).values.sum()))
        costs.append(cost)
        taken.append(torch.isin(torch.arange(len(cost)), cost.topk(count, largest=False).indices) & cost.isfinite())
    cost, taken_by = torch.stack(costs), torch.stack(taken)
    owner = cost.where(taken_by, torch.inf).argmin(0)
    assert torch.equal(found.positive[0], taken_by.any(0))
    assert torch.equal(found.boxes[0][found.positive[0]], objects.boxes[0][owner][found.positive[0]])


@pytest.mark.parametrize("assign", ASSIGNERS)
def test_no_object_at_all(assign, grid: AnchorGrid) -> None:
    scores, boxes, objects = random_batch(grid, [0, 0])
    result = assign(scores, boxes, objects, grid)
    assert not result.positive.any()
    assert result.scores.sum() == result.labels.sum() == 0


def test_best_point_of_an_object_gets_its_best_overlap(grid: AnchorGrid) -> None:
    """TOOD, section 3.3: the largest target score of an object is the largest IoU among its points."""
    scores, boxes, _ = random_batch(grid, [1])
    box = torch.tensor([[[16.0, 16.0, 80.0, 80.0]]])
    result = assign_task_aligned(scores, boxes, Objects(box, torch.zeros(1, 1).long(), torch.ones(1, 1).bool()), grid)
    assert result.positive.sum() == 13
    low = torch.maximum(boxes[..., :2], box[..., :2])
    high = torch.minimum(boxes[..., 2:], box[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    iou = overlap / ((boxes[..., 2:] - boxes[..., :2]).prod(-1) + 64.0**2 - overlap)
    assert result.scores.max().item() == pytest.approx(iou[result.positive].max().item(), rel=1e-5)


def test_pads_to_the_largest_count() -> None:
    rows = np.array([[2, 0, 1, 2, 3], [1, 4, 5, 6, 7]], np.float32)
    objects = pad_objects([rows, rows[:0]])
    assert objects.boxes.shape == (2, 2, 4)
    assert objects.valid.tolist() == [[True, True], [False, False]]
    assert objects.classes[0].tolist() == [2, 1]
    assert pad_objects([rows[:0]]).boxes.shape == (1, 1, 4)
