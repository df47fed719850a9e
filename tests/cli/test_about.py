"""The tool about itself: its settings, groups, aliases, completion, versions, and errors as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_lines import Material, invoke

from repq.cli import ALIASES, COMMANDS, GROUPS, main
from repq.cli.about import sections, settings_of
from repq.cli.frame import EXIT_CODES, FORMAT
from repq.engine import ENGINES
from repq.recipe.base import marks


@pytest.mark.parametrize("section", sections())
def test_every_setting_is_listed_with_its_meaning(section: str) -> None:
    found = json.loads(invoke("config", section, "--json").stdout)
    assert found["format"] == FORMAT and found["settings"] == list(settings_of(sections()[section]))
    for row in found["settings"]:
        assert row["range"] and (row["required"] or "default" in row)
        assert row["help"] or "." in row["name"], row
    text = invoke("config", section).stdout
    assert all(row["name"].split(".")[0] in text for row in found["settings"])


@pytest.mark.parametrize("section", sections())
def test_a_schema_has_every_setting_and_nothing_of_the_command_line(section: str) -> None:
    text = invoke("config", section, "--schema").stdout
    schema = json.loads(text)
    assert set(schema["properties"]) == set(sections()[section].model_fields)
    for info in sections()[section].model_fields.values():
        assert not marks(info) or '"no_effect"' not in text


def test_a_section_that_is_none_is_named() -> None:
    result = invoke("config", "trian", "--json")
    error = json.loads(result.stdout)["error"]
    assert result.exit_code == error["exit_code"] == 2
    assert "trian" in error["what"] and "train" in error["fix"]


def test_help_has_groups_examples_and_every_exit_code() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    assert {home for home, _ in COMMANDS.values()} <= set(GROUPS)
    for word in (*COMMANDS, *(GROUPS[home] for home, _ in COMMANDS.values()), "Examples", *map(str, EXIT_CODES)):
        assert word in text


@pytest.mark.parametrize("words", [(), ("train",), ("val",)])
def test_help_is_a_word_too(words: tuple[str, ...]) -> None:
    assert invoke("help", *words).output == invoke(*words, "--help").output


@pytest.mark.parametrize("alias", [alias for alias in ALIASES if ALIASES[alias] in COMMANDS])
def test_an_alias_is_the_command(alias: str) -> None:
    assert COMMANDS[ALIASES[alias]][1] in invoke(alias, "--help").output


def test_the_version_names_the_engines() -> None:
    text = invoke("--version").output
    assert all(entry.title in text for entry in ENGINES)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_the_shell(shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0 and "_REPQ_COMPLETE" in result.stdout


@pytest.mark.parametrize("words", [["eval", "absent.pt", "--data", "x.yaml"], ["ptq", "--no-such-option"], ["nothing"]])
def test_errors_are_json_under_json(words: list[str], folder: Path) -> None:
    result = invoke(*words, "--json")
    found = json.loads(result.stdout)
    assert found["format"] == FORMAT
    assert found["error"]["exit_code"] == result.exit_code == 2
    assert found["error"]["what"] in result.stderr


def test_a_log_file_gets_what_quiet_does_not_show(material: Material, folder: Path) -> None:
    words = ["fuse", material.files["WEIGHTS"], "-o", "f.safetensors", "--imgsz", 64, "--images", 1]
    loud, quiet = invoke(*words, "--log-file", "log.txt"), invoke(*words, "--log-file", "log.txt", "-q")
    assert loud.exit_code == quiet.exit_code == 0
    lines = Path("log.txt").read_text().splitlines()
    assert quiet.stderr == ""
    assert len(lines) == 2 * len(loud.stderr.splitlines())


def test_verbose_says_where_an_error_comes_from(folder: Path) -> None:
    assert "Traceback" not in invoke("describe", "absent.pt").output
    assert "Traceback" in invoke("describe", "absent.pt", "-v").output
