"""The budget of single commands: what is left where quantization loses too much, and how such a command ends."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from repq.amounts import percent_asked
from repq.engine import ENGINES
from repq.engine.availability import guarded
from repq.errors import EngineError, ToleranceError
from repq.files import replacing, scratch_folder
from repq.log import quiet
from repq.recipe import (
    NOTHING_TO_LOSE,
    Budget,
    DeployConfig,
    EngineName,
    GraphConfig,
    PlanConfig,
    PtqConfig,
    SensitivityConfig,
    ap_drop,
    holds,
)
from repq.results import PtqReport
from repq.stages.context import Context
from repq.stages.evaluate import evaluate_model
from repq.stages.ptq import ptq_checkpoint
from repq.stages.sensitivity import PLAN, measured_layers

SHARES = (0.02, 0.05, 0.1)
"""Of the multiply-adds, what plans may keep in float, one after the other."""

RANKED_BY = SensitivityConfig(images=8)
"""How layers are ranked for these plans: their SNR, not the ranking, decides between them."""

SCATTER = 2.0
"""How many times the budget a loss may be with which any plan is tried."""

SIMULATION = "the simulation"

NOTHING_TO_KEEP = (
    "on train images no layers that cost so little would bring boxes and scores closer to the float model's"
)


@dataclass(frozen=True)
class Held:
    """What was quantized, and what it loses where it was measured: in an engine, or in torch's simulation."""

    report: PtqReport
    ap: float | None
    where: str
    planned: bool

    @property
    def drop(self) -> float | None:
        """AP that is lost; None: it was not evaluated, or the float model finds nothing."""
        return None if self.ap is None else self.lost(self.ap)

    def lost(self, ap: float) -> float | None:
        """What is lost where the AP is this; None: the float model was not evaluated, or finds nothing."""
        before = self.report.accuracy_float
        return None if before is None else ap_drop(before.ap, ap)

    @property
    def in_engine(self) -> tuple[str, float] | None:
        """The engine that it was measured in, and its AP there; None: it was not."""
        return None if self.ap is None or self.where == SIMULATION else (self.where, self.ap)

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
    context: Context
    plan: Path | None = None
    target: EngineName | None = None
    evaluate: bool = True
    deploy: DeployConfig = DeployConfig()
    before: PtqReport | None = None

    def as_in(self, report: PtqReport) -> PtqJob:
        """The same with the settings that were chosen, for other layers in float.

        What hangs on no layer is not measured again.
        """
        return replace(self, config=chosen_settings(self.config, report), before=report)

    def run(self, out: Path) -> Held:
        """Quantize, and measure where it is to run."""
        report = ptq_checkpoint(
            self.weights, out, self.config, self.context, plan=self.plan, before=self.before, deploy=self.deploy,
            evaluate=self.evaluate,
        )  # fmt: skip
        after = report.accuracy_quantized
        held = Held(report, None if after is None else after.ap, SIMULATION, self.plan is not None)
        if self.target is None or after is None:
            return held
        return replace(held, ap=self.ap_in(self.target, out), where=self.target)

    def ap_in(self, engine: EngineName, out: Path) -> float:
        """AP of what was quantized in an engine; what is odd in the data was said before."""
        own = replace(self.context, graph=GraphConfig(), device="cpu", log=quiet)
        return evaluate_model(out, own, engine=engine)[0].ap

    def judged(self, held: Held, out: Path, max_drop: float) -> Held:
        """The same, with what is lost in the engine that loses most where nobody named a target.

        Engines are those of `judges` that take the model. Simulation and engines differ by half a point on a hundred
        images, where AP is what has to hold in engines.
        """
        if self.target is not None or held.drop is None or max_drop >= 1:
            return held
        from repq.distributed import told_by_first

        log, found = self.context.log, list[tuple[float, EngineName]]()
        for name in told_by_first(judges):
            try:
                found.append((self.ap_in(name, out), name))
            except EngineError as error:
                log(f"not judged in {name}: {error}")
        if not found:
            return held
        drops = ", ".join(f"{held.lost(ap):.4f} in {name}" for ap, name in found)
        log(f"loses {held.drop:.4f} AP in {SIMULATION}, {drops}")
        ap, where = min(found)
        return replace(held, ap=ap, where=where)


def quantize_within(job: PtqJob, out: Path, max_drop: float) -> Held:
    """Quantize; where more than ``max_drop`` AP is lost, try what is left, and keep in ``out`` what loses least.

    Where sums saturate in the target on this machine, that is a reduced range of weights; then the layers are measured,
    and those that cost most stay in float: the plan and its report are in ``OUT.sensitivity``. Nothing more is tried
    where the settings were named (``job.config.auto`` is false) or a plan was given.

    Torchrun's processes share the work; the first writes, the others have files of their own for as long as it takes.

    Raises:
        RepqError: as `ptq_checkpoint` and `measured_layers`.
    """
    with job.context.shared() as (context, is_first), ExitStack() as stack:
        own = out if is_first else stack.enter_context(scratch_folder()) / out.name
        return _within(replace(job, context=context), own, max_drop)


def _within(job: PtqJob, out: Path, max_drop: float) -> Held:
    from repq.distributed import told_by_first

    log = job.context.log
    best = job.judged(job.run(out), out, max_drop)
    if job.target is None and job.config.scheme == "asymmetric" and not job.config.reduce_range:
        for entry in ENGINES:
            if note := entry.saturation():
                log(f"{entry.title}: {note}; `--target {entry.name}` measures in it")
    if not best.measurable:
        log(NOTHING_TO_LOSE)
    if best.within(max_drop) or best.planned or not job.config.auto:
        return best
    targets = () if job.target is None else (job.target,)
    if told_by_first(lambda: reduced_range(job.config, targets) is not None):
        log(f"loses {best.drop:.4f} AP in {job.target} of {max_drop:g} allowed: trying a reduced range of weights …")
        reduced = replace(job, config=job.config.model_copy(update={"reduce_range": True}))
        found = _keeping_better(reduced, best, out, max_drop)
        job, best = (reduced, found) if _loses_less(found, best) else (job, best)
        if best.within(max_drop):
            return best
    log(f"loses {best.drop:.4f} AP of {max_drop:g} allowed: looking for layers to keep in float …")
    return replace(_with_plans(job, best, out, max_drop), planned=True)


def _with_plans(job: PtqJob, best: Held, out: Path, max_drop: float) -> Held:
    """The least loss of ``best``, which is in ``out``, and of what `plans` lead to up to the first that is good enough.

    Layers are measured with the settings that were chosen for ``best``. The first plan chooses anew: which settings are
    best can hang on the few layers that spoil the result, and those are in float then. Larger plans have the same. A
    plan that gains less than `gain_for` is passed over as long as a larger one is left.
    """
    log = job.context.log
    folder, tried = out.with_name(f"{out.name}.sensitivity"), set[frozenset[str]]()
    whole, job = job.as_in(best.report), replace(job, before=best.report)
    *smaller, largest = plans()
    chosen: PlanConfig | None = None
    with measured_layers(
        job.weights, folder, RANKED_BY, whole.config, job.context, plan=largest, replaces_others=True
    ) as measured:
        wanted_db = gain_for(best.drop, max_drop)
        for config in (*smaller, largest):
            plan = measured.planned(config)
            assert plan is not None and config.max_float is not None
            kept, gain = frozenset(plan.float_layers), plan.gain_db or 0.0
            text = f"{percent_asked(config.max_float)} of the multiply-adds"
            if plan.adds_nothing or kept in tried:
                log(f"{text}: {NOTHING_TO_KEEP}" if plan.adds_nothing else f"{text}: the same layers")
                continue
            if gain < wanted_db and config != largest:
                log(f"{text}: {gain:+.1f} dB at the head is less than it takes ({wanted_db:.1f} dB)")
                continue
            tried.add(kept)
            log(f"{text}: {len(kept) - len(plan.kept_layers)} layers, {gain:+.1f} dB at the head …")
            found = _keeping_better(replace(job, plan=folder / PLAN), best, out, max_drop)
            job = job.as_in(found.report)
            best, chosen = (found, config) if _loses_less(found, best) else (best, chosen)
            if best.within(max_drop):
                break
        if chosen is not None and chosen != config:
            measured.planned(chosen)  # the folder shows what is in `out`
    return best


def judges() -> tuple[EngineName, ...]:
    """The engines that tell here what INT8 loses where no target is named; none whose sums saturate on this machine."""
    usable = (entry for entry in ENGINES if entry.by_default and entry.saturation() is None)
    return tuple(e.name for e in usable if any(row.usable for row in guarded(e.name, e.availability)))


def gain_for(drop: float | None, max_drop: float) -> float:
    """What the SNR has to gain in dB for a plan to be worth a try, if the loss of AP falls as the power of the noise.

    Up to `SCATTER` times the budget any gain is: so much a loss on some hundred images may be off.
    """
    return max(10 * math.log10(drop / (SCATTER * max_drop)), 0.0) if drop and drop > 0 and max_drop > 0 else 0.0


def plans() -> tuple[PlanConfig, ...]:
    """The plans to try, in this order: of more and more of the multiply-adds in float."""
    return tuple(PlanConfig(max_float=share) for share in SHARES)


def reduced_range(config: PtqConfig, engines: Collection[str]) -> PtqConfig | None:
    """The same settings with a reduced range of weights, if that is left to choose and helps one of these engines here.

    It helps where sums saturate on this machine; what is named is not chosen.
    """
    if not config.auto or config.reduce_range:
        return None
    helps = any(entry.name in engines and entry.saturation() for entry in ENGINES)
    return config.model_copy(update={"reduce_range": True}) if helps else None


def chosen_settings(config: PtqConfig, report: PtqReport) -> PtqConfig:
    """The settings that came of ``config``, without the layers in float of the plan that they were chosen for."""
    return PtqConfig.model_validate({**report.settings, "keep_float": config.keep_float})


def _keeping_better(job: PtqJob, than: Held, out: Path, max_drop: float) -> Held:
    """What comes of this job; it is in ``out`` if it `_loses_less`, which else is as it was."""
    with scratch_folder() as folder:
        made = folder / out.name
        found = job.judged(job.run(made), made, max_drop)
        if found.drop is not None:
            job.context.log(f"loses {found.drop:.4f} AP in {found.where}")
        if _loses_less(found, than):
            with replacing(out) as new:
                shutil.copyfile(made, new)
    return found


def _loses_less(found: Held, than: Held) -> bool:
    return found.drop is not None and than.drop is not None and found.drop < than.drop


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
