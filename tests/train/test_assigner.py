"""Properties of the assigners on random predictions and objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
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
from repq.train.boxes import EPS, AnchorGrid, anchor_grid, pairwise_iou, points_inside
from repq.train.simota import assign_centre, assign_centre_area, assign_simota

Array = NDArray[Any]
SIZE, CLASSES = 96, 4
STRIDES = (8, 16, 32)
ASSIGNERS = [assign_task_aligned, assign_atss, assign_simota, assign_centre, assign_centre_area]


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
def test_positives_lie_inside_an_object_and_have_the_class_of_their_own(assign, seed: int, grid: AnchorGrid) -> None:
    scores, boxes, objects = random_batch(grid, [0, 1, 6, 12], seed)
    result = assign(scores, boxes, objects, grid)
    assert not result.positive[0].any()
    for image, point in result.positive.nonzero().tolist():
        box = result.boxes[image, point]
        owner = (objects.boxes[image] == box).all(-1) & objects.valid[image]
        if assign in (assign_task_aligned, assign_atss):  # others take points near the centre of a small object
            # If several objects want a point, it may go to one that it only overlaps.
            inside = points_inside(grid.points[point : point + 1], objects.boxes[image])[objects.valid[image]]
            assert inside[owner[objects.valid[image]]].any() or inside.sum() > 1
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


@pytest.mark.parametrize("seed", range(3))
def test_simota_is_the_loop_over_objects_of_its_paper(seed: int, grid: AnchorGrid) -> None:
    scores, boxes, objects = random_batch(grid, [7], seed)
    found = assign_simota(scores, boxes, objects, grid)
    centres = (objects.boxes[0, :, None, :2] + objects.boxes[0, :, None, 2:]) / 2
    near = ((grid.points - centres).abs() < 1.5 * grid.strides).all(-1)
    candidates = near.any(0)
    costs, taken = [], []
    for box, class_id, own in zip(objects.boxes[0], objects.classes[0], near, strict=True):
        overlap = pairwise_iou(box[None], boxes[0])[0].where(candidates, 0)
        one_hot = torch.nn.functional.one_hot(class_id, CLASSES).float().expand_as(scores[0])
        cost = torch.nn.functional.binary_cross_entropy(scores[0], one_hot, reduction="none").sum(-1)
        cost = (cost - 3 * (overlap + 1e-8).log() + 1e6 * ~own).where(candidates, torch.inf)
        count = max(1, int(overlap.topk(10).values.sum()))
        costs.append(cost)
        taken.append(torch.isin(torch.arange(len(cost)), cost.topk(count, largest=False).indices) & cost.isfinite())
    cost, taken_by = torch.stack(costs), torch.stack(taken)
    owner = torch.where(taken_by.sum(0) > 1, cost.argmin(0), taken_by.float().argmax(0))
    assert torch.equal(found.positive[0], taken_by.any(0))
    assert torch.equal(found.boxes[0][found.positive[0]], objects.boxes[0][owner][found.positive[0]])


@pytest.mark.parametrize(("assign", "most"), [(assign_centre, 1), (assign_centre_area, 9)])
def test_centres_take_their_points_on_the_level_of_their_size(assign, most: int, grid: AnchorGrid) -> None:
    for size, stride in ((20, 8), (80, 16), (130, 32)):
        low = SIZE / 2 + 1 - size / 2
        objects = pad_objects([np.array([[2, low, low, low + size, low + size]], np.float32)])
        scores, boxes, _ = random_batch(grid, [1])
        found = assign(scores, boxes, objects, grid)
        assert (grid.strides[found.positive[0]] == stride).all()
        assert 1 <= found.positive.sum() <= most
        assert ((grid.points[found.positive[0]] - SIZE / 2 - 1).abs() <= 1.5 * stride).all()


# --- the papers' algorithms for one image, in float64 -----------------------------------------------------------------


def plain_iou(first: Array, second: Array) -> Array:
    """IoU of boxes (M, 4) with boxes (N, 4)."""
    first = first[:, None]
    width = np.minimum(first[..., 2], second[:, 2]) - np.maximum(first[..., 0], second[:, 0])
    height = np.minimum(first[..., 3], second[:, 3]) - np.maximum(first[..., 1], second[:, 1])
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    areas = [(boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) for boxes in (first, second)]
    return overlap / (areas[0] + areas[1] - overlap + EPS)


def plain_inside(points: Array, box: Array) -> Array:
    x, y = points.T
    return (x > box[0]) & (y > box[1]) & (x < box[2]) & (y < box[3])


def plain_owners(wanted: Array, overlaps: Array) -> Array:
    """The object (of M) of each point, -1 for none, where (M, N) tells who wants which."""
    found = np.where(wanted.any(0), wanted.argmax(0), -1)
    for point in np.flatnonzero(wanted.sum(0) > 1):
        found[point] = overlaps[:, point].argmax()  # among all objects, not among those alone that want it
    return found


def plain_task_aligned(scores: Array, boxes: Array, rows: Array, grid: AnchorGrid) -> tuple[Array, Array]:
    """TOOD, sections 3.2 and 3.3: owner and target score of each point."""
    points = grid.points.numpy()
    overlaps = plain_iou(rows[:, 1:], boxes)
    alignment = scores.T[rows[:, 0].astype(int)] * overlaps**6
    wanted = np.zeros(overlaps.shape, bool)
    for wants, aligned, row in zip(wanted, alignment, rows, strict=True):
        inside = np.flatnonzero(plain_inside(points, row[1:]))
        wants[inside[np.argsort(-aligned[inside])[:13]]] = True
    owner = plain_owners(wanted, overlaps)
    target = np.zeros(len(points))
    for number in set(owner) - {-1}:
        own = owner == number
        aligned = alignment[number, own]
        target[own] = aligned / (aligned.max() + EPS) * overlaps[number, own].max()
    return owner, target


def plain_atss(scores: Array, boxes: Array, rows: Array, grid: AnchorGrid) -> tuple[Array, Array]:
    """ATSS, algorithm 1: owner and target score of each point."""
    points = grid.points.numpy().astype(float)
    overlaps = plain_iou(rows[:, 1:], grid.boxes(5).numpy().astype(float))
    wanted = np.zeros(overlaps.shape, bool)
    for wants, overlap, row in zip(wanted, overlaps, rows, strict=True):
        distance = ((points - (row[1:3] + row[3:5]) / 2) ** 2).sum(-1)
        ends = np.cumsum(grid.counts)
        starts = ends - grid.counts
        near = [np.argsort(distance[start:end])[:9] + start for start, end in zip(starts, ends, strict=True)]
        candidates = np.concatenate(near)
        threshold = overlap[candidates].mean() + overlap[candidates].std(ddof=1)
        wants[candidates[overlap[candidates] > threshold]] = True
        wants &= plain_inside(points, row[1:])
    owner = plain_owners(wanted, overlaps)
    return owner, np.where(owner >= 0, plain_iou(rows[:, 1:], boxes)[owner, np.arange(len(points))], 0)


def crowd(rng: np.random.Generator, grid: AnchorGrid, images: int) -> tuple[Tensor, Tensor, list[Array]]:
    """Predictions around the points of a small grid, and objects that lie over each other, some at the same place."""
    classes, size = int(rng.integers(1, 4)), 64
    scores = rng.uniform(0, 1, (images, len(grid.points), classes)).astype(np.float32)
    reach = rng.uniform(0.2, 3, (images, len(grid.points), 4)).astype(np.float32) * grid.strides.numpy()
    boxes = np.concatenate((grid.points.numpy() - reach[..., :2], grid.points.numpy() + reach[..., 2:]), -1)
    labels = []
    for _ in range(images):
        count = int(rng.integers(1, 13))
        centre, half = rng.normal(32, 10, (count, 2)), rng.uniform(1, 30, (count, 2))
        corners = np.clip(np.hstack((centre - half, centre + half)), 0, size)
        corners = corners[np.minimum(np.arange(count), rng.integers(0, 2 * count, count))]
        labels.append(np.hstack((rng.integers(0, classes, (count, 1)), corners)).astype(np.float32))
    return torch.from_numpy(scores), torch.from_numpy(boxes), labels


@pytest.mark.parametrize(("assign", "plain"), [(assign_task_aligned, plain_task_aligned), (assign_atss, plain_atss)])
def test_a_thousand_crowded_batches_are_assigned_as_the_papers_say(assign, plain) -> None:
    """Compared: which points are positive, the box and the class of each, and the target score."""
    grid = anchor_grid([(64 // stride, 64 // stride) for stride in STRIDES], STRIDES, torch.device("cpu"))
    rng = np.random.default_rng(0)
    positives = other = 0
    for _ in range(1000):
        scores, boxes, labels = crowd(rng, grid, images=2)
        found = assign(scores, boxes, pad_objects(labels), grid)
        for image, rows in enumerate(labels):
            owner, target = plain(
                *(part.astype(float) for part in (scores[image].numpy(), boxes[image].numpy(), rows)), grid
            )
            positive = owner >= 0
            own = rows[owner[positive]]
            expected = np.zeros(scores.shape[1:])
            expected[positive, own[:, 0].astype(int)] = target[positive]
            same = np.array_equal(found.positive[image].numpy(), positive)
            same &= np.array_equal(found.boxes[image].numpy()[positive], own[:, 1:])
            same &= bool((np.abs(found.scores[image].numpy() - expected) < 1e-4).all())
            other += not same
            positives += len(own)
    assert positives > 10_000
    assert other <= 2, "float32 and float64 may order two nearly equal values differently, once in many images"


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
