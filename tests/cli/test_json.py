"""Under ``--json`` standard output is exactly one JSON object, whatever a command does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from command_lines import Material, invoke, is_path, options

from repq.cli import COMMANDS
from repq.cli.frame import FORMAT

QUICK = {
    "build": [], "calib": [], "completion": [], "config": [], "describe": [], "doctor": [], "estimate": [], "eval": [],
    "fuse": ["--images", "1"], "lint": [], "predict": [],
    "bench": ["--rounds", "1", "--runs", "1", "--warmup", "0", "--engine", "torch", "--threads", "1"],
}  # fmt: skip
"""Commands that work in about a second; the others print by the same function."""


def one_object(result: Result) -> dict:
    found = json.loads(result.stdout)
    assert isinstance(found, dict) and found["format"] == FORMAT
    return found


def line_of(command: str, material: Material) -> list[str]:
    return ["completion", "bash"] if command == "completion" else material.line(command)


@pytest.mark.parametrize("command", QUICK)
def test_what_works_is_one_object(command: str, material: Material, folder: Path) -> None:
    words = line_of(command, material)
    if "-o" in words or "--out" in words:
        place = words.index("-o" if "-o" in words else "--out") + 1
        words[place] = str(folder / Path(words[place]).name)
    result = invoke(*words, *QUICK[command], "--json")
    assert result.exit_code == 0, result.output
    assert "error" not in one_object(result)


@pytest.mark.parametrize("severity", ["error", "info"])
def test_a_chosen_exit_code_keeps_the_object(severity: str, material: Material, folder: Path) -> None:
    result = invoke("lint", material.files["lint MODEL"], "--fail-on", severity, "--json")
    found = one_object(result)
    assert result.exit_code == (1 if severity == "info" and found["findings"] else 0)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["unknown option", "too many words", "nothing", "absent"])
def test_what_fails_is_one_object(command: str, kind: str, material: Material, folder: Path) -> None:
    words = line_of(command, material)
    inputs = [option for option in options(command) if is_path(option) and option.marks["writes"] is None]
    if kind == "unknown option":
        words.append("--no-such-option")
    elif kind == "too many words":
        words += ["one\x1b[31m", "--batch", "more"]
    elif kind == "nothing" and len(words) > 1:
        words = [command]
    elif kind == "absent" and inputs:
        absent = material.path(command, inputs[0])
        words = [str(folder / f"absent{absent.suffix}") if word == str(absent) else word for word in words]
    else:
        pytest.skip("works without anything")
    if command == "config" and kind == "nothing":
        pytest.skip("works without anything")
    if command in ("run", "ablation"):
        words += ["--work", str(folder / "work")]
    result = invoke(*words, "--json")
    error = one_object(result)["error"]
    assert result.exit_code == error["exit_code"] == 2, result.output
    assert error["what"] and "\x1b" not in result.stdout
