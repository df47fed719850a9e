"""What quantizing layers does, as text."""

from __future__ import annotations

from collections.abc import Sequence

from repq.report.text.tables import fraction, span, table_text
from repq.results import PlanReport, PtqReport, PtqTrial, Sensitivity


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
    if report.accuracy_own_scales is not None:
        own = report.accuracy_own_scales
        verdict += (
            f"\n{report.shared_groups} groups of layers share a scale: AP {own.ap:.4f} -> {after.ap:.4f} "
            f"({after.ap - own.ap:+.4f}) against scales of their own"
        )
    if report.extra_macs_share:
        verdict += f"\nsplit layers add {report.extra_macs_share:.1%} to the multiply-adds"
    tables = [table_text(report.model, columns, rows, left=2), *([trial_table(report.trials)] if report.trials else [])]
    return "\n".join([*tables, verdict])


def trial_table(trials: Sequence[PtqTrial]) -> str:
    """What each setting gained; a star marks what was kept."""
    rows = [
        ("*" if trial.kept else "", trial.name, f"{trial.head_snr_db:.2f}",
         "–" if trial.gain_db is None else f"{trial.gain_db:+.2f}", fraction(trial.ap_train), f"{trial.seconds:.1f}")
        for trial in trials
    ]  # fmt: skip
    columns = ("", "settings", "head SNR dB", "gain dB", "AP on train", "seconds")
    return table_text("what was tried, on images of the train split", columns, rows, left=2)


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
        verdict += (
            f"; AP drop {plan.drop:.4f} (95 %: {low:.4f} … {high:.4f}) on {plan.images} images, by {plan.measure}"
        )
    if plan.latency is not None:
        points = "  ".join(
            f"{'*' if point.chosen else ''}{point.latency_ms:.2f} ms {-point.drop:+.4f}"
            for point in plan.latency.points
            if point.efficient or point.chosen
        )
        verdict += f"\nAP against latency in {plan.latency.engine}: {points}"
    seconds = ", ".join(f"{measure} {value:.1f} s" for measure, value in measured.seconds.items())
    title = f"{measured.model}, {measured.scheme}"
    return f"{table_text(title, [*columns, 'AP only', 'AP without'], rows, left=2)}\n{verdict}\ncost: {seconds}"
