"""COCO AP from matches that are made once: of all images, or of any resample of them.

pycocotools matches detections with objects image by image; only the last step, the precision-recall curve, joins the
images. (faster-coco-eval, which ``coco_metrics`` uses, does not show its matches.) ``Matches`` keeps the result of the
first part and does the second in numpy, for many weightings of the images at once. A weight of 2 says that the image is
there twice. AP is that of ``coco_accuracy`` (IoU 0.50 … 0.95, all object sizes).

Of a curve only the true positives matter: precision is highest right at one, and recall grows nowhere else. With the
true positives in order of score, ``t_j`` and ``f_j`` the true and false positives up to the j-th, ``P`` the objects,

    AP = 1/101 sum_j  max_{i >= j} t_i / (t_i + f_i)  *  #{recall points r : t_(j-1) / P < r <= t_j / P}

How sure a difference in AP is, a paired bootstrap over images says (Efron and Tibshirani, 1993, chapters 6 and 13).
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repq.data import DetectionDataset
from repq.evaluate.coco_metrics import coco_accuracy, coco_index, found_entries, truth_entries
from repq.evaluate.detections import Detections
from repq.results import Accuracy

_RECALL_POINTS = np.linspace(0, 1, 101)
_MAX_DETECTIONS = 100

RESAMPLED_IMAGES = 1000
RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class _ClassMatches:
    """One class: its D detections in falling order of score, matched at T IoU thresholds.

    Attributes:
        objects: (images,) objects to find.
        image: (D,) the image of each detection.
        hit: (T, D) whether it found an object.
        counted: (T, D) whether it counts at all; those in crowd regions do not.
    """

    objects: NDArray[np.float64]
    image: NDArray[np.intp]
    hit: NDArray[np.bool_]
    counted: NDArray[np.bool_]

    def ap(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,) AP for (R, images) weights; NaN where there is no object."""
        objects = weights @ self.objects
        total = np.zeros(len(weights))
        for hit, counted in zip(self.hit, self.counted, strict=True):
            total += self._ap_at_threshold(weights, objects, hit, counted)
        return np.where(objects > 0, total / len(self.hit), np.nan)

    def _ap_at_threshold(
        self,
        weights: NDArray[np.float64],
        objects: NDArray[np.float64],
        hit: NDArray[np.bool_],
        counted: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        places = np.flatnonzero(hit)
        if not len(places):
            return np.zeros(len(weights))
        relevant = np.flatnonzero(counted[: places[-1] + 1])
        positives = np.cumsum(weights[:, self.image[relevant]], axis=1)[:, np.searchsorted(relevant, places)]
        true = np.cumsum(weights[:, self.image[places]], axis=1)
        precision = true / (positives + np.spacing(1))
        best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = true / np.maximum(objects, 1)[:, None]
        reached = np.searchsorted(_RECALL_POINTS, recall, side="right")
        points = np.diff(reached, axis=1, prepend=0)
        return (best_from_here * points).sum(axis=1) / len(_RECALL_POINTS)


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detections of which images found an object; see the module's docstring."""

    images: int
    classes: tuple[_ClassMatches, ...]

    def ap(self) -> float:
        """AP over all images, 0 if there is no object in any."""
        return float(self.resampled_ap(np.ones((1, self.images)))[0])

    def resampled_ap(self, weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """(R,) AP for R weightings (R, images): how many times each image is there."""
        times: NDArray[np.float64] = np.asarray(weights, np.float64)
        if not self.classes:
            return np.zeros(len(times))
        per_class = np.stack([matches.ap(times) for matches in self.classes])
        present = np.isfinite(per_class)
        return np.where(present, per_class, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)


class Matcher:
    """Matches detections with the objects of one data set, whose index is built once."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self._dataset = dataset
        from pycocotools.coco import COCO

        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports there; the caller owns it
            self._truth = coco_index(COCO, dataset.records, dataset.num_classes, truth_entries(dataset.records))
        # AP is a mean over the classes that have objects: detections of the others need no matching
        self._present = np.unique([label for record in dataset.records for label in record.labels[:, 0]])

    def match(self, detections: Detections) -> Matches:
        """Match detections that follow the data set's records.

        Raises:
            DataError: the detections are of other images.
        """
        detections.demand_images_of(self._dataset)
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        records, images = self._dataset.records, len(self._dataset)
        if not len(self._present):
            return Matches(images, ())
        boxes = [rows[np.isin(rows[:, 5], self._present)] for rows in detections.boxes]
        with contextlib.redirect_stdout(io.StringIO()):
            found = coco_index(COCO, records, self._dataset.num_classes, found_entries(boxes))
            run = COCOeval(self._truth, found, iouType="bbox")
            run.params.catIds = self._present.astype(int).tolist()
            run.params.maxDets = [_MAX_DETECTIONS]
            run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], run.params.areaRngLbl[:1]
            run.evaluate()
        # sorted by category, then by image; the only area and the only limit add nothing
        starts = range(0, len(self._present) * images, images)
        return Matches(images, tuple(_of_class(run.evalImgs[start : start + images]) for start in starts))


def _of_class(rows: list[dict[str, Any] | None]) -> _ClassMatches:
    """Join pycocotools' results of one class; None stands for an image without objects and detections of it."""
    found = [(image, row) for image, row in enumerate(rows) if row is not None]
    objects = np.zeros(len(rows))
    for image, row in found:
        objects[image] = np.count_nonzero(np.asarray(row["gtIgnore"]) == 0)
    scores = np.concatenate([row["dtScores"] for _, row in found])
    order = np.argsort(-scores, kind="mergesort")  # stable, as in pycocotools: equal scores stay in order of images
    origin = np.repeat([image for image, _ in found], [len(row["dtScores"]) for _, row in found])[order]
    counted = ~np.concatenate([row["dtIgnore"] for _, row in found], axis=1).astype(bool)[:, order]
    matched = np.concatenate([row["dtMatches"] for _, row in found], axis=1)[:, order] > 0
    return _ClassMatches(objects, origin.astype(np.intp), matched & counted, counted)


@dataclass(frozen=True, eq=False)
class ApDrop:
    """How much AP one model loses against another on the same images, and how that varies with the images.

    Attributes:
        drop: AP of the reference minus AP of the other, over all images.
        samples: (R,) the same over R resamples of the images.
    """

    drop: float
    samples: NDArray[np.float64]

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The percentile interval that holds ``confidence`` of the resamples."""
        tail = (1 - confidence) / 2
        low, high = np.quantile(self.samples, [tail, 1 - tail])
        return float(low), float(high)

    @property
    def standard_error(self) -> float:
        """How far the drop is from that over all images of the kind, one standard deviation."""
        return float(self.samples.std(ddof=1))


def resample_weights(images: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """(R, images): how many times each image is drawn, ``images`` draws with replacement a row."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples).astype(float)


def resampled_accuracy(found: Detections, dataset: DetectionDataset) -> Accuracy:
    """COCO metrics, and AP of resamples that depend on nothing but the number of images: models can be paired.

    More than `RESAMPLED_IMAGES` are not resampled: that takes longer than the metrics, and AP varies little there.

    Raises:
        DataError: the detections are of other images.
    """
    if len(dataset) > RESAMPLED_IMAGES:
        return coco_accuracy(found, dataset)
    sampled = Matcher(dataset).match(found).resampled_ap(resample_weights(len(dataset), RESAMPLES, seed=0))
    return coco_accuracy(found, dataset).model_copy(update={"resampled": tuple(np.round(sampled, 5).tolist())})


def bootstrap_drop(reference: Matches, other: Matches, *, resamples: int = 1000, seed: int = 0) -> ApDrop:
    """Compare two models image by image: both see the same resamples, so what is hard in an image cancels out."""
    weights = resample_weights(reference.images, resamples, seed)
    samples = reference.resampled_ap(weights) - other.resampled_ap(weights)
    return ApDrop(reference.ap() - other.ap(), samples)
