"""Judge plans by the AP that they lose, with a paired bootstrap over the images, alone or as several processes.

Or by the SNR of boxes and scores, which needs no labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from repq.data import DetectionDataset, demand_objects
from repq.distributed import current_processes, found_in_shares, told_by_first
from repq.errors import DataError
from repq.evaluate import Detections, Matcher, Matches, bootstrap_drop, detect_all
from repq.identity import hash_json
from repq.layers import LayerId, QuantPlan
from repq.layout import demand_finite
from repq.machine.torch_device import network_input
from repq.model import Detector
from repq.progress import Progress, silent
from repq.quant.ptq import on_device_of
from repq.quant.sensitivity.journal import Entry, Journal
from repq.quant.sensitivity.search import Assess, Assessment
from repq.quant.similarity import head_snr_db, outputs_of
from repq.quant.state import quantized_layers, quantizing
from repq.recipe import EvalConfig, PlanConfig

Detect = Callable[[QuantPlan], Detections]
"""What the model finds in the images of a data set when it runs with a plan."""

Judge = Callable[[frozenset[LayerId]], float]
"""The SNR in dB of boxes and scores with these layers in float."""

_KIND = "plan"


def demand_judges(dataset: DetectionDataset, config: PlanConfig) -> None:
    """Fail where ``dataset`` cannot judge plans.

    Raises:
        DataError: no image has a labelled object, or there is one image alone, of which the bootstrap tells nothing.
    """
    demand_objects(dataset)
    if _is_bounded(config) and len(dataset) < 2:
        raise DataError(
            "what a plan loses on other images cannot be judged by a single one",
            fix="give a split of more images, or say how many layers stay in float: --top",
        )


def _is_bounded(config: PlanConfig) -> bool:
    return config.max_drop is not None and config.max_drop < 1


def ap_assessor(
    layers: tuple[LayerId, ...],
    detect: Detect,
    dataset: DetectionDataset,
    config: PlanConfig,
    journal: Journal,
) -> Assess:
    """Judge float sets by the AP that they lose against the float model on the images of ``dataset``.

    The bound is what the drop exceeds with a probability of ``config.risk``, taken as normal with the standard error of
    a paired bootstrap over the images: below 0.5, a plan that fits by luck on a few images is refused. What was judged
    before is in ``journal``.

    Raises:
        DataError: see `demand_judges`; when a set is judged, the float model finds nothing, so that every plan would
            hold the budget.
    """
    demand_judges(dataset, config)
    is_bounded = _is_bounded(config)
    matcher = Matcher(dataset)
    setting = hash_json([dataset.identity(), config.resamples, config.seed])
    errors = NormalDist().inv_cdf(1 - config.risk)
    known = told_by_first(lambda: {i: e.values for (kind, i), e in journal.entries().items() if kind == _KIND})
    reference: list[Matches] = []

    def assess(chosen: frozenset[LayerId]) -> Assessment:
        item = hash_json([setting, sorted(chosen)])
        if item not in known:
            started = time.perf_counter()
            if not reference:
                reference.append(matcher.match(detect(QuantPlan(int8=(), float_=layers))))
                if is_bounded and not reference[0].ap() > 0:
                    raise DataError(
                        "what INT8 loses cannot be measured",
                        found=f"the float model finds no object in {len(dataset)} images (AP 0): any plan would do",
                        fix="look at what it finds (repq predict), its preset and image size; or say how many layers "
                        "stay in float: --top, which takes what was measured so far",
                    )
            found = matcher.match(detect(QuantPlan.keeping_float(layers, chosen)))
            outcome = bootstrap_drop(reference[0], found, resamples=config.resamples, seed=config.seed)
            low, high = outcome.interval()
            known[item] = {"drop": outcome.drop, "error": outcome.standard_error, "low": low, "high": high}
            if current_processes().is_first:
                journal.append(Entry(_KIND, item, known[item], time.perf_counter() - started))
        values = known[item]
        return Assessment(
            drop=values["drop"],
            bound=values["drop"] + errors * values["error"],
            error=values["error"],
            interval=(values["low"], values["high"]),
        )

    return assess


def snr_judge(model: Detector, batches: Iterable[NDArray[np.float32]]) -> Judge:
    """Judge float sets by the SNR in dB of boxes and scores, the worse of the two above all; it needs no labels.

    Args:
        model: calibrated, in eval mode, with quantizers in all layers.
        batches: network inputs, float32 (B, 3, H, W); they are held in memory.
    """
    images = list(on_device_of(model, batches))
    layers = frozenset(quantized_layers(model))
    with quantizing(model, ()):
        wanted = outputs_of(model, images)

    def judge(chosen: frozenset[LayerId]) -> float:
        with quantizing(model, layers - chosen):
            return head_snr_db(model, images, wanted)

    return judge


def plan_detector(
    model: Detector,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    progress: Progress = silent,
) -> Detect:
    """What a calibrated model with quantizers in all layers finds under each plan, in torch's simulation.

    Processes of a group take shares of the images, and all of them get the detections of all; each has to ask for the
    same plans.
    """
    device = next(model.parameters()).device

    @torch.inference_mode()
    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        detections: NDArray[np.float32] = model(network_input(images, device)).float().cpu().numpy()
        demand_finite({"detections": detections}, "the simulation")
        return detections

    def detect(plan: QuantPlan) -> Detections:
        def in_share(share: DetectionDataset) -> Detections:
            return detect_all(
                predict, share, imgsz, config, progress, label=f"{len(plan.float_)} layers in float",
                layout=model.spec.layout, preprocessing=model.spec.preprocessing,
            )  # fmt: skip

        with quantizing(model, plan.int8):
            return found_in_shares(in_share, dataset, config.batch)

    return detect
