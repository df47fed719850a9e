"""The headline and what gives cause for care, what was measured where, pictures, and how every artifact was made."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from repq.report.blocks import (
    Block,
    Card,
    Cards,
    Column,
    Columns,
    Facts,
    Figure,
    Level,
    Listing,
    Metric,
    Picture,
    PictureRow,
    Table,
    Text,
    noted,
    number,
    table,
)
from repq.report.comparison import TORCH, Comparison, accuracy_of, built_title, comparisons, engine_title
from repq.report.findings import findings
from repq.report.numbers import (
    change,
    count,
    fraction,
    interval,
    mebibytes,
    milliseconds,
    percent,
    plural,
    release,
    significant,
    times,
)
from repq.report.plots import paired_bars
from repq.report.sections.pruning import pruned_to
from repq.report.summary import (
    BENCH,
    BUILD,
    CHECK,
    EVAL,
    FUSE,
    MACHINES,
    PICTURES,
    PRUNE,
    PTQ,
    TRAIN,
    VERDICT,
    ReportSummary,
    Section,
)
from repq.results import Availability, BenchRow, DrawnImage, Environment


def _headline(summary: ReportSummary) -> list[Block]:
    """FP32 → INT8 per engine, with findings and side-by-side bars."""
    compared = comparisons(summary)
    # Torch's simulation is the headline only where no engine was run.
    shown = [comparison for comparison in compared if comparison.engine != TORCH] or list(compared)
    blocks: list[Block] = [Cards([_card(comparison) for comparison in shown])] if shown else []
    return [*blocks, *noted(findings(summary, compared)), *_bars(shown)]


def _measured(summary: ReportSummary) -> list[Block]:
    """The model, the data and the settings."""
    ptq, training, fusion = summary.get(PTQ), summary.get(TRAIN), summary.get(FUSE)
    pruning = summary.get(PRUNE)
    items: list[tuple[str, str]] = []
    if model := summary.model or (ptq.model if ptq else fusion.model if fusion else None):
        items.append(("Model", model))
    if training:
        items.append(("Parameters", count(training.parameters)))
    if pruning:
        items.append(("Pruned", pruned_to(pruning)))
    if summary.recipe:
        items.append(("Recipe", summary.recipe))
    if summary.data:
        items.append(("Data", summary.data))
    if summary.imgsz:
        items.append(("Network input", f"{summary.imgsz[0]} × {summary.imgsz[1]} pixels (height × width)"))
    measured = accuracy_of(summary, TORCH, "float32") or next(iter((summary.get(EVAL) or {}).values()), None)
    if measured:
        items.append(("Evaluated on", f"{plural(measured.images, 'image')} with {plural(measured.objects, 'object')}"))
    if ptq:
        int8 = sum(layer.precision == "int8" for layer in ptq.layers)
        by = ptq.settings.get("weight_granularity", "channel")
        reduced = " of a reduced range" if ptq.settings.get("reduce_range") else ""
        items += [
            ("Quantization", f"{ptq.scheme} INT8, per-{by} weights{reduced}, per-tensor activations"),
            ("Calibration", f"{ptq.calibration or ptq.method}, on {plural(ptq.images, 'image')}"),
            *([("Corrections", ", ".join(row.title for row in ptq.corrections))] if ptq.corrections else []),
            ("Layers in INT8", f"{int8} of {len(ptq.layers)}: {percent(ptq.int8_macs_share)} of the multiply-adds"),
        ]
    if built := summary.get(BUILD):
        versions = {row.engine: row.version for row in built.values()}
        names = (f"{engine_title(engine)} {release(version)}" for engine, version in versions.items())
        items.append(("Engines", ", ".join(names)))
    environments = [bench.environment for bench in (summary.get(MACHINES) or {}).values()] or [summary.environment]
    machines = dict.fromkeys(environment.gpu or environment.cpu for environment in environments)
    items += [("Machine", ", ".join(machines)), ("Date", summary.created)]
    return [Facts(items)]


def _pictures(summary: ReportSummary) -> list[Block]:
    """What there is to find beside what both models found, the worst changes first."""
    shown = summary[PICTURES]
    if not shown.images:
        return []
    lead = (
        f"Boxes of {engine_title(shown.engine)}; score at least {shown.confidence:.2f}. Of {shown.looked_at} images "
        "those that INT8 changed most for the worse come first; boxes with a white rim were lost, or are new."
    )
    return [Text(lead), *map(_row, shown.images)]


def _environment(summary: ReportSummary) -> list[Block]:
    """The machine of the run, and that of the timing where it is another one."""
    bench, lead = summary.get(BENCH), ""
    blocks: list[Block] = [*_machine_blocks(summary.environment)]
    if len(summary.get(MACHINES) or ()) > 1:
        lead = "Of the first machine; the others are in the table of machines."
    if bench is not None and _identity(bench.environment) != _identity(summary.environment):
        lead = "The timing ran on another machine than the rest; it is given second."
        blocks += _machine_blocks(bench.environment)
    return [Text(lead), *blocks] if lead else blocks


def _manifests(summary: ReportSummary) -> list[Block]:
    if not summary.manifests:
        return []
    lead = "How each artifact was made: stage, configuration, hashes of the inputs, versions, seed."
    return [Text(lead), *(Listing(_manifest_title(manifest), _pretty(manifest)) for manifest in summary.manifests)]


HEADLINE = Section(
    "headline", "FP32 → INT8", _headline, uses=(VERDICT, EVAL, BUILD, BENCH, CHECK, FUSE, PTQ), short="Summary"
)
MEASURED = Section(
    "measured", "What was measured", _measured, uses=(EVAL, BUILD, FUSE, PRUNE, PTQ, TRAIN), short="Setup"
)
BOXES = Section("pictures", "Boxes of both models", _pictures, needs=(PICTURES,), short="Boxes")
ENVIRONMENT = Section("environment", "Environment", _environment, uses=(BENCH, MACHINES))
MANIFESTS = Section("manifests", "Manifests", _manifests)


def run_table(headline: Mapping[str, Any]) -> Table:
    """For the terminal: the figures of a run that matter most."""
    columns: Columns[Mapping[str, Any]] = (
        Column("Engine", lambda row: built_title(row["model"])),
        number("AP", lambda row: row["ap"], fraction),
        number("AP50", lambda row: row["ap50"], fraction),
        number("Median, ms", lambda row: row["latency_ms_median"], significant),
        number("Images/s", lambda row: row["images_per_s"], significant),
        number("Size", lambda row: row["size_bytes"], mebibytes),
    )
    return table(str(headline["name"]), columns, headline["models"])


def doctor_blocks(environment: Environment, rows: Sequence[Availability]) -> list[Block]:
    """For the terminal: what can be used on this machine."""
    columns: Columns[Availability] = (
        Column("Runtime", "runtime"),
        Column("Device", "device"),
        Column("Usable", lambda row: "yes" if row.usable else "no"),
        Column("Version", "version"),
        Column("Detail", lambda row: row.detail if row.fix is None else f"{row.detail} ({row.fix})", wrap=True),
    )
    features = ", ".join(environment.cpu_features) or "none that matter for INT8"
    machine = f"{environment.cpu}: {environment.cores} cores, {environment.memory_gib:.0f} GiB, {features}"
    return [table("Runtimes", columns, rows), Text(machine)]


def settings_blocks(section: str, rows: Sequence[Mapping[str, Any]], about: str) -> list[Block]:
    """For the terminal: the settings of a section of recipes."""
    columns: Columns[Mapping[str, Any]] = (
        Column("Setting", lambda row: row["name"], code=True),
        Column("Default", lambda row: "(required)" if row["required"] else json.dumps(row["default"]), wrap=True),
        Column("Range", lambda row: row["range"], wrap=True),
        Column("Option", lambda row: row["option"], optional=True, wide=True),
        Column("Meaning", lambda row: row["help"], wrap=True),
    )
    return [Text(about), table(section, columns, rows)]


def _card(comparison: Comparison) -> Card:
    return Card(
        title=comparison.title,
        level=comparison.level,
        verdict=_verdict(comparison),
        metrics=[metric for measure in _MEASURES for metric in measure.metric(comparison)],
        note=_note(comparison),
    )


def _verdict(comparison: Comparison) -> str:
    """The worst trouble in a few words."""
    if not comparison.level or comparison.level == "good":
        return "OK" if comparison.level else ""
    troubles = (
        (comparison.accuracy_level, "accuracy loss"),
        (comparison.precision_level, "not all in INT8" if comparison.not_int8 else "precision not told"),
        (comparison.speed_level, "not faster"),
    )
    return ", ".join(words for level, words in troubles if level in ("warn", "bad"))


@dataclass(frozen=True)
class _Measure:
    """A figure of FP32 beside that of INT8: a line of a card, and a pair of bars."""

    name: str
    title: str
    pair: Callable[[Comparison], tuple[float | None, float | None]]
    write: Callable[[float | None], str]
    words: Callable[[Comparison], str]
    level: Callable[[Comparison], Level]
    bars: Callable[[float | None], str]
    unit: float = 1.0  # of the bars

    def metric(self, comparison: Comparison) -> list[Metric]:
        before, after = self.pair(comparison)
        if after is None:
            return []
        words = self.words(comparison) if before is not None else ""
        return [Metric(self.name, self.write(before), self.write(after), words, self.level(comparison))]

    def figure(self, shown: Sequence[Comparison], setting: str) -> list[Figure]:
        found = {comparison.title: self.pair(comparison) for comparison in shown}
        pairs = {
            title: (before / self.unit, after / self.unit)
            for title, (before, after) in found.items()
            if before is not None and after is not None
        }
        if not pairs:
            return []
        draw = partial(paired_bars, f"bars-{self.name.lower()}", pairs, self.bars)
        return [Figure(self.title.format(setting=setting), draw, f"{self.name} of FP32 and INT8 in each engine")]


def _aps(comparison: Comparison) -> tuple[float | None, float | None]:
    before, after = comparison.float_accuracy, comparison.int8_accuracy
    return None if before is None else before.defined(), None if after is None else after.defined()


def _medians(comparison: Comparison) -> tuple[float | None, float | None]:
    before, after = comparison.float_latency, comparison.int8_latency
    return None if before is None else before.latency_ms_median, None if after is None else after.latency_ms_median


_MEASURES = (
    _Measure("AP", "Accuracy (AP, higher is better)", _aps, fraction, lambda item: change(item.ap_change),
             lambda item: item.accuracy_level, fraction),
    _Measure("Latency", "Latency (median ms{setting})", _medians, milliseconds,
             lambda item: f"{times(item.speedup)} as fast", lambda item: item.speed_level, significant),
    _Measure("Size", "Size (MiB on disk)", lambda item: (item.float_size_bytes, item.int8_size_bytes), mebibytes,
             lambda item: f"{percent(item.size_ratio)} of FP32", lambda item: "", significant, 2**20),
)  # fmt: skip


def _setting(row: BenchRow) -> str:
    scope = "inference" if row.scope == "infer" else "end to end"
    return f"{scope}, batch {row.batch}, {plural(row.threads, 'thread')}"


def _note(comparison: Comparison) -> str:
    parts = []
    if comparison.ap_interval:
        parts.append(f"95 % interval of the AP change, by resampling the images: {interval(comparison.ap_interval)}")
    if comparison.int8_latency:
        parts.append(f"median latency: {_setting(comparison.int8_latency)}")
    if comparison.int8_layers is not None:
        parts.append(f"{comparison.int8_layers} of {plural(comparison.layers or 0, 'layer')} executed in INT8")
    if comparison.float_accuracy and comparison.float_engine != comparison.engine:
        parts.append(f"FP32 AP measured in {engine_title(comparison.float_engine)}")
    return "; ".join(parts)


def _bars(shown: Sequence[Comparison]) -> list[Figure]:
    timed = next((comparison.int8_latency for comparison in shown if comparison.int8_latency), None)
    setting = f", {_setting(timed)}" if timed else ""
    return [figure for measure in _MEASURES for figure in measure.figure(shown, setting)]


def _boxes(found: int) -> str:
    return f"{count(found)} box{'' if found == 1 else 'es'}"


def _row(image: DrawnImage) -> PictureRow:
    pictures = []
    for panel in image.panels:
        marked = f", {panel.marked} {panel.mark}" if panel.marked else ""
        caption = f"{panel.title}: {_boxes(panel.boxes)}{marked}"
        pictures.append(Picture(caption, base64.b64encode(panel.jpeg).decode()))
    return PictureRow(image.name, tuple(pictures))


def _machine_blocks(environment: Environment) -> tuple[Facts, Table]:
    facts = [
        ("CPU", environment.cpu),
        ("Cores", str(environment.cores)),
        ("CPU features", ", ".join(environment.cpu_features) or "none that matter here"),
        ("Memory", f"{environment.memory_gib:.1f} GiB"),
        ("Load average", f"{environment.load_average:.2f}"),
        ("GPU", environment.gpu or "none"),
        ("System", environment.os),
        ("Python", environment.python),
    ]
    columns: Columns[tuple[str, str]] = (
        Column("Library", lambda item: item[0]),
        Column("Version", lambda item: item[1]),
    )
    return Facts(facts), table("Libraries", columns, sorted(environment.libraries.items()), fold=13)


def _identity(environment: Environment) -> tuple[Any, ...]:
    return environment.cpu, environment.cores, environment.gpu, environment.os


def _manifest_title(manifest: Mapping[str, Any]) -> str:
    names = [str(manifest[key]) for key in ("stage", "name") if manifest.get(key)]
    return " · ".join(dict.fromkeys(names)) or "manifest"


def _pretty(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, default=str)
