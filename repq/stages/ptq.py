"""Post-training quantization as a stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.fitting import fitted
from repq.api.measuring import accuracy_of
from repq.api.opening import of_weights, save_weights
from repq.api.quantizing import corrected, fused, planned, quantized
from repq.api.running import Options
from repq.recipe import DeployConfig, PtqConfig
from repq.results import Accuracy, AppliedCorrection, PtqReport, QdqCount
from repq.stages.context import Context
from repq.stages.sensitivity import PLAN
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from onnx import ModelProto

    from repq.quant import Weights
    from repq.scales import ScaleTable


def ptq_checkpoint(
    weights: Path,
    out: Path,
    config: PtqConfig,
    context: Context,
    *,
    plan: Path | None = None,
    before: PtqReport | None = None,
    deploy: DeployConfig = DeployConfig(),
    evaluate: bool = True,
) -> PtqReport:
    """Quantize a checkpoint after training (fused on the way if it is not), evaluate before and after, write it.

    Processes that share their work (`Context.shared`) run shares of the calibration images and of those that AP is
    measured on; each of them makes corrections by itself. The first one writes, and the others get the same file at
    their own ``out``, which must be another where they share a disk.

    Args:
        plan: a plan file, whose float layers are added to ``config.keep_float``.
        before: what came of the same with other layers in float. Its AP of the float model is that of this one, and
            its trials are if ``config`` names the settings. If it leaves the choice, AP of trials is not measured, and
            all images calibrate what is chosen, as they do named settings.
        deploy: thresholds of its use that ``out`` is to say; those of ``weights`` where none are given.

    Raises:
        RepqError: the checkpoint, the data, the plan or a selector is not usable, or an activation is not finite.
    """
    from repq.data import calibration_set, demand_objects, warn_of_overlap
    from repq.distributed import demand_same_data, demand_same_settings, saved_by_first, told_by_first
    from repq.quant import apply_scales, extra_macs_share, scale_table
    from repq.quant.calibration import calibrator
    from repq.quant.corrections import asked_for
    from repq.quant.plan_file import read_plan

    imgsz, log = context.imgsz, context.log
    train_set = context.train_set()
    val_set = context.labelled_val_set() if evaluate else None
    calibrated = calibration_set(train_set, config.calibration)
    if val_set is not None:
        demand_objects(val_set)
        warn_of_overlap(calibrated, val_set.records, log)
    demand_same_data([train_set.subset(calibrated), *([] if val_set is None else [val_set])])
    demand_same_settings(
        {"weights": weights, "imgsz": imgsz, "ptq": config, "eval": context.eval_config, "evaluate": evaluate}
    )
    listed = None if plan is None else told_by_first(lambda: read_plan(plan))
    start = fused(context.open_float(weights).with_thresholds(deploy, weights.name, log), context.device)
    if listed is not None:
        config = config.model_copy(update={"keep_float": (*config.keep_float, *planned(listed, start.model))})
    train_set = fitted(train_set, start.names, weights.name, log)
    if val_set is not None:
        val_set = fitted(val_set, start.names, weights.name, log)
    made = quantized(
        start, train_set, config, imgsz=imgsz, eval_config=context.eval_config, with_trials=before is None,
        on_all_images=before is not None, progress=context.progress, log=log,
    )  # fmt: skip
    outcome = made.outcome

    def accuracy(found: Weights) -> Accuracy | None:
        if val_set is None:
            return None
        handle = of_weights(weights.name, replace(found, names=None), Options(device=context.device, concurrent=True))

        def measured() -> Accuracy:
            return accuracy_of(handle, val_set, imgsz, context.eval_config, context.progress)

        return measured() if _same_in_all(found) else told_by_first(measured)

    in_float = accuracy(start) if before is None else before.accuracy_float
    after, own, counts = accuracy(made.weights), None, None
    # Corrections fit the scales that they were made with: without those scales there is nothing to compare.
    if outcome.own_scales is not None and not corrected(outcome.config):
        assert made.graph is not None
        counts = _counts(made.graph, outcome.own_scales)
        shared = scale_table(outcome.model)
        apply_scales(outcome.model, outcome.own_scales)
        own = accuracy(made.weights)
        apply_scales(outcome.model, shared)
    saved_by_first(out, lambda path: save_weights(path, made.weights, imgsz))
    return PtqReport(
        model=start.model.spec.name,
        method=outcome.config.calibration.method,
        calibration=calibrator(outcome.config.calibration.method).title,
        scheme=config.scheme,
        images=outcome.images,
        layers=outcome.layers,
        int8_macs_share=outcome.int8_macs_share,
        accuracy_float=in_float,
        accuracy_quantized=after,
        accuracy_own_scales=own,
        qdq_own_scales=counts,
        share_scales=config.share_scales,
        shared_groups=outcome.shared_groups,
        settings=outcome.config.model_dump(mode="json"),
        corrections=tuple(
            AppliedCorrection(name=entry.name, title=entry.titled(value), cost=entry.cost)
            for entry, value in asked_for(outcome.config.correct)
        ),
        trials=outcome.trials if before is None else outcome.trials or before.trials,
        extra_macs_share=extra_macs_share(outcome.layers),
    )


def _same_in_all(weights: Weights) -> bool:
    """Whether all processes that share their work have these weights to the bit: hosts may round differently."""
    from repq.distributed import current_processes, gathered
    from repq.identity import hash_tensors

    if current_processes().count == 1:
        return True
    return len(set(gathered(hash_tensors(weights.model.state_dict())))) == 1


def _counts(graph: ModelProto, scales: ScaleTable) -> QdqCount:
    """Q, DQ and predicted extra kernels of the graph with these scales."""
    from repq.graph import count_qdq, insert_qdq, propagate_qdq

    return count_qdq(propagate_qdq(insert_qdq(graph, scales)))


def _ptq(job: Job) -> PtqReport:
    plan = job.artifacts["sensitivity"] / PLAN if "sensitivity" in job.artifacts else None
    report = ptq_checkpoint(
        job.fused, job.payload / "quantized.safetensors", job.section("ptq", PtqConfig), job.context, plan=plan
    )
    assert report.accuracy_float is not None and report.accuracy_quantized is not None
    job.log(f"  AP {report.accuracy_float.ap:.4f} -> {report.accuracy_quantized.ap:.4f}")
    return report


STAGE = Stage(
    "ptq", _ptq, {"ptq": Section(PtqConfig)}, ("imgsz", "eval", "device"),
    reads=("fuse/fused.safetensors", "sensitivity/plan.yaml"), splits=("train", "val"), result=PtqReport,
)  # fmt: skip
