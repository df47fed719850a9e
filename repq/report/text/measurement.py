"""What was measured on models, as text."""

from __future__ import annotations

from collections.abc import Sequence

from repq.report.summary import VARIANT_TITLES
from repq.report.text.tables import fraction, table_text
from repq.results import Accuracy, BenchReport, BenchRow, CheckReport, Estimate, ServiceRow


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
    devices = [row for row in report.rows if row.device_ms_median is not None]
    machine = f"{report.environment.cpu}, {report.environment.cores} cores"
    tables = [table_text(title, columns, rows, left=5), *([service_table(report.service)] if report.service else [])]
    if devices:
        tables.insert(1, device_table(devices))
    return "\n".join([*tables, machine])


def device_table(rows: Sequence[BenchRow]) -> str:
    """What the GPU itself needs, beside what the caller waits for, and how it was clocked."""
    cells = []
    for row in rows:
        gpu, device, graph = row.gpu, row.device_ms_median, row.device_graph_ms_median
        low, high = gpu.sm_clock_range_mhz if gpu else (0.0, 0.0)
        cells.append([
            row.model, row.engine, str(row.batch), f"{row.latency_ms_median:.2f}",
            "–" if device is None else f"{device:.2f}", "–" if graph is None else f"{graph:.2f}",
            "–" if gpu is None else f"{low:.0f} … {high:.0f} of {gpu.max_sm_clock_mhz or 0:.0f}",
            "–" if gpu is None or gpu.power_w is None else f"{gpu.power_w:.0f} of {gpu.power_limit_w or 0:.0f}",
            "–" if gpu is None else ", ".join(gpu.limited_by) or "nothing",
        ])  # fmt: skip
    columns = ("model", "engine", "batch", "host ms", "device ms", "CUDA graph ms", "SM MHz", "W", "clock limited by")
    return table_text("on the GPU", columns, cells, left=2)


def service_table(rows: Sequence[ServiceRow]) -> str:
    """What each step from JPEG to boxes costs, milliseconds per image."""
    cells = [
        (row.model, row.engine, row.loader, row.letterbox, row.nms, str(row.batch), f"{row.decode_ms:.2f}",
         f"{row.preprocess_ms:.2f}", f"{row.infer_ms:.2f}", f"{row.postprocess_ms:.2f}", f"{row.images_per_s:.1f}",
         f"{row.overlapped_images_per_s:.1f}", f"{row.bottleneck} {row.bottleneck_share:.0%}")
        for row in rows
    ]  # fmt: skip
    columns = (
        "model", "engine", "loader", "letterbox", "NMS", "batch", "decode", "pre", "infer", "post", "images/s",
        "overlapped", "bottleneck",
    )  # fmt: skip
    return table_text("JPEG to boxes, ms per image", columns, cells, left=5)


def estimate_tables(found: Sequence[Estimate], top: int) -> str:
    """Estimates side by side, and the kernels of the last one that take longest."""
    rows = [
        (row.device, str(row.batch), f"{row.latency_ms:.2f}", f"{row.images_per_s:.0f}", f"{row.roofline_ms:.2f}",
         f"{row.extra_kernels_ms:.3f}", str(len(row.kernels)))
        for row in found
    ]  # fmt: skip
    columns = ("device", "batch", "ms", "images/s", "peaks alone, ms", "extra kernels, ms", "kernels")
    parts = [table_text("ESTIMATED, not measured", columns, rows)]
    last = found[-1]
    slowest = sorted(last.kernels, key=lambda kernel: -kernel.total_us)[:top]
    if slowest:
        cells = [
            (kernel.name, kernel.kind, kernel.precision, kernel.bound, f"{kernel.gflops:.2f}",
             f"{kernel.megabytes:.2f}", f"{kernel.total_us:.1f}")
            for kernel in slowest
        ]  # fmt: skip
        title = f"slowest kernels on {last.device}, batch {last.batch}"
        names = ("kernel", "kind", "precision", "bound by", "GFLOP", "MB", "us")
        parts.append(table_text(title, names, cells, left=4))
    factors = f"factors between peak and reality: {last.efficiencies}"
    return "\n".join([*parts, factors, *dict.fromkeys(note for row in found for note in row.notes)])
