"""One byte of any input file changes the identity of every stage that reads it, and of no other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from repq.errors import RepqError
from repq.log import quiet
from repq.pipeline import RunOutcome, run_recipe
from repq.pipeline.runner import make_artifacts, splits_of
from repq.progress import silent
from repq.recipe import Recipe, parse_recipe
from repq.recipe.whole import stages
from repq.results import FusionReport, Result
from repq.stages import Stage
from repq.stages.stage import Job

RUN = {
    "name": "tiny",
    "imgsz": 64,
    "sensitivity": {"images": 2},
    "plan": {"top": 1},
    "qat": {"epochs": 1, "batch": 2, "warmup_steps": 1, "workers": 0, "task_weight": 1.0},
    "build": {"engines": ["onnxruntime"]},
    "max_drop": 1.0,
    "min_speedup": 0,
    "bench": {"warmup": 1, "rounds": 1, "runs_per_round": 1, "threads": [1], "settle_ms": 0},
    "report": {"images": 0},
}
ON_TRAIN = {"search", "train", "sensitivity", "ptq", "qat"}
ON_VAL = {"search", "train", "fuse", "sensitivity", "ptq", "qat", "check", "eval", "bench", "report"}


class Inputs:
    """A run on files of its own."""

    def __init__(self, folder: Path) -> None:
        from repq.data import make_demo_set
        from repq.model import build, save_checkpoint
        from repq.recipe import DemoConfig

        self.folder = folder
        self.data = make_demo_set(folder / "demo", DemoConfig(train_images=4, val_images=3, size=64))
        self.weights, self.manifest = folder / "best.safetensors", folder / "calib.txt"
        save_checkpoint(self.weights, build("yolov6n_v2", 3))
        from repq.stages import draw_calibration_set

        draw_calibration_set(self.data, "train", 2, 0, self.manifest)
        calibration = {"method": "max", "images": 2, "batch": 2, "manifest": str(self.manifest)}
        values = {
            **RUN,
            "data": {"path": str(self.data)},
            "weights": str(self.weights),
            "ptq": {"calibration": calibration},
        }
        self.recipe: Recipe = parse_recipe(values, source="test", base=Path())

    def identities(self, outcome: RunOutcome) -> dict[str, str]:
        """Key of each stage, as it would be now, over artifacts that are as they were."""
        found, before, split = {}, {}, splits_of(self.recipe)
        for stage in stages():
            if stage.is_wanted(self.recipe):
                found[stage.name] = stage.identity(self.recipe, before, split).key
                before[stage.name] = outcome.artifacts[stage.name]
        return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def outcome(inputs: Inputs, not_drawn: Callable[..., AbstractContextManager[None]]) -> RunOutcome:
    with not_drawn():
        return run_recipe(inputs.recipe, inputs.folder / "run")


def change(path: Path) -> None:
    """Another object, a remark, or another byte."""
    data = bytearray(path.read_bytes())
    if path.suffix in (".txt", ".yaml") and not data.startswith(b"# "):  # as manifests do
        data += b"0 0.5 0.5 0.25 0.125\n" if path.suffix == ".txt" else b"# a remark\n"
    else:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


@pytest.mark.parametrize(
    ("name", "find", "reads"),
    [
        ("image to train on", lambda inputs: first(inputs.folder / "demo/images/train", "*.*"), ON_TRAIN),
        ("label to train on", lambda inputs: first(inputs.folder / "demo/labels/train", "*.txt"), ON_TRAIN),
        ("image to evaluate on", lambda inputs: first(inputs.folder / "demo/images/val", "*.*"), ON_VAL),
        ("label to evaluate on", lambda inputs: first(inputs.folder / "demo/labels/val", "*.txt"), ON_VAL),
        ("data.yaml", lambda inputs: inputs.data, ON_TRAIN | ON_VAL | {"package"}),
        ("checkpoint", lambda inputs: inputs.weights, {"fuse", "report"}),
        ("manifest", lambda inputs: inputs.manifest, {"sensitivity", "ptq"}),
    ],
)
def test_a_byte_changes_what_reads_it_and_nothing_else(
    inputs: Inputs, outcome: RunOutcome, name: str, find: Callable[[Inputs], Path], reads: set[str]
) -> None:
    before = inputs.identities(outcome)
    assert before == {stage: artifact.manifest.key for stage, artifact in outcome.artifacts.items()}
    path = find(inputs)
    content = path.read_bytes()
    change(path)
    try:
        after = inputs.identities(outcome)
    finally:
        path.write_bytes(content)
    assert {stage for stage in before if before[stage] != after[stage]} == reads & set(before)
    assert inputs.identities(outcome) == before


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: stage.name)
def test_a_stage_sees_no_setting_that_its_identity_lacks(inputs: Inputs, stage: Stage) -> None:
    declared = {*stage.sections, *stage.uses}
    for name in set(type(inputs.recipe).model_fields) - declared - {"data", "seed"}:
        changed = inputs.recipe.model_copy(update={name: "something else"})
        assert stage.seen(changed) == stage.seen(inputs.recipe)


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: stage.name)
def test_a_stage_gets_no_artifact_that_its_identity_lacks(inputs: Inputs, outcome: RunOutcome, stage: Stage) -> None:
    whole = stage.identity(inputs.recipe, outcome.artifacts, splits_of(inputs.recipe))
    got = stage.open_to(outcome.artifacts)
    for name, artifact in outcome.artifacts.items():
        contents = {file: f"not {digest}" for file, digest in artifact.manifest.contents.items()}
        other = replace(artifact, manifest=artifact.manifest.model_copy(update={"contents": contents}))
        changed = stage.identity(inputs.recipe, {**outcome.artifacts, name: other}, splits_of(inputs.recipe))
        assert (changed.key != whole.key) == (name in got)


def test_what_changes_while_a_stage_runs_is_an_error(
    inputs: Inputs, outcome: RunOutcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No artifact is kept of which nobody knows whether it is of the files before or after the change."""
    fused = outcome.artifacts["fuse"] / "fused.safetensors"
    cases = {
        "fuse": [inputs.weights, inputs.data, first(inputs.folder / "demo/labels/val", "*.txt")],
        "ptq": [inputs.manifest, fused, first(inputs.folder / "demo/images/train", "*.*")],
    }
    meddled: list[Path] = []

    def meddling(stage: Stage) -> Stage:
        def run(job: Job) -> Result:
            for path in meddled:
                change(path)
            return FusionReport.model_construct()  # what it would have measured is not looked at

        return replace(stage, run=run) if stage.name in cases else stage

    monkeypatch.setattr("repq.stages.STAGES", tuple(map(meddling, stages())))
    for name, paths in cases.items():
        made = {other: outcome.artifacts[other] for other in ("fuse", "sensitivity") if name == "ptq"}
        for path in paths:
            content, meddled[:] = path.read_bytes(), [path]
            try:
                with pytest.raises(RepqError, match=f"what {name} reads changed"):
                    make_artifacts(inputs.recipe, tmp_path, name, silent, quiet, made)
            finally:
                path.write_bytes(content)
            assert not [path for path in tmp_path.glob(f"{name}/*") if not path.name.startswith(".")]
