"""The machine, and the manifests that say how every artifact was made."""

from __future__ import annotations

import json
from typing import Any

from repq.report.blocks import Block, Cell, Column, Facts, Listing, Section, Table
from repq.report.summary import ReportSummary
from repq.results import Environment


def environment_section(summary: ReportSummary) -> Section:
    """The machine of the run, and that of the timing where it is another one."""
    blocks: list[Block] = list(_environment(summary.environment))
    lead = "Of the first machine; the others are in the table of machines." if len(summary.machines) > 1 else ""
    if summary.bench and _machine(summary.bench.environment) != _machine(summary.environment):
        lead = "The timing ran on another machine than the rest; it is given second."
        blocks += _environment(summary.bench.environment)
    return Section("environment", "Environment", blocks, lead)


def manifests_section(summary: ReportSummary) -> Section | None:
    """Every manifest, whole."""
    if not summary.manifests:
        return None
    blocks = [Listing(_manifest_title(manifest), _pretty(manifest)) for manifest in summary.manifests]
    lead = "How each artifact was made: stage, configuration, hashes of the inputs, versions, seed."
    return Section("manifests", "Manifests", blocks, lead)


def _environment(environment: Environment) -> tuple[Facts, Table]:
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
    columns = [Column("Library", numeric=False), Column("Version", numeric=False)]
    rows = [[Cell(name), Cell(version)] for name, version in sorted(environment.libraries.items())]
    return Facts(facts), Table("Libraries", columns, rows, collapsed=len(rows) > 12)


def _machine(environment: Environment) -> tuple[Any, ...]:
    return environment.cpu, environment.cores, environment.gpu, environment.os


def _manifest_title(manifest: dict[str, Any]) -> str:
    names = [str(manifest[key]) for key in ("stage", "name") if manifest.get(key)]
    return " · ".join(dict.fromkeys(names)) or "manifest"


def _pretty(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False, default=str)
