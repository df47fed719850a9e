"""Commands for what a job needs: calibration images, working runtimes."""

from __future__ import annotations

from pathlib import Path

import click

from repq.cli.options import Shell, out_option, shared_options


@click.command()
@click.option("--data", type=Path, required=True, help="data.yaml (YOLO) or a COCO .json.")
@click.option("--split", default="train", show_default=True)
@click.option("--images", default=128, show_default=True, type=click.IntRange(1))
@out_option
@shared_options
def calib(data: Path, split: str, images: int, out: Path, seed: int, as_json: bool) -> None:
    """Draw calibration images and write a manifest.

    The manifest holds names and hashes, no images.
    """
    from repq.stages import draw_calibration_set

    shell = Shell(as_json)
    count = draw_calibration_set(data, split, images, seed, out, log=shell.log)
    shell.finish({"images": count, "out": str(out)}, f"{out}: {count} images")


@click.command()
@shared_options
def doctor(as_json: bool) -> None:
    """Say which engines work here, and why others do not."""
    from repq.report.text import doctor_table
    from repq.stages import diagnose_machine

    environment, rows = diagnose_machine()
    values = {
        "environment": environment.values(),
        "runtimes": [row.values() for row in rows],
    }
    Shell(as_json).finish(values, lambda: doctor_table(environment, rows))
