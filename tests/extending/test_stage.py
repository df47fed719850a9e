"""A stage is one file and one entry: it has settings in the recipe, an artifact, and a place in the report's JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from few_blocks import give_few_blocks

from repq.cli import main
from repq.recipe.base import Config, setting
from repq.recipe.whole import Section
from repq.results import Result
from repq.stages import STAGES
from repq.stages.stage import Job, Stage


class CountSettings(Config):
    """Settings of the toy stage."""

    factor: int = setting(1, help="What the number of weights is multiplied by.", ge=1)
    quiet: bool = setting(False, help="Say nothing.", no_effect=True)


class Count(Result):
    """What the toy stage finds."""

    parameters: int


def count(job: Job) -> Count:
    from safetensors import safe_open

    settings = job.section("count", CountSettings)
    with safe_open(job.fused, "np") as file:
        total = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    if not settings.quiet:
        job.log(f"  {total} weights")
    return Count(parameters=settings.factor * total)


COUNT = Stage("count", count, {"count": Section(CountSettings)}, reads=("fuse/fused.safetensors",), result=Count)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    give_few_blocks(monkeypatch, "yolov6n_v2")
    STAGES.append(COUNT)
    yield
    STAGES.remove(COUNT)


RECIPE = """
name: tiny
data: {demo: {train_images: 4, val_images: 2, size: 64}}
imgsz: 64
train: {model: yolov6n_v2, epochs: 1, batch: 4, warmup_steps: 1, workers: 0}
ptq: {calibration: {method: max, images: 2, batch: 2}}
build: {engines: [onnxruntime]}
max_drop: 1.0
min_speedup: 0
bench: {warmup: 1, rounds: 1, runs_per_round: 1, threads: [1], settle_ms: 0}
report: {images: 0}
"""


def run(tmp_path: Path, *arguments: str) -> dict:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    command = ["run", str(tmp_path / "tiny.yaml"), "--work", str(tmp_path / "work"), "--json", *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.usefixtures("toy")
def test_a_stage_runs_by_its_entry_alone(tmp_path: Path) -> None:
    first = run(tmp_path)
    found = json.loads((Path(first["artifacts"]["count"]) / "count.json").read_text())
    assert found["parameters"] > 1_000_000
    assert json.loads((tmp_path / "work/report.json").read_text())["summary"]["results"]["count"] == found
    assert "count" in run(tmp_path, "--set", "count.quiet=true")["reused"]  # marked as having no effect
    other = run(tmp_path, "--set", "count.factor=2")
    assert "count" not in other["reused"] and {"fuse", "ptq", "build", "bench"} <= set(other["reused"])
    assert (
        json.loads((Path(other["artifacts"]["count"]) / "count.json").read_text())["parameters"]
        == 2 * found["parameters"]
    )
    wrong = ["run", str(tmp_path / "tiny.yaml"), "--work", str(tmp_path / "work"), "--set", "count.factr=2"]
    result = CliRunner().invoke(main, wrong)
    assert result.exit_code == 2 and "'factor'" in result.output
