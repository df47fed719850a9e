"""Layer-wise sensitivity, and the plan that follows from it, as a stage."""

from __future__ import annotations

from pathlib import Path

from repq.files import write_text
from repq.log import Log, quiet
from repq.predictor import resolve_device
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, PlanConfig, PtqConfig, SensitivityConfig
from repq.results import PlanReport, Sensitivity
from repq.stages.data import read_data
from repq.stages.quantizing import calibrated

SENSITIVITY, PLAN, PLAN_REPORT, JOURNAL = "sensitivity.json", "plan.yaml", "plan.json", "journal"


def measure_sensitivity(
    weights: Path,
    out: Path,
    config: SensitivityConfig,
    plan_config: PlanConfig,
    ptq: PtqConfig,
    *,
    data: Path,
    split: str = "train",
    imgsz: tuple[int, int],
    eval_config: EvalConfig,
    device: str = "cpu",
    progress: Progress = silent,
    log: Log = quiet,
) -> tuple[Sensitivity, PlanReport]:
    """Measure every layer of a checkpoint and decide which stay in float, on images of one split alone.

    The folder ``out`` gets ``sensitivity.json``, ``plan.yaml`` (for ``repq ptq --plan``), ``plan.json`` (how the plan
    was found) and a journal, from which a killed measurement goes on.

    Raises:
        RepqError: the checkpoint or the data is not usable, or the journal is of another measurement.
    """
    from repq.data import calibration_set
    from repq.quant.plan_file import write_plan
    from repq.quant.sensitivity import Journal, Measurement, collect, make_plan, measure, plan_detector, plan_remarks
    from repq.recipe import CalibrationConfig

    dataset = read_data(data, split, log)
    ptq = ptq.model_copy(update={"keep_float": ()})
    outcome = calibrated(weights, ptq, dataset, imgsz, eval_config, resolve_device(device), progress, log)
    records = calibration_set(dataset, CalibrationConfig(images=config.images, seed=config.seed))
    labelled = dataset.subset(dataset.records[: config.ap_images])
    job = Measurement(outcome.model, records, imgsz, config, eval_config, labelled)
    journal = Journal(out / JOURNAL, job.key)
    measure(job, journal, progress=progress)
    sensitivity = collect(job, journal, outcome.notes)
    write_text(out / SENSITIVITY, sensitivity.model_dump_json(indent=1))
    searched = dataset.subset(dataset.records[: plan_config.images])
    detect = plan_detector(outcome.model, searched, imgsz, eval_config) if plan_config.max_drop is not None else None
    plan, report = make_plan(sensitivity, plan_config, detect=detect, dataset=searched)
    aim = f"top {plan_config.top}" if plan_config.max_drop is None else f"AP drop of at most {plan_config.max_drop}"
    title = (
        f"{aim} by {plan_config.measure}, {sensitivity.scheme} scheme; {report.int8_macs_share:.1%} of the MACs INT8"
    )
    remarks = plan_remarks(sensitivity, plan_config)
    write_plan(out / PLAN, plan, sensitivity.model, remarks=remarks, title=title)
    write_text(out / PLAN_REPORT, report.model_dump_json(indent=1))
    return sensitivity, report
