"""Layer-wise sensitivity, and the plan that follows from it, as a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from repq.amounts import percent, percent_asked
from repq.api.fitting import fitted, look_for_overlap
from repq.api.planning import gathered, measurement, plan_for
from repq.api.quantizing import kept_float
from repq.errors import RecipeError, RepqError
from repq.files import write_text
from repq.layers import LayerId, QuantPlan, select
from repq.log import Log
from repq.machine.torch_device import resolve_device
from repq.printable import command_line
from repq.recipe import PlanConfig, PtqConfig, SensitivityConfig
from repq.results import PlanReport, Sensitivity
from repq.stages.context import Context
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.quant.sensitivity import Journal, Measurement

SENSITIVITY, PLAN, PLAN_REPORT, JOURNAL = "sensitivity.json", "plan.yaml", "plan.json", "journal"


@dataclass(frozen=True)
class MeasuredLayers:
    """What quantizing each layer of a checkpoint costs, from which plans are made into one folder.

    Attributes:
        kept: layers that are in every plan.
    """

    weights: Path
    out: Path
    sensitivity: Sensitivity
    job: Measurement
    journal: Journal
    kept: tuple[LayerId, ...]
    dataset: DetectionDataset
    ptq: PtqConfig
    context: Context

    def planned(self, config: PlanConfig | None) -> PlanReport | None:
        """Decide which layers stay in float, and write what was measured, the plan, and the report on both.

        Args:
            config: None: there is no plan, which is written as well.
        """
        from repq.distributed import current_processes

        report, context = None, self.context
        if config is not None:
            report = plan_for(
                self.job, self.sensitivity, config, self.kept, self.dataset, self.journal, context.progress
            )
        if current_processes().is_first:
            write_text(self.out / SENSITIVITY, self.sensitivity.model_dump_json(indent=1))
            if config is not None and report is not None:
                _write_plan(self.out, self.job, self.sensitivity, config, report, context.log)
            command = with_plan(self.weights, self.out, context.data_path, context.imgsz, self.ptq)
            _write_report(self.out, self.sensitivity, report, command, context)
        return report


@contextmanager
def measured_layers(
    weights: Path,
    out: Path,
    config: SensitivityConfig,
    ptq: PtqConfig,
    context: Context,
    *,
    plan: PlanConfig | None = None,
    journal_folder: Path | None = None,
    replaces_others: bool = False,
) -> Iterator[MeasuredLayers]:
    """Measure every layer of a checkpoint, on images of one split alone; see `measure_sensitivity` for the rest.

    Args:
        plan: of what kind the plans are that will be made of it.
        replaces_others: whether the journal of another measurement gives way to this one; else it is an error.
    """
    from repq.distributed import UNEVEN, agreed, joined_processes, told_by_first, told_when_stopped, wait_for_all
    from repq.distributed import gathered as of_all
    from repq.quant.sensitivity import Journal, measure_layers

    resolve_device(context.device)
    with joined_processes(context.device, UNEVEN) as (processes, device), told_when_stopped():
        context = context.of_process(str(device), is_first=processes.is_first)
        progress, log = context.progress, context.log
        dataset = context.train_set()
        start = context.open_float(weights)
        dataset = fitted(dataset, start.names, weights.name, log)
        look_for_overlap(dataset.records, context.data_path, context.val_split, log)
        job, notes = measurement(
            start, dataset, config, ptq, context.imgsz, context.eval_config, plan=plan, device=context.device,
            progress=progress, log=log,
        )  # fmt: skip
        agreed(job.identity)
        journal = Journal(journal_folder or out / JOURNAL, job.key, processes.rank, replaces_others=replaces_others)
        measure_layers(job, journal, rank=processes.rank, world_size=processes.count, progress=progress)
        for entries in of_all(tuple(journal.entries().values())):
            if processes.is_first:
                journal.complete(entries)
        sensitivity = told_by_first(lambda: gathered(job, journal, notes))
        for note in sensitivity.notes:
            log(note)
        kept = select(job.layers, kept_float(start.model, ptq))
        yield MeasuredLayers(weights, out, sensitivity, job, journal, kept, dataset, ptq, context)
        wait_for_all()


def measure_sensitivity(
    weights: Path,
    out: Path,
    config: SensitivityConfig,
    plan_config: PlanConfig | None,
    ptq: PtqConfig,
    context: Context,
    *,
    journal_folder: Path | None = None,
) -> tuple[Sensitivity, PlanReport | None]:
    """Measure every layer of a checkpoint and decide which stay in float, on images of one split alone.

    The folder ``out`` gets ``sensitivity.json``, with a plan ``plan.yaml`` (for ``repq ptq --plan``) and ``plan.json``
    (how it was found), and the report on them. A killed measurement goes on from the journal. Under ``torchrun``
    layers, and images of the search, are dealt out to the processes; the first one writes.

    Args:
        plan_config: None measures only.
        ptq: its ``keep_float`` is measured like all layers and is in every plan.
        journal_folder: default: ``out/journal``.

    Raises:
        RepqError: the checkpoint or the data is not usable, the journal is of another measurement, or another process
            ended.
    """
    _demand_measured(config, plan_config)
    with measured_layers(
        weights, out, config, ptq, context, plan=plan_config, journal_folder=journal_folder
    ) as measured:
        return measured.sensitivity, measured.planned(plan_config)


def with_plan(weights: Path, out: Path, data: Path, imgsz: tuple[int, int], ptq: PtqConfig) -> str:
    """The command that quantizes with the plan in ``out``."""
    settings = ["--data", data, "--imgsz", f"{imgsz[0]}x{imgsz[1]}", *ptq.integer_options]
    if ptq.share_scales != "none":
        settings += ["--share-scales", ptq.share_scales]
    return command_line("repq", "ptq", weights, *settings, "--plan", out / PLAN, "-o", "int8.safetensors")


def _write_plan(
    out: Path, job: Measurement, sensitivity: Sensitivity, config: PlanConfig, report: PlanReport, log: Log
) -> None:
    from repq.quant.plan_file import write_plan

    aim = f"top {config.top}"
    if config.max_drop is not None:
        aim = f"AP drop of at most {config.max_drop}"
    elif config.max_float is not None:
        aim = f"at most {percent_asked(config.max_float)} of the MACs in float"
    title = (
        f"{aim} by {report.measure}, {sensitivity.scheme} scheme; {percent(report.int8_macs_share)} of the MACs INT8"
    )
    if report.holds is False:
        assert report.drop is not None
        warning = (
            f"no plan tried holds the AP budget of {config.max_drop} with {percent_asked(config.min_int8)} in INT8: "
            f"this one is {report.drop:.4f} below float on {report.images} images"
        )
        log(f"{warning}; allow more float (min_int8), or quantize with more care (another method, scheme, or QAT)")
        title += f"\n{warning}"
    plan = QuantPlan.keeping_float(job.layers, report.float_layers)
    remarks = {LayerId(layer): reason for layer, reason in report.reasons.items()}
    write_plan(out / PLAN, plan, sensitivity.model, remarks=remarks, title=title)
    write_text(out / PLAN_REPORT, report.model_dump_json(indent=1))


def _write_report(out: Path, sensitivity: Sensitivity, plan: PlanReport | None, command: str, context: Context) -> None:
    """Write ``report.html``, ``.md`` and ``.json``, and each drawing as an SVG file; without the libraries, say so."""
    from repq.machine.environment import capture_environment
    from repq.report import ReportSummary, render_report

    summary = ReportSummary(
        title=f"{sensitivity.model}: what quantizing each layer costs ({sensitivity.scheme})",
        created=date.today().isoformat(),
        environment=capture_environment(),
        model=sensitivity.model,
        data=str(context.data),
        imgsz=context.imgsz,
        plan_command=command,
        results={"sensitivity": sensitivity, "plan": plan},
    )
    try:
        render_report(summary, out)
    except RepqError as error:  # what was measured is written all the same
        context.log(str(error))


def _demand_measured(config: SensitivityConfig, plan: PlanConfig | None) -> None:
    """Refuse to measure nothing, and to rank layers by what is not measured, before anything is.

    Raises:
        RecipeError: as above.
    """
    if not (config.local or config.end_to_end or config.ap):
        raise RecipeError(
            "there is nothing to measure the layers by", found="local and end_to_end switched off, and no AP sweep",
            fix="switch one of them on, or add --ap only_int8",
        )  # fmt: skip
    if plan is None or plan.measure is None:
        return
    where, _, what = plan.measure.partition(".")
    taken = what in config.ap if where == "ap" else config.local if where == "local" else config.end_to_end
    if not taken:
        raise RecipeError(
            f"layers cannot be ranked by {plan.measure}", found="settings that do not measure it",
            fix=f"add --ap {what}" if where == "ap" else "switch that measure on, or rank by another",
        )  # fmt: skip


def _measure(job: Job) -> Sensitivity:
    recipe = job.recipe
    sensitivity, plan = measure_sensitivity(
        job.fused, job.payload, recipe.sensitivity or SensitivityConfig(), recipe.plan, job.section("ptq", PtqConfig),
        job.context, journal_folder=job.resume / JOURNAL,
    )  # fmt: skip
    if plan is not None:
        job.log(f"  {len(plan.float_layers)} layers in float, {percent(plan.int8_macs_share)} of the MACs in INT8")
    return sensitivity


STAGE = Stage(
    "sensitivity", _measure,
    {"sensitivity": Section(SensitivityConfig, optional=True), "plan": Section(PlanConfig, optional=True)},
    ("ptq", "imgsz", "eval", "device"), reads=("fuse/fused.safetensors",), splits=("train", "val"),
    result=Sensitivity, files={PLAN_REPORT: PlanReport}, ignored=("report.*", "*.svg"),
    on_machine=lambda recipe: recipe.plan is not None and recipe.plan.latency is not None,
    wanted=lambda recipe: recipe.sensitivity is not None or recipe.plan is not None,
)  # fmt: skip
