"""What a reader must know before believing the headline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from repq.printable import first_names
from repq.recipe import NOTHING_TO_LOSE
from repq.report.blocks import Block, Finding, Findings, Level
from repq.report.comparison import Comparison, engine_title
from repq.report.numbers import change, compact, count, plural, times
from repq.report.summary import BENCH, BUILD, CHECK, FUSE, MACHINES, PTQ, VERDICT, ReportSummary
from repq.report.verdict import time_again
from repq.results import UNKNOWN, PtqReport, Verdict
from repq.results.timing import MachineLoad, Timed

_SHOWN = 6  # names of layers and blocks in a sentence


def findings(summary: ReportSummary, comparisons: tuple[Comparison, ...]) -> list[Finding]:
    """State what to ship, then what the figures give cause to say, the worst first; what is well comes last."""
    faster = [item.title for item in comparisons if item.speed_level == "good" and item.accuracy_level == "good"]
    losing = next((item for item in comparisons if item.accuracy_level in ("warn", "bad")), None)
    found = [
        finding for item in comparisons
        for finding in _engine_findings(item, faster, summary.get(PTQ) if item is losing else None, summary.target)
    ]  # fmt: skip
    again = () if summary.get(VERDICT) is None else (f"{time_again().capitalize()}.",)
    found += disturbed(summary.get(BENCH), *again) + _baseline_findings(summary)
    if summary.get(BENCH) is None:
        found += disturbed_machines(summary.get(MACHINES) or {})
    found += _check_findings(summary, comparisons) + _fusion_findings(summary)
    found.sort(key=lambda finding: ("bad", "warn", "", "muted", "good").index(finding.level))
    return [*_shipping_findings(summary.get(VERDICT)), *found]


def _engine_findings(
    comparison: Comparison, faster: Sequence[str], ptq: PtqReport | None, target: str | None
) -> list[Finding]:
    title, found = comparison.title, list[Finding]()

    def say(level: Level, text: str, remedy: str = "") -> None:
        found.append(Finding(level, f"{title}: {text}.", remedy))

    if comparison.ap_change is not None and comparison.accuracy_level != "good":
        bound = compact(comparison.max_drop)
        text = f"INT8 changes AP by {change(comparison.ap_change)}, a loss of more than the {bound} allowed"
        if comparison.in_noise:
            text += "; these images cannot tell it from no change"
        say(comparison.accuracy_level, text + _noisiest(ptq),
            "Measure on more images." if comparison.in_noise else
            "Let repq choose (ptq --auto), keep the layers that cost most in float (repq sensitivity, ptq --plan), or "
            "train (repq qat).")  # fmt: skip
    if comparison.speedup is not None and comparison.speed_level == "warn":
        cause = f", where {count(len(comparison.not_int8))} layers run in float" if comparison.not_int8 else ""
        asked = f" ({times(comparison.min_speedup)} is asked for)" if comparison.min_speedup != 1 else ""
        say(
            "warn",
            f"INT8 does not pay here: it is {times(comparison.speedup)} as fast as FP32{asked}{cause}",
            f"Ship it in {' or '.join(faster)}." if faster else "Ship FP32 here, or try another runtime (--target).",
        )
    if comparison.not_int8:
        precisions = " and ".join(sorted({layer.precision for layer in comparison.not_int8}))
        number = f"{count(len(comparison.not_int8))} of {plural(comparison.layers or 0, 'layer')}"
        layers = first_names([layer.layer for layer in comparison.not_int8], _SHOWN)
        remedy = f"--target {comparison.engine} chooses a scheme that it runs; repq lint names what it does not."
        if comparison.engine == target:
            remedy = "repq lint names what it does not run."
        say(comparison.precision_level, f"{number} quantized but executed in {precisions}: {layers}", remedy)
    if comparison.unreported:
        number = plural(len(comparison.unreported), "quantized layer")
        say(
            comparison.precision_level,
            f"the runtime does not say how it ran {number}: {first_names(comparison.unreported, _SHOWN)}",
        )
    if comparison.layers and comparison.int8_layers is not None and comparison.precision_level == "good":
        number = f"{comparison.int8_layers} of {plural(comparison.layers, 'layer')}"
        say("good", f"every layer planned in INT8 was executed in INT8 ({number})")
    return found


def _shipping_findings(verdict: Verdict | None) -> list[Finding]:
    """Which engine to ship, or what to try next."""
    if verdict is None:
        return []
    if verdict.ship is None:
        remedy = f"{verdict.next[0].upper()}{verdict.next[1:]}." if verdict.next else ""
        return [Finding("bad", "No engine in INT8 is good enough to ship.", remedy)]
    return [Finding("good", f"To ship: {engine_title(verdict.ship)} INT8.")]


def disturbed(timed: MachineLoad | None, remedy: str = "Time again while nothing else computes.") -> list[Finding]:
    """What is to be said of times that were taken while other processes had the cores that the models needed."""
    if timed is None or not timed.crowded:
        return []
    return [Finding("warn", f"{load_of(timed)}: no latency and no speedup is to be trusted.", remedy)]


def disturbed_machines(machines: Mapping[str, Timed]) -> list[Finding]:
    """The same of several machines, each by its name."""
    return [
        replace(finding, text=f"{name}: {finding.text}")
        for name, timed in machines.items() for finding in disturbed(timed)
    ]  # fmt: skip


def load_of(timed: MachineLoad) -> str:
    """What else the machine did."""
    machine = timed.environment if isinstance(timed, Timed) else None
    cores = "cores" if machine is None else f"of {plural(machine.cores, 'core')}"
    if timed.others is not None:
        return f"Other processes kept {timed.others:.1f} {cores} busy meanwhile"
    load = "is not known" if machine is None else f"was {machine.load_average:.2f} on {plural(machine.cores, 'core')}"
    return f"The load of the machine {load}"


def _baseline_findings(summary: ReportSummary) -> list[Finding]:
    """An FP32 baseline that the runtime did not run in FP32 makes a comparison unfair."""
    found = []
    for name, description in (summary.get(BUILD) or {}).items():
        other = [layer for layer in description.layers if layer.precision not in ("float32", UNKNOWN)]
        if name.endswith("-float32") and other:
            precisions = " and ".join(sorted({layer.precision for layer in other}))
            text = f"the FP32 baseline ran {plural(len(other), 'layer')} in {precisions}"
            remedy = "The speedup is against that, not against FP32."
            found.append(Finding("warn", f"{engine_title(description.engine)}: {text}.", remedy))
    return found


def _check_findings(summary: ReportSummary, comparisons: Sequence[Comparison]) -> list[Finding]:
    check = summary.get(CHECK)
    if check is None or not check.engines:
        return []
    widest = max(check.engines, key=lambda engine: abs(engine.ap_gap or 0.0))
    if widest.ap_gap is None:
        gap = "AP cannot tell, since the simulation finds no object"
    else:
        gap = f"the widest gap is {change(widest.ap_gap)} AP ({engine_title(widest.title)}; allowed "
        gap += f"±{compact(check.max_drop)})"
    if check.passed:
        level: Level = "warn" if widest.ap_gap is None else "good"
        nothing = widest.ap_gap is None and check.min_snr_db is None  # any loss was allowed
        agreed = "The engines were not compared" if nothing else "The engines agree with torch's simulation"
        return [Finding(level, f"{agreed}; {gap}.")]
    if not check.failing([item.engine for item in comparisons if item.accuracy_level == "good"]):
        text = f"AP in the engines is not near that of torch's simulation; {gap}. Against FP32 it holds, which counts."
        return [
            Finding("warn", text, "Measure on more images: on few, a handful of values that round otherwise counts.")
        ]
    reasons = [gap] if any(not check.within(row) and check.within(row, by_ap=False) for row in check.failing()) else []
    lowest = min(snr for engine in check.engines for snr in engine.snr_db.values())
    if check.min_snr_db is not None and lowest < check.min_snr_db:
        reasons.append(f"the lowest SNR is {lowest:.1f} dB (demanded: {check.min_snr_db:.1f} dB)")
    text = f"The engines do not agree with torch's simulation: {'; '.join(reasons) or 'see below'}."
    remedy = "Look for layers in another precision than planned (Executed precision; repq describe ENGINE)."
    return [Finding("bad", text, remedy)]


def _fusion_findings(summary: ReportSummary) -> list[Finding]:
    fusion = summary.get(FUSE)
    if fusion is None:
        return []
    above = [block.block for block in fusion.blocks if block.max_rel_error > fusion.tolerance]
    error = f"relative error {compact(fusion.max_rel_error)}"
    bound = f"tolerance {compact(fusion.tolerance)}"
    if above or fusion.max_rel_error > fusion.tolerance:
        where = f"; blocks: {first_names(above, _SHOWN)}" if above else ""
        text = f"Fusing changes the model: {error}, {bound}{where}."
        return [Finding("bad", text, "repq fuse shows the error of every block.")]
    return [Finding("good", f"Fusing kept the model: {error} on {plural(fusion.images, 'image')}, {bound}.")]


def _noisiest(ptq: PtqReport | None) -> str:
    """The layers whose INT8 is furthest from float, as the likely cause."""
    found = {
        row.layer: min(snr for snr in (row.weight_snr_db, row.activation_snr_db) if snr is not None)
        for row in (ptq.layers if ptq else ())
        if row.precision == "int8" and (row.weight_snr_db, row.activation_snr_db) != (None, None)
    }
    worst = sorted(found, key=found.__getitem__)[:3]
    return "; noisiest: " + ", ".join(f"{layer} ({found[layer]:.0f} dB)" for layer in worst) if worst else ""


def unproven(before: float | None) -> list[Block]:
    """What is to be said where the float model's AP is 0, of which every INT8 model keeps all; else nothing."""
    if before != 0:
        return []
    remedy = "Nothing is proven of the INT8 model: look at what `repq predict` finds, at the preset and the image size."
    return [Findings([Finding("bad", f"{NOTHING_TO_LOSE[0].upper()}{NOTHING_TO_LOSE[1:]}.", remedy)])]
