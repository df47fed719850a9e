"""Results as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from repq.report.summary import VARIANT_TITLES
from repq.results import (
    Accuracy,
    Availability,
    BenchReport,
    CheckReport,
    EngineDescription,
    Environment,
    FusionReport,
    PlanReport,
    PtqReport,
    Sensitivity,
    TrainReport,
)

WIDTH = 140


def table_text(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Draw a table; the first ``left`` columns are aligned left, numbers right."""
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    with StringIO() as buffer:
        Console(file=buffer, width=WIDTH, color_system=None).print(table)
        return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def fraction(value: float | None) -> str:
    """An AP in 0..1 with four digits; a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def span(bounds: tuple[float, float]) -> str:
    """A range of values."""
    return f"{bounds[0]:.3g} … {bounds[1]:.3g}"


def fusion_table(report: FusionReport) -> str:
    """The proof of fusing, a row per block."""
    rows = [
        (block.block, block.kind, f"{block.max_abs_error:.2e}", f"{block.max_rel_error:.2e}",
         span(block.weight_range_before), span(block.weight_range_after))
        for block in report.blocks
    ]  # fmt: skip
    columns = ("block", "kind", "max error", "of range", "weights before", "weights after")
    verdict = (
        f"whole model on {report.images} images: max error {report.max_abs_error:.2e}, "
        f"{report.max_rel_error:.2e} of the output's range (bound {report.tolerance:.0e})"
    )
    return f"{table_text(f'{report.model}: fused blocks', columns, rows, left=2)}\n{verdict}"


def train_table(report: TrainReport) -> str:
    """Losses and AP by epoch."""
    names = list(dict.fromkeys(name for row in report.epochs for name in row.losses))
    rows = [
        (str(row.epoch), f"{row.learning_rate:.2e}", *(f"{row.losses.get(name, 0):.3f}" for name in names),
         fraction(row.ap), fraction(row.ap50), f"{row.seconds:.1f}")
        for row in report.epochs
    ]  # fmt: skip
    columns = ("epoch", "learning rate", *names, "AP", "AP50", "seconds")
    verdict = (
        f"best epoch {report.best_epoch}: AP {report.accuracy.ap:.4f}, AP50 {report.accuracy.ap50:.4f}; "
        f"{report.images} images, {report.images_per_s:.1f} images/s"
    )
    return f"{table_text(report.model, columns, rows, left=0)}\n{verdict}"


def accuracy_table(accuracy: Accuracy, title: str) -> str:
    """The COCO metrics, and the classes that the data holds."""
    rows = [
        (row.name, str(row.objects), fraction(row.ap), fraction(row.ap50)) for row in accuracy.per_class if row.objects
    ]
    classes = table_text("per class", ("class", "objects", "AP", "AP50"), rows)
    head = (
        f"{title}: {accuracy.images} images, {accuracy.objects} objects, {accuracy.detections} detections\n"
        f"AP {fraction(accuracy.ap)}  AP50 {fraction(accuracy.ap50)}  AP75 {fraction(accuracy.ap75)}  "
        f"small {fraction(accuracy.ap_small)}  medium {fraction(accuracy.ap_medium)}  "
        f"large {fraction(accuracy.ap_large)}"
    )
    return f"{classes}\n{head}"


def ptq_table(report: PtqReport) -> str:
    """Ranges and errors per layer, and what quantization cost."""
    rows = [
        (row.layer, row.precision, span(row.weight_range), f"{row.weight_channel_ratio:.1f}",
         "–" if row.weight_snr_db is None else f"{row.weight_snr_db:.1f}", span(row.activation_range),
         "–" if row.activation_snr_db is None else f"{row.activation_snr_db:.1f}")
        for row in report.layers
    ]  # fmt: skip
    columns = ("layer", "runs", "weights", "channel ratio", "SNR dB", "activations", "SNR dB")
    before, after = report.accuracy_float, report.accuracy_quantized
    verdict = (
        f"{sum(row.precision == 'int8' for row in report.layers)} of {len(report.layers)} layers INT8 "
        f"({report.int8_macs_share:.1%} of the multiply-adds), {report.method} over {report.images} images, "
        f"{report.scheme}\nAP {before.ap:.4f} -> {after.ap:.4f} ({after.ap - before.ap:+.4f})  "
        f"AP50 {before.ap50:.4f} -> {after.ap50:.4f} ({after.ap50 - before.ap50:+.4f})"
    )
    return f"{table_text(report.model, columns, rows, left=2)}\n{verdict}"


def engine_table(description: EngineDescription) -> str:
    """The precision that each layer really runs in."""
    rows = [(layer.layer, layer.precision, layer.kernel) for layer in description.layers]
    counts = ", ".join(f"{count} {precision}" for precision, count in description.precision_counts().items())
    extra = ", ".join(f"{count} {kind}" for kind, count in description.extra_nodes.items()) or "none"
    title = f"{description.engine} {description.version} on {description.device}"
    return (
        f"{table_text(title, ('layer', 'precision', 'kernel'), rows, left=3)}\n"
        f"layers: {counts}; nodes beside them: {extra}; {description.size_bytes / 2**20:.1f} MiB"
    )


def check_table(report: CheckReport) -> str:
    """Engines against the reference."""
    rows = [
        (row.engine, fraction(row.accuracy.ap), f"{row.ap_gap:+.4f}",
         "  ".join(f"{name} {value:.1f}" for name, value in row.snr_db.items()),
         "  ".join(f"{name} {value:.3g}" for name, value in row.max_abs_error.items()),
         f"{row.int8_layers}/{row.int8_layers + row.float_layers}")
        for row in report.engines
    ]  # fmt: skip
    columns = ("engine", "AP", "gap", "SNR dB", "max error", "layers INT8")
    title = f"reference AP {report.reference.ap:.4f} on {report.images} images"
    verdict = "agree" if report.passed else "do NOT agree"
    return f"{table_text(title, columns, rows)}\nthe engines {verdict} within {report.max_ap_gap} AP"


def bench_table(report: BenchReport) -> str:
    """Latency and throughput, models side by side."""
    rows = [
        (row.model, row.engine, VARIANT_TITLES[row.variant], row.precision, row.scope, str(row.batch), str(row.threads),
         f"{row.latency_ms_median:.2f}", f"{row.latency_ms_p95:.2f}", f"{row.images_per_s:.1f}",
         "–" if row.speedup is None else f"{row.speedup:.2f}x")
        for row in report.rows
    ]  # fmt: skip
    columns = (
        "model", "engine", "built as", "layers ran in", "scope", "batch", "threads", "median ms", "p95 ms",
        "images/s", "speed-up",
    )  # fmt: skip
    height, width = report.imgsz
    title = f"{height}x{width}, {report.rounds} rounds, load {report.environment.load_average:.1f}"
    return f"{table_text(title, columns, rows, left=5)}\n{report.environment.cpu}, {report.environment.cores} cores"


def doctor_table(environment: Environment, rows: Sequence[Availability]) -> str:
    """What can be used on this machine."""
    cells = [
        (row.runtime, row.device, "yes" if row.usable else "no", row.version or "–",
         row.detail if row.fix is None else f"{row.detail} ({row.fix})")
        for row in rows
    ]  # fmt: skip
    features = ", ".join(environment.cpu_features) or "none that matter for INT8"
    return (
        f"{table_text('runtimes', ('runtime', 'device', 'usable', 'version', 'detail'), cells, left=5)}\n"
        f"{environment.cpu}: {environment.cores} cores, {environment.memory_gib:.0f} GiB, {features}"
    )


def run_table(headline: Mapping[str, Any]) -> str:
    """The figures of a run that matter most."""
    rows = [
        (row["model"], fraction(row["ap"]), fraction(row["ap50"]), f"{row['latency_ms_median']:.2f}",
         f"{row['images_per_s']:.1f}", f"{row['size_bytes'] / 2**20:.2f}")
        for row in headline["models"]
    ]  # fmt: skip
    columns = ("engine", "AP", "AP50", "median ms", "images/s", "MiB")
    return table_text(str(headline["name"]), columns, rows)


def sensitivity_table(measured: Sensitivity, plan: PlanReport) -> str:
    """All measures side by side, in model order; a star marks the layers that the plan keeps in float."""
    kept = set(plan.float_layers)
    places = ("local", "neck", "head")
    rows = []
    for row in measured.layers:
        found = [getattr(row, place) for place in places]
        snr = ["–" if value is None else f"{value.snr_db:.1f}" for value in found]
        cosine = ["–" if value is None else f"{value.cosine:.5f}" for value in found]
        ap = [fraction(row.ap_only_int8), fraction(row.ap_only_float)]
        rows.append(["*" if row.layer in kept else "", row.layer, f"{row.macs / 1e6:.2f}", *snr, *cosine, *ap])
    columns = ["", "layer", "MMACs", *(f"{place} dB" for place in places), *(f"{place} cos" for place in places)]
    verdict = f"{len(kept)} of {len(measured.layers)} layers stay in float; {plan.int8_macs_share:.1%} of the MACs INT8"
    if plan.drop is not None and plan.drop_interval is not None:
        low, high = plan.drop_interval
        verdict += f"; AP drop {plan.drop:.4f} (95 %: {low:.4f} … {high:.4f}) on {plan.images} images"
    seconds = ", ".join(f"{measure} {value:.1f} s" for measure, value in measured.seconds.items())
    title = f"{measured.model}, {measured.scheme}"
    return f"{table_text(title, [*columns, 'AP only', 'AP without'], rows, left=2)}\n{verdict}\ncost: {seconds}"


def lint_table(report: Mapping[str, Any]) -> str:
    """What a graph costs in TensorRT, the gravest findings first; ``report`` is a lint report as plain values."""
    rows = [[finding[key] for key in ("severity", "rule", "where", "message")] for finding in report["findings"]]
    int8 = sum(layer["precision"] == "int8" for layer in report["layers"])
    counts = report["counts"]
    verdict = (
        f"{int8} of {len(report['layers'])} layers INT8; {counts['quantize']} Q, {counts['dequantize']} DQ on "
        f"activations; {counts['extra_kernels']} predicted extra kernels, {counts['avoidable']} avoidable"
    )
    if not rows:
        return f"nothing to report\n{verdict}"
    return f"{table_text('findings', ('severity', 'rule', 'where', 'what'), rows, left=4)}\n{verdict}"
