"""The drawn data set of a recipe without one, and calibration sets."""

from __future__ import annotations

from pathlib import Path

from repq.api.fitting import look_for_overlap
from repq.api.images import open_data
from repq.log import Log, quiet
from repq.stages.stage import Job, Stage


def draw_calibration_set(data: Path, split: str, images: int, seed: int, out: Path, *, log: Log = quiet) -> int:
    """Write the manifest of a seeded draw of calibration images and return their number."""
    from repq.data import calibration_set, write_manifest
    from repq.recipe import CalibrationConfig

    dataset = open_data(data, split, log)
    records = calibration_set(dataset, CalibrationConfig(images=images, seed=seed))
    look_for_overlap(records, data, "val", log)
    write_manifest(out, records, dataset)
    return len(records)


def _draw(job: Job) -> None:
    from repq.data import make_demo_set

    assert job.recipe.data.demo is not None
    make_demo_set(job.payload / "demo", job.recipe.data.demo)


STAGE = Stage("data", _draw, uses=("data",), wanted=lambda recipe: recipe.data.demo is not None)
