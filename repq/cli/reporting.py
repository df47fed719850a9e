"""Reports of what was measured elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from repq.cli.options import Shell, out_option


@click.command()
@click.argument("benches", type=Path, nargs=-1, required=True, metavar="BENCH [BENCH]...")
@out_option
@click.option("--title", default="Latency", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def report(benches: tuple[Path, ...], out: Path, title: str, as_json: bool) -> None:
    """Join timings of several machines into one report.

    Each BENCH is a bench.json that `repq bench -o FOLDER` wrote, or its folder. Figures of the YOLOv6 report on a T4
    stand beside what was measured of the same models.
    """
    from repq.stages import report_benches

    paths = report_benches(benches, out, title)
    values = {form: str(path) for form, path in paths.items()}
    Shell(as_json).finish(values, "\n".join(values.values()))
