"""Outputs: what would cost an input, or cannot be written, is refused before any work."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_lines import Material, every_option, invoke, is_path, options, refused

from repq.cli import COMMANDS
from repq.cli.shell import Shell

OUTPUTS = [(name, option) for name, option in every_option() if option.marks["writes"] is not None]
PAIRS = [
    (name, option, other)
    for name, option in OUTPUTS
    for other in options(name)
    if is_path(other) and other.marks["writes"] is None
]


def key(option) -> str:
    return option.name.strip("-").replace("-", "_")


def names(one: object) -> str:
    return one if isinstance(one, str) else getattr(one, "name", "")


def _hard_link(file: Path, output: Path) -> None:
    output.hardlink_to(file)


def _link(file: Path, output: Path) -> None:
    output.symlink_to(file)


@pytest.fixture
def whole(material: Material) -> object:
    """Nothing of the material may change."""
    before = {path: path.stat() for path in material.folder.rglob("*")}
    yield
    after = {path: path.stat() for path in material.folder.rglob("*")}
    assert {p: (s.st_mtime_ns, s.st_size) for p, s in before.items() if p.is_file()} == {
        p: (s.st_mtime_ns, s.st_size) for p, s in after.items() if p.is_file()
    }
    assert before.keys() == after.keys()


@pytest.mark.parametrize("way", [None, _hard_link, _link], ids=["itself", "hard link", "link"])
@pytest.mark.parametrize(("command", "option", "source"), PAIRS, ids=names)
def test_an_input_is_not_written_to(
    command: str, option, source, way: Callable[[Path, Path], None] | None, material: Material, folder: Path, whole
) -> None:
    """By its own name, and by another of the suffix that fits; a folder that holds it neither."""
    writes = option.marks["writes"]
    original = material.path(command, source)
    if isinstance(writes, str):
        own = folder / f"input{original.suffix}"
        shutil.copyfile(original, own)
        output = own if way is None else folder / f"output{writes.split('|')[0]}"
        if way is not None:
            way(own, output)
    else:
        output = folder / "there"
        output.mkdir()
        own = output / original.name
        shutil.copyfile(original, own)
        if way is _link:
            (folder / "link").symlink_to(output)
            output = folder / "link"
        if command in ("run", "ablation") and source.name != "--weights":
            pytest.skip("a run folder may hold its recipe")
    content = own.read_bytes()
    line = material.line(command, **{key(option): [output], key(source): [own]})
    refused(invoke(*line))
    assert own.read_bytes() == content


@pytest.mark.parametrize(("command", "option"), OUTPUTS, ids=names)
def test_an_output_that_cannot_be(command: str, option, material: Material, folder: Path, whole) -> None:
    writes = option.marks["writes"]
    suffix = writes.split("|")[0] if isinstance(writes, str) else ""
    (folder / "file").write_text("x")
    (folder / f"folder{suffix}").mkdir()
    (folder / f"folder{suffix}" / "mine").write_text("x")
    os.mkfifo(folder / f"pipe{suffix}")
    places = [f"file/out{suffix}", f"file/deeper/out{suffix}", f"pipe{suffix}", f"a\0b{suffix}", "a/" * 2500,
              "a" * 300 + suffix]  # fmt: skip
    if not isinstance(writes, str):
        places.append("file")
    if writes != ("*",):
        places.append(f"folder{suffix}")
    if isinstance(writes, str) and writes:
        places += ["out.jpg", "out.pt" if suffix != ".pt" else "out.onnx", "weights.onnx.yaml"]
    before = sorted(folder.rglob("*"))
    for place in places:
        refused(invoke(*material.line(command, **{key(option): [place]})))
    assert sorted(folder.rglob("*")) == before


FILES = [
    (command, option)
    for command, option in OUTPUTS
    if isinstance(option.marks["writes"], str) and option.marks["writes"]
]


@pytest.mark.parametrize(("command", "option"), FILES, ids=names)
def test_a_file_of_somebody_else_is_not_replaced(command: str, option, material: Material, folder: Path, whole) -> None:
    """Such as the list of training images, where a manifest is to be written."""
    for suffix in option.marks["writes"].split("|"):
        output = folder / f"there{suffix}"
        output.write_bytes(b"images/train/a.jpg\n")
        assert "did not write" in refused(invoke(*material.line(command, **{key(option): [output]})))
        assert output.read_bytes() == b"images/train/a.jpg\n"


def test_files_of_repq_and_empty_ones_are_replaced(material: Material, folder: Path) -> None:
    (folder / "calib.txt").touch()
    for _ in range(2):
        assert invoke(*material.line("calib", out=[folder / "calib.txt"])).exit_code == 0
    shutil.copyfile(material.files["WEIGHTS"], folder / "other.safetensors")
    assert invoke(*material.line("fuse", out=[folder / "other.safetensors"]), "--images", 1).exit_code == 0


@pytest.mark.parametrize("way", [None, _hard_link, _link], ids=["itself", "hard link", "link"])
@pytest.mark.parametrize("command", ["describe", "eval", "calib", "fuse"])
def test_a_log_file_goes_into_no_other_file(
    command: str, way: Callable[[Path, Path], None] | None, material: Material, folder: Path, whole
) -> None:
    for option in (one for one in options(command) if is_path(one)):
        own = folder / f"own{material.path(command, option).suffix}"
        if option.marks["writes"] is None:
            shutil.copyfile(material.path(command, option), own)
        else:
            own.touch()
        log = own if way is None else folder / "log"
        if way is not None:
            way(own, log)
        content = own.read_bytes()
        refused(invoke(*material.line(command, **{key(option): [own]}), "--log-file", log))
        assert own.read_bytes() == content
        for path in {own, log}:
            path.unlink()


@pytest.mark.parametrize("place", ["pipe", "/dev/zero", "a\0b", "file/log", "."])
def test_a_log_file_that_cannot_be(place: str, material: Material, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "file").touch()
    refused(invoke(*material.line("describe"), "--log-file", place))


def test_an_engine_takes_the_place_of_an_engine_alone(material: Material, folder: Path) -> None:
    line = material.line("build", out=[folder / "engine"], engine=["onnxruntime"])
    assert invoke(*line).exit_code == 0
    assert invoke(*line).exit_code == 0  # again
    (folder / "engine" / "notes.txt").write_text("mine")
    assert "notes.txt" in refused(invoke(*line))
    assert (folder / "engine" / "notes.txt").is_file()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow: every write fails with EFBIG, as with ENOSPC on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


QUICK = {
    "bench": ["--infer-only", "--rounds", 1],
    "qat": ["--method", "max", "--no-eval", "--epochs", 1], "train": ["--epochs", 1],
    "sensitivity": ["--method", "max", "--measure", "local.snr"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "option"),
    [pair for pair in OUTPUTS if pair[1].name != "--timing-cache" and pair[0] != "ptq"],  # it writes as qat does
    ids=names,
)
def test_a_full_disk(command: str, option, material: Material, folder: Path, whole) -> None:
    """What is written fails, and the message names it."""
    writes = option.marks["writes"]
    place = folder / f"out{writes.split('|')[0] if isinstance(writes, str) else ''}"
    replaced = {key(option): [place]}
    if command == "report":
        timed = folder / "bench"
        assert invoke(*material.line("bench", out=[timed], MODEL=[material.files["build MODEL"]]),
                      "--rounds", 1, "--infer-only").exit_code == 0  # fmt: skip
        replaced["BENCH"] = [timed]
    elif command == "fuse":
        replaced["data"] = [material.files["--data"]]
    line = [*material.line(command, **replaced), *QUICK.get(command, [])]
    with full_disk():
        message = refused(invoke(*line))
    assert str(folder) in message and (os.strerror(errno.EFBIG) in message or "space" in message), message
    shutil.rmtree(folder / "bench", ignore_errors=True)
    left = [path for path in folder.rglob("*") if path.is_file()]
    assert all(path.stat().st_size == 0 and path.suffix in (".lock", ".jsonl") for path in left), left


def test_a_run_that_ended_may_lie_on_a_read_only_disk(
    material: Material, folder: Path, read_only: Callable[[Path], Path]
) -> None:
    """A new one may not, and is refused before any work."""
    (folder / "run").mkdir()
    place = read_only(folder / "run")
    assert "--work cannot be written" in refused(invoke(*material.line("run", work=[place])))
    for command, name in (("run", "artifacts.yaml"), ("ablation", "ablation.json"), ("compare", "compare.json")):
        (folder / "run" / name).write_text("")
        out = {"out" if command == "compare" else "work": [place]}
        message = refused(invoke(*material.line(command, **out)))  # nothing is there, so that a stage has to run
        assert "cannot be written" not in message and os.strerror(errno.EROFS) in message and str(place) in message
        (folder / "run" / name).unlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize(("command", "option"), OUTPUTS, ids=names)
def test_a_folder_without_the_right_to_write(command: str, option, material: Material, folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o500)
    writes = option.marks["writes"]
    place = f"locked/out{writes.split('|')[0] if isinstance(writes, str) else ''}"
    assert "locked" in refused(invoke(*material.line(command, **{key(option): [place]})))


IN_FOLDERS = [(name, option) for name, option in OUTPUTS if isinstance(option.marks["writes"], tuple)]


@pytest.mark.parametrize(("command", "option"), IN_FOLDERS, ids=names)
def test_a_log_file_in_the_folder_of_the_output_is_no_stranger_there(
    command: str, option, material: Material, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again goes on; where the folder is written anew, the log would be lost, and is refused."""
    module = importlib.import_module(f"repq.cli.{COMMANDS[command][0]}")
    real, begun = getattr(module, f"{command}_command"), list[str]()

    @functools.wraps(real)
    def begin(shell: Shell, **values: object) -> None:
        shell.log("begun")
        begun.append(command)

    monkeypatch.setattr(module, f"{command}_command", begin)
    line = [*material.line(command, **{key(option): folder / "new" / "out"}), "--log-file", folder / "new/out/log.txt"]
    results = [invoke(*line), invoke(*line)]
    if command == "build":
        assert all("written anew" in refused(result) for result in results) and not (folder / "new").exists()
    else:
        assert [result.exit_code for result in results] == [0, 0], results[1].output
        assert begun == [command] * 2 and (folder / "new/out/log.txt").read_text().count("begun") == 2


@pytest.mark.parametrize(
    ("command", "option"), [(name, option) for name, option in every_option() if is_path(option)], ids=names
)
def test_no_path_is_empty(command: str, option, material: Material, folder: Path) -> None:
    """A shell gives that for a variable without a value; Python takes it for the working folder."""
    assert "empty" in refused(invoke(*material.line(command, **{key(option): [""]})))
    assert not list(folder.iterdir())


@pytest.mark.parametrize("place", [".", "..", "./", "../work"])
def test_the_working_folder_is_not_replaced(
    place: str, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before = work.stat().st_ino
    refused(invoke(*material.line("build", out=[place])))
    assert work.stat().st_ino == before and not list(work.iterdir()) and list(tmp_path.iterdir()) == [work]


def test_what_was_found_can_lie_in_the_working_folder(material: Material, folder: Path) -> None:
    line = material.line("predict", out=["."])
    assert invoke(*line).exit_code == 0
    before = (folder / "predictions.json").read_bytes()
    refused(invoke(*line))  # predictions are replaced as a whole folder, which this one cannot be
    assert (folder / "predictions.json").read_bytes() == before
    (folder / "mine").write_text("x")
    assert invoke(*line, "--force").exit_code == 0
    assert (folder / "mine").exists()
