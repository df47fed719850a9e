"""A whole run, and the machine, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repq.report.text.tables import fraction, table_text
from repq.results import Availability, Environment


def run_table(headline: Mapping[str, Any]) -> str:
    """The figures of a run that matter most."""
    rows = [
        (row["model"], fraction(row["ap"]), fraction(row["ap50"]), f"{row['latency_ms_median']:.2f}",
         f"{row['images_per_s']:.1f}", f"{row['size_bytes'] / 2**20:.2f}")
        for row in headline["models"]
    ]  # fmt: skip
    columns = ("engine", "AP", "AP50", "median ms", "images/s", "MiB")
    return table_text(str(headline["name"]), columns, rows)


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
