"""Layer-wise sensitivity of opened weights, and the plan that follows from it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from repq.api.plan_latency import layer_costs, timed_front
from repq.api.quantizing import fused, quantized
from repq.layers import LayerId
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import CalibrationConfig, EvalConfig, PlanConfig, PtqConfig, SensitivityConfig
from repq.results import PlanReport, Sensitivity

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.quant import Weights
    from repq.quant.sensitivity import Journal, Measurement


def measurement(
    weights: Weights,
    dataset: DetectionDataset,
    config: SensitivityConfig,
    ptq: PtqConfig,
    imgsz: tuple[int, int],
    eval_config: EvalConfig,
    *,
    plan: PlanConfig | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    log: Log = quiet,
) -> tuple[Measurement, tuple[str, ...]]:
    """What is to be measured: every layer of float weights quantized as ``ptq`` says, and the images to measure on.

    Args:
        plan: what is to be made of it. Where the SNR with layers in float decides, corrections that would mislead are
            left out (`repq.quant.corrections.Correction.by_layer`).

    Returns:
        It, and the notes of the calibration.

    Raises:
        DataError: the plan, or ``config.ap``, needs labels that are not there; nothing was computed yet.
        QuantizationError: there are no images, or an activation is not finite.
    """
    from repq.data import calibration_set, demand_objects
    from repq.quant.sensitivity import Measurement, demand_judges

    labelled = dataset.subset(dataset.records[: config.ap_images])
    if plan is not None and plan.max_drop is not None:
        demand_judges(_searched(dataset, plan), plan)
    if config.ap:
        demand_objects(labelled)
    plain = ptq.model_copy(update={"keep_float": (), "float_bin_means": False})
    made = quantized(
        fused(weights, device), dataset, plain, imgsz=imgsz, eval_config=eval_config, with_maxima=False,
        with_trials=False,
        layers_alone=plan is not None and plan.max_float is not None, progress=progress, log=log,
    )  # fmt: skip
    records = calibration_set(dataset, CalibrationConfig(images=config.images, seed=config.seed))
    return Measurement(made.outcome.model, records, imgsz, config, eval_config, labelled), made.outcome.notes


def gathered(job: Measurement, journal: Journal, notes: Sequence[str] = ()) -> Sensitivity:
    """What all processes measured, with the smooth activation behind each layer.

    Raises:
        QuantizationError: a layer was not measured; it is named.
    """
    from repq.export import export_float
    from repq.graph import smooth_activations
    from repq.quant.sensitivity import collect

    found = collect(job, journal, notes)
    behind = smooth_activations(export_float(copy.deepcopy(job.model).cpu(), job.imgsz))
    rows = (row.model_copy(update={"activation": behind.get(LayerId(row.layer))}) for row in found.layers)
    return found.model_copy(update={"layers": tuple(rows)})


def plan_for(
    job: Measurement,
    sensitivity: Sensitivity,
    config: PlanConfig,
    always_float: Sequence[LayerId],
    dataset: DetectionDataset,
    journal: Journal,
    progress: Progress = silent,
) -> PlanReport:
    """Decide which layers stay in float; with ``config.max_drop`` by AP on labelled images, by all processes together.

    With ``config.max_float`` the first process decides, by the SNR of boxes and scores on the images measured.

    Raises:
        DataError: ``config.max_drop`` without labelled images.
        QuantizationError: the layers were not measured by ``config.measure``.
    """
    from repq.distributed import told_by_first
    from repq.quant.sensitivity import ap_assessor, front_plans, make_plan, plan_detector

    if config.max_float is not None:
        images = len(job.records)
        return told_by_first(
            lambda: make_plan(sensitivity, config, judge=job.snr_db, images=images, always_float=always_float)[1]
        )
    if config.max_drop is None:
        return make_plan(sensitivity, config, always_float=always_float)[1]
    searched = _searched(dataset, config)
    detect = plan_detector(job.model, searched, job.imgsz, job.eval_config, progress)
    assess = ap_assessor(job.layers, detect, searched, config, journal)
    front = None
    if config.latency is not None:
        engine = config.latency
        front = told_by_first(lambda: layer_costs(engine, job.model, job.imgsz, progress))
    milliseconds = None if front is None else {LayerId(layer): ms for layer, ms in front.layer_ms.items()}
    _, report = make_plan(
        sensitivity, config, assess=assess, images=len(searched), milliseconds=milliseconds, always_float=always_float
    )
    if front is None:
        return report
    plans = front_plans(sensitivity, report, milliseconds, always_float)
    outcomes = [assess(plan) for plan in plans]  # by all processes, before one of them takes the time
    timed = told_by_first(
        lambda: timed_front(front, job.model, plans, frozenset(map(LayerId, report.float_layers)), outcomes, progress)
    )
    return report.model_copy(update={"latency": timed})


def _searched(dataset: DetectionDataset, plan: PlanConfig) -> DetectionDataset:
    """The images that plans are judged on."""
    return dataset.subset(dataset.records[: plan.images])
