"""Artifacts are made once, reused while intact, and never seen half-written."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repq.artifact import RunFolder, read_artifact
from repq.errors import RepqError
from repq.identity import Identity, hash_json


def make(root: Path, calls: list[str], *, stage: str = "fuse", text: str = "payload", **identity: Any) -> Any:
    def run(folder: Path, resume: Path) -> None:
        calls.append(stage)
        (folder / "result.txt").write_text(text)

    values = {"stage": stage, "settings": {"tolerance": 1e-3}, "inputs": {"weights": "aa"}, **identity}
    return RunFolder(root).make(Identity(**values), run)


def test_the_same_identity_is_reused_and_any_change_is_not(tmp_path: Path) -> None:
    calls: list[str] = []
    first = make(tmp_path, calls)
    again = make(tmp_path, calls)
    assert (first.reused, again.reused, again.folder) == (False, True, first.folder)
    for change in ({"settings": {"tolerance": 1e-2}}, {"inputs": {"weights": "bb"}}, {"seed": 1}, {"stage": "ptq"}):
        assert make(tmp_path, calls, **change).folder != first.folder
    assert len(calls) == 5


def test_an_artifact_on_a_read_only_disk_is_reused_and_a_new_one_is_an_error(
    tmp_path: Path, read_only: Callable[[Path], Path]
) -> None:
    calls: list[str] = []
    (tmp_path / "run").mkdir()
    make(tmp_path / "run", calls)
    place = read_only(tmp_path / "run")
    assert make(place, calls).reused and calls == ["fuse"]
    for change in ({"seed": 1}, {"stage": "ptq"}):
        with (
            pytest.raises(OSError, match="Read-only") if "seed" in change else pytest.raises(RepqError, match="cannot")
        ):
            make(place, calls, **change)
    assert calls == ["fuse"]


def test_what_follows_depends_on_the_payload_not_on_the_settings(tmp_path: Path) -> None:
    one = make(tmp_path, [], settings={"a": 1})
    other = make(tmp_path, [], settings={"a": 2})
    different = make(tmp_path, [], settings={"a": 3}, text="other")
    assert one.manifest.content == other.manifest.content != different.manifest.content


@pytest.mark.parametrize("damage", ["alter", "remove", "manifest", "another"])
def test_a_damaged_artifact_is_made_again(tmp_path: Path, damage: str) -> None:
    calls: list[str] = []
    artifact = make(tmp_path, calls)
    if damage == "alter":
        (artifact / "result.txt").write_text("altered")
    elif damage == "remove":
        (artifact / "result.txt").unlink()
    elif damage == "another":
        other = make(tmp_path, [], seed=1, text="another")
        shutil.rmtree(artifact.folder)
        shutil.copytree(other.folder, artifact.folder)
    else:
        (artifact / "manifest.json").write_text("{")
    assert read_artifact(artifact.folder) is None
    repaired = make(tmp_path, calls)
    assert (repaired / "result.txt").read_text() == "payload"
    assert len(calls) == 2


def test_a_failed_stage_leaves_no_artifact_but_keeps_what_it_can_resume(tmp_path: Path) -> None:
    seen: list[bool] = []

    def run(folder: Path, resume: Path) -> None:
        seen.append((resume / "state").exists())
        (folder / "half").write_text("x")
        (resume / "state").write_text("epoch 3")
        if len(seen) == 1:
            raise KeyboardInterrupt

    identity = Identity("train", {})
    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path).make(identity, run)
    assert not [path for path in (tmp_path / "train").iterdir() if not path.name.startswith(".")]
    artifact = RunFolder(tmp_path).make(identity, run)
    assert seen == [False, True]
    assert not list((tmp_path / "train").glob(".resume-*"))
    assert sorted(artifact.manifest.files) == ["half"]


def _slow_run(root: Path) -> None:
    def run(folder: Path, resume: Path) -> None:
        with (root / "runs.log").open("a") as log:
            log.write("run\n")
        (folder / "a").write_text("1")
        time.sleep(0.5)
        (folder / "b").write_text("2")

    RunFolder(root).make(Identity("build", {}), run)


def test_two_runs_at_once_make_one_whole_artifact(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_slow_run, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "runs.log").read_text() == "run\n"
    (folder,) = [path for path in (tmp_path / "build").iterdir() if path.is_dir()]
    artifact = read_artifact(folder)
    assert artifact is not None
    assert sorted(artifact.manifest.files) == ["a", "b"]


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "used folder"])
@pytest.mark.parametrize("waiting", [1, 3])
def test_a_run_that_waits_for_one_that_fails_makes_the_artifact_itself(
    tmp_path: Path, there: bool, waiting: int
) -> None:
    if there:
        make(tmp_path, [], stage="build", seed=1)
    begun, waits, made = threading.Event(), threading.Semaphore(0), list[Any]()

    def stopped(folder: Path, resume: Path) -> None:
        begun.set()
        assert all(waits.acquire(timeout=30) for _ in range(waiting))
        raise KeyboardInterrupt

    def whole(folder: Path, resume: Path) -> None:
        (folder / "result.txt").write_text("payload")

    def run() -> None:
        begun.wait(30)
        identity = Identity("build", {})
        made.append(RunFolder(tmp_path).make(identity, whole, on_wait=lambda message: waits.release()))

    others = [threading.Thread(target=run) for _ in range(waiting)]
    for other in others:
        other.start()
    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path).make(Identity("build", {}), stopped)
    for other in others:
        other.join(30)
    assert sorted(artifact.reused for artifact in made) == [False] + [True] * (waiting - 1)


def test_hashes_do_not_depend_on_key_order() -> None:
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1}) != hash_json({"a": 1, "b": [3]})
