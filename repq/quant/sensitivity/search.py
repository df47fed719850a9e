"""Find the smallest set of float layers that keeps AP within a budget.

Two steps, both over a ranking of the layers, the most sensitive first:

1. Bisection finds the smallest ``k`` such that the plan with the first ``k`` layers in float fits. It takes
   ``log2(layers)`` trials and relies on the drop falling with ``k``.
2. A greedy pass then offers each of these layers INT8 again, those first whose float run costs most and, among equals,
   the least sensitive first. What still fits stays in INT8. At the end no layer that was refused can be given back on
   its own, as long as more INT8 never raises AP.

What "fits" means is the caller's: ``Assess`` maps a float set to a drop in AP and to the bound on it that is compared
with the budget. ``ap_assessor`` makes one from detections, with a paired bootstrap over the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from repq.data import DetectionDataset
from repq.evaluate import ApDrop, Detections, Matcher, bootstrap_drop, detect_all
from repq.layers import LayerId, QuantPlan
from repq.model import Detector
from repq.quant.sensitivity.guards import demand_objects
from repq.quant.state import quantizing
from repq.recipe import EvalConfig, PlanConfig
from repq.results import PlanTrial


@dataclass(frozen=True)
class Assessment:
    """The drop in AP of one plan, and the number that must not exceed the budget."""

    drop: float
    bound: float


Assess = Callable[[frozenset[LayerId]], Assessment]
"""What keeping these layers in float leads to."""

Detect = Callable[[QuantPlan], Detections]
"""What the model finds in the images of a data set when it runs with a plan."""


@dataclass(frozen=True)
class Found:
    """The float set in the order of the ranking, and all that was tried on the way."""

    float_: tuple[LayerId, ...]
    trials: tuple[PlanTrial, ...]


def search(
    ranked: Sequence[LayerId], max_drop: float, assess: Assess, cost: Mapping[LayerId, float] | None = None
) -> Found:
    """Return the smallest float set found that fits; see the module's docstring. All layers in float always fit.

    Args:
        ranked: the most sensitive layer first.
        cost: what a layer costs in float, such as its multiply-adds; default: all the same.
    """
    trials: list[PlanTrial] = []
    known: dict[frozenset[LayerId], bool] = {frozenset(ranked): True}

    def fits(chosen: Sequence[LayerId], bisecting: bool) -> bool:
        key = frozenset(chosen)
        if key not in known:
            outcome = assess(key)
            known[key] = outcome.bound <= max_drop
            trials.append(
                PlanTrial(
                    float_layers=len(key),
                    drop=outcome.drop,
                    bound=outcome.bound,
                    fits=known[key],
                    step="bisection" if bisecting else "greedy",
                )
            )
        return known[key]

    low, high = 0, len(ranked)  # the first `high` layers in float fit; fewer than `low` do not
    while low < high:
        middle = (low + high) // 2
        if fits(ranked[:middle], bisecting=True):
            high = middle
        else:
            low = middle + 1
    kept = list(ranked[:high])
    place = {layer: i for i, layer in enumerate(ranked)}
    for layer in sorted(kept, key=lambda layer: (-(cost[layer] if cost else 0.0), -place[layer])):
        without = [other for other in kept if other != layer]
        if fits(without, bisecting=False):
            kept = without
    return Found(tuple(kept), tuple(trials))


def ap_assessor(
    layers: Sequence[LayerId], detect: Detect, reference: Detections, dataset: DetectionDataset, config: PlanConfig
) -> tuple[Assess, Callable[[frozenset[LayerId]], ApDrop]]:
    """Judge float sets by the AP that they lose against ``reference`` on the images of ``dataset``.

    The bound is what the drop exceeds with a probability of ``config.risk``, by a paired bootstrap over the images:
    below 0.5, a plan that fits by luck on a few images is refused.

    Returns:
        The judgement for ``search``, and the whole bootstrap of any float set that was judged.

    Raises:
        DataError: no image has a labelled object.
    """
    demand_objects(dataset.records)
    matcher = Matcher(dataset)
    float_matches = matcher.match(reference)
    known: dict[frozenset[LayerId], ApDrop] = {}

    def drop(chosen: frozenset[LayerId]) -> ApDrop:
        if chosen not in known:
            found = matcher.match(detect(QuantPlan.keeping_float(layers, chosen)))
            known[chosen] = bootstrap_drop(float_matches, found, resamples=config.resamples, seed=config.seed)
        return known[chosen]

    def assess(chosen: frozenset[LayerId]) -> Assessment:
        outcome = drop(chosen)
        return Assessment(outcome.drop, outcome.bound(config.risk))

    return assess, drop


def plan_detector(model: Detector, dataset: DetectionDataset, imgsz: tuple[int, int], config: EvalConfig) -> Detect:
    """What a calibrated model with quantizers in all layers finds under each plan, in torch's simulation."""
    device = next(model.parameters()).device

    @torch.inference_mode()
    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        detections: NDArray[np.float32] = model(torch.from_numpy(images).to(device)).float().cpu().numpy()
        return detections

    def detect(plan: QuantPlan) -> Detections:
        with quantizing(model, plan.int8):
            return detect_all(predict, dataset, imgsz, config)

    return detect
