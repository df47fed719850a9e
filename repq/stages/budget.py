"""The budget of single commands: what is left where quantization loses too much, and how such a command ends."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from repq.engine import ENGINES
from repq.errors import ToleranceError
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import (
    NOTHING_TO_LOSE,
    Budget,
    DeployConfig,
    EngineName,
    EvalConfig,
    GraphConfig,
    PlanConfig,
    PtqConfig,
    SensitivityConfig,
    ap_drop,
    holds,
)
from repq.results import PtqReport
from repq.stages.evaluate import evaluate_model
from repq.stages.ptq import ptq_checkpoint
from repq.stages.sensitivity import PLAN, measure_sensitivity

FEW = 8
"""Layers that a plan keeps in float which no budget on train images asks for."""

NOTHING_TO_KEEP = "on images of the train split the budget holds with every layer in INT8"


@dataclass(frozen=True)
class Held:
    """What was quantized, and what it loses: in the target where one was named, else in torch's simulation."""

    report: PtqReport
    ap: float | None
    where: str
    planned: bool

    @property
    def drop(self) -> float | None:
        """AP that is lost; None: it was not evaluated, or the float model finds nothing."""
        before = self.report.accuracy_float
        return None if before is None or self.ap is None else ap_drop(before.ap, self.ap)

    @property
    def measurable(self) -> bool:
        """Whether its loss is known, or nobody asked for it; False: the float model finds nothing in the images."""
        return self.ap is None or self.drop is not None

    def within(self, max_drop: float) -> bool:
        """Whether nothing is known that speaks against it; see `measurable`."""
        return self.drop is None or holds(self.drop, max_drop)


@dataclass(frozen=True)
class PtqJob:
    """A checkpoint to quantize, and how it is judged; see `ptq_checkpoint` for the parts."""

    weights: Path
    config: PtqConfig
    data: Path
    val_split: str
    imgsz: tuple[int, int]
    eval_config: EvalConfig
    plan: Path | None = None
    device: str = "cpu"
    target: EngineName | None = None
    evaluate: bool = True
    graph: GraphConfig = GraphConfig()
    deploy: DeployConfig = DeployConfig()

    def run(self, out: Path, progress: Progress, log: Log) -> Held:
        """Quantize, and measure where it is to run."""
        report = ptq_checkpoint(
            self.weights, out, self.config, data=self.data, val_split=self.val_split, imgsz=self.imgsz,
            eval_config=self.eval_config, plan=self.plan, graph=self.graph, deploy=self.deploy,
            device=self.device, evaluate=self.evaluate, progress=progress, log=log,
        )  # fmt: skip
        after = report.accuracy_quantized
        held = Held(report, None if after is None else after.ap, "the simulation", self.plan is not None)
        if self.target is None or after is None:
            return held
        found, _ = evaluate_model(
            out, self.data, self.val_split, self.imgsz, self.eval_config, engine=self.target, progress=progress, log=log
        )
        return replace(held, ap=found.ap, where=self.target)


def quantize_within(job: PtqJob, out: Path, max_drop: float, *, progress: Progress = silent, log: Log = quiet) -> Held:
    """Quantize; where more than ``max_drop`` AP is lost, try what is left, and keep in ``out`` what loses least.

    Where sums saturate in the target on this machine, that is a reduced range of weights; then the layers are measured,
    and those that cost most stay in float: the plan and its report are in ``OUT.sensitivity``. Nothing more is tried
    where the settings were named (``job.config.auto`` is false) or a plan was given.

    Raises:
        RepqError: as `ptq_checkpoint` and `measure_sensitivity`.
    """
    best = job.run(out, progress, log)
    if job.target is None and job.config.scheme == "asymmetric" and not job.config.reduce_range:
        for entry in ENGINES:
            if note := entry.saturation():
                log(f"{entry.title}: {note}; `--target {entry.name}` measures in it")
    if not best.measurable:
        log(NOTHING_TO_LOSE)
    if best.within(max_drop) or best.planned or not job.config.auto:
        return best
    if (smaller := reduced_range(job.config, () if job.target is None else (job.target,))) is not None:
        log(f"loses {best.drop:.4f} AP in {job.target} of {max_drop:g} allowed: trying a reduced range of weights …")
        reduced = replace(job, config=smaller)
        found = _better(reduced, best, out, progress, log)
        job, best = (job, best) if found is None else (reduced, found)
        if best.within(max_drop):
            return best
    log(f"loses {best.drop:.4f} AP of {max_drop:g} allowed: looking for layers to keep in float …")
    folder = out.with_name(f"{out.name}.sensitivity")
    for config in plans(max_drop):
        _, plan = measure_sensitivity(
            job.weights, folder, SensitivityConfig(), config, job.config, data=job.data,
            val_split=job.val_split, imgsz=job.imgsz, eval_config=job.eval_config, graph=job.graph, device=job.device,
            progress=progress, log=log,
        )  # fmt: skip
        assert plan is not None
        if not plan.float_layers:
            log(NOTHING_TO_KEEP)
            continue
        found = _better(replace(job, plan=folder / PLAN), best, out, progress, log)
        best = best if found is None else found
        if best.within(max_drop):
            break
    return replace(best, planned=True)


def plans(max_drop: float) -> tuple[PlanConfig, ...]:
    """The plans to try, in this order: what holds the budget on train images, then the most sensitive layers.

    Train images may hold it with every layer in INT8 where others do not.
    """
    return PlanConfig(max_drop=max_drop), PlanConfig(top=FEW)


def reduced_range(config: PtqConfig, engines: Collection[str]) -> PtqConfig | None:
    """The same settings with a reduced range of weights, if that is left to choose and helps one of these engines here.

    It helps where sums saturate on this machine; what is named is not chosen.
    """
    if not config.auto or config.reduce_range:
        return None
    helps = any(entry.name in engines and entry.saturation() for entry in ENGINES)
    return config.model_copy(update={"reduce_range": True}) if helps else None


def _better(job: PtqJob, than: Held, out: Path, progress: Progress, log: Log) -> Held | None:
    """What ``out`` holds now, if this job loses less; None: it does not, and ``out`` is as it was."""
    beside = out.with_name(f".{out.name}")
    try:
        found = job.run(beside, progress, log)
        if found.drop is None or than.drop is None or found.drop >= than.drop:
            return None
        beside.replace(out)
        return found
    finally:
        beside.unlink(missing_ok=True)


def demand_measured(budget: Budget, before: float | None) -> None:
    """Fail where a bound was asked for by name, and the float model finds nothing: equal zeros would pass any bound.

    Args:
        before: AP of the float model; None: not evaluated, which is no failure.

    Raises:
        ToleranceError: as above.
    """
    if before is None or before > 0 or "max_drop" not in budget.model_fields_set or holds(None, budget.max_drop):
        return
    raise ToleranceError(
        "whether INT8 holds the bound cannot be measured",
        found=f"{NOTHING_TO_LOSE}; --max-drop is {budget.max_drop:g}",
        fix="look at what it finds (repq predict), its preset and image size; --max-drop 1 is no bound",
    )


def demand_budget(drop: float | None, max_drop: float, where: str, fix: str) -> None:
    """Fail where INT8 loses too much.

    Args:
        drop: None: not evaluated, which is no failure.
        fix: the next command to try.

    Raises:
        ToleranceError: ``drop`` is above ``max_drop``.
    """
    if drop is not None and not holds(drop, max_drop):
        raise ToleranceError(
            "INT8 loses more AP than allowed", found=f"{drop:.4f} in {where}; --max-drop is {max_drop:g}", fix=fix
        )
