"""Every command with every kind of bad file: exit 2 with what is wrong, and nothing is left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bad_files import kinds, make
from command_lines import Material, invoke, is_path, options, refused
from few_blocks import few_blocks

from repq.cli import COMMANDS

INPUTS = {
    name: [option for option in options(name) if is_path(option) and option.marks["writes"] is None]
    for name in COMMANDS
}
CASES = [  # every command with every kind, at one of its inputs in turn
    (name, inputs[number % len(inputs)], kind)
    for name, inputs in INPUTS.items() if inputs
    for number, kind in enumerate(kinds())
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "option", "kind"), CASES, ids=lambda one: one if isinstance(one, str) else one.name
)
def test_a_bad_file_is_refused(command: str, option, kind: str, material: Material, folder: Path) -> None:
    key = option.name.strip("-").replace("-", "_")
    bad = make(kind, material.path(command, option), folder)
    before = sorted(folder.iterdir())
    replaced = {key: [bad], **({"work": [folder / ".work"]} if command in ("run", "ablation") else {})}
    refused(invoke(*material.line(command, **replaced)))
    shutil.rmtree(folder / ".work", ignore_errors=True)  # the folder of a run stays
    assert sorted(folder.iterdir()) == before
    assert not (material.folder / "out").exists()


SIZED = [name for name in COMMANDS if any(one.name == "--imgsz" for one in options(name))]


@pytest.fixture(scope="module")
def coarse(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Material:
    """The material with weights whose levels are of 8 to 64 pixels."""
    from repq.model import build, save_checkpoint

    folder, usual = tmp_path_factory.mktemp("coarse"), material.files["WEIGHTS"]
    weights = folder / usual.name
    save_checkpoint(
        weights, build(few_blocks("yolov6lite_s", 3), deploy=True).eval(), names=("ring", "triangle", "cross")
    )
    files = {name: weights if path == usual else path for name, path in material.files.items()}
    for name in ("RECIPE", "--recipe", "ABLATION"):
        files[name] = folder / material.files[name].name
        files[name].write_text(material.files[name].read_text().replace(str(usual), str(weights)))
    return Material(folder, files)


@pytest.mark.parametrize("size", ["33", "64x48"])
@pytest.mark.parametrize("command", SIZED)
def test_a_size_that_no_level_divides_is_refused(command: str, size: str, coarse: Material, folder: Path) -> None:
    """The model that `train` builds has levels of 8 to 32 pixels."""
    work = {"work": [folder / "work"]} if command in ("run", "ablation") else {}
    message = refused(invoke(*coarse.line(command, imgsz=[size], **work)))
    assert "cannot take images of" in message and f"multiples of {32 if command == 'train' else 64}" in message
    assert not (coarse.folder / "out").exists()


def test_a_measure_that_is_not_taken_is_refused_first(material: Material, folder: Path) -> None:
    message = refused(invoke(*material.line("sensitivity", measure=["ap.only_float"])))
    assert "ap.only_float" in message
    assert not (material.folder / "out").exists()


def test_to_measure_nothing_is_refused_first(material: Material, folder: Path) -> None:
    off = [word for name in ("local", "end_to_end") for word in ("--set", f"sensitivity.{name}=false")]
    assert "nothing to measure" in refused(invoke(*material.line("sensitivity"), *off))
    assert not (material.folder / "out").exists()


@pytest.mark.parametrize("line", [("build", "--engine", "onnxruntime", "-o", "out"), ("lint",), ("estimate",)])
def test_a_checkpoint_where_an_onnx_file_is_wanted_leads_to_export(
    line: tuple[str, ...], material: Material, folder: Path
) -> None:
    assert "`repq export` makes one of a checkpoint" in refused(invoke(line[0], material.files["WEIGHTS"], *line[1:]))


def test_a_file_that_a_shipped_recipe_wants_is_asked_for_by_its_option(material: Material, folder: Path) -> None:
    given: list[object] = []
    for option in ("--weights", "--data"):
        text = refused(invoke("run", "ptq", *given, "--work", "work"))
        assert "there is no file at" in text and f"{option} FILE" in text.partition("fix:")[2]
        given += [option, material.files[option]]
    text = refused(invoke("run", "ptq", *given, "--set", "ptq.calibration.manifest=none.txt", "--work", "work"))
    assert "--set ptq.calibration.manifest=FILE" in text.partition("fix:")[2]
