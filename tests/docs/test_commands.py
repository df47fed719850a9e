"""What README and the pages tell one to type is there.

Every command is read by the real command line, and runs here if it takes a second. What cannot run on any machine says
so beside it.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from pages import PAGES, ROOT, SIZE, Shown, blocks, commands, spans

from repq.cli import ALIASES, COMMANDS, main
from repq.recipe import as_overrides, load_ablation, load_recipe

QUICK = ("doctor", "eval", "fuse", "export", "build", "describe", "lint", "estimate", "predict", "config")
"""Commands that run here; the others take minutes, and their work has tests of its own."""
OUTSIDE_BOUNDS = ("lint", "check")
SHOWN = list(dict.fromkeys(commands()))
OURS = list({shown.repq: shown for shown in reversed(SHOWN) if shown.repq}.values())[::-1]


def words_of(shown: Shown) -> list[str]:
    """The command at the size of the small network."""
    words = [re.sub(r"^640$", str(SIZE), word) for word in shown.repq]
    return [*words, "--imgsz", str(SIZE)] if words[0] == "fuse" else words


def invoke(words: list[str]) -> Result:
    return CliRunner().invoke(main, words)


def reached(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the function of a command is called with: all that is checked before the work begins has been."""
    name, calls = ALIASES.get(words[0], words[0]), list[dict[str, Any]]()
    module = importlib.import_module(f"repq.cli.{COMMANDS[name][0]}")
    function = getattr(module, f"{name}_command")

    @functools.wraps(function)
    def take(shell: Any, **values: Any) -> None:
        calls.append(values)

    monkeypatch.setattr(module, f"{name}_command", take)
    result = invoke(words)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return calls[0]


@pytest.mark.parametrize("shown", OURS, ids=str)
def test_a_command_of_the_pages_works(shown: Shown, at_the_desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(shown)
    if words[0] in QUICK and shown.at_the_desk:
        result = invoke(words)
        assert result.exit_code == 0 or (result.exit_code == 1 and words[0] in OUTSIDE_BOUNDS), result.output[-2000:]
        return
    values = reached(words, monkeypatch)
    if words[0] == "run":
        given = {name: values[name] for name in ("weights", "data", "imgsz", "target", "max_drop", "allow_qat")}
        load_recipe(values["recipe"], [*values["overrides"], *as_overrides(**given)])
    if words[0] == "ablation":
        load_ablation(values["ablation"], [*values["overrides"], *as_overrides(data=values["data"])])


@pytest.mark.parametrize("shown", OURS, ids=str)
def test_what_cannot_run_anywhere_says_so(shown: Shown) -> None:
    text = " ".join(shown.repq)
    assert bool(shown.needs) or not ("--engine tensorrt" in text or ".trt" in text or "--device cuda" in text)


@pytest.mark.parametrize("shown", [shown for shown in SHOWN if not shown.repq], ids=str)
def test_other_programs_are_asked_for_what_is_there(shown: Shown) -> None:
    program, *words = shown.words
    if program == "make":
        known = set(re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split())  # type: ignore[index]
        assert set(words) <= known
    elif program == "docker":
        stages = re.findall(r"^FROM .* AS (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert words[0] != "build" or words[words.index("--target") + 1] in stages
    elif program == "pip":
        setup = (ROOT / "setup.cfg").read_text()
        extras = re.findall(r"\[([\w,]+)\]", " ".join(words))
        assert all(f"\n{extra} =\n" in setup for group in extras for extra in group.split(","))
    else:
        assert shown.words in ((".", ".venv/bin/activate"), ("pre-commit", "install"))


def test_code_within_the_text_names_what_is_there() -> None:
    """Commands, options and make's targets; abbreviated commands are fine."""
    context = click.Context(main)
    made = {name: main.get_command(context, name) for name in (*COMMANDS, *ALIASES)}
    options = {name: {opt for one in command.params for opt in (*one.opts, *one.secondary_opts)}
               for name, command in made.items() if command is not None}  # fmt: skip
    every = {"--help", "--version", *(option for known in options.values() for option in known)}
    targets = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()  # type: ignore[index]
    wrong = []
    for page, span in spans():
        try:
            first, *words = shlex.split(span) or [""]
        except ValueError:
            continue
        known, second = every, words[0] if words else ""
        if first == "repq" and second.isalpha() and second.islower():
            if second not in options:
                wrong.append(f"{page}: {span}")
                continue
            known = {*options[second], "--help"}
        elif first == "make":
            wrong += [f"{page}: {span}" for word in words if word.islower() and word not in targets]
        elif first != "repq" and not first.startswith("--"):
            continue
        wrong += [f"{page}: {span}" for word in (first, *words) if word.startswith("--") and word not in known]
    assert not wrong


def test_the_python_of_the_readme_runs(at_the_desk: Path) -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    small = block.replace("640", str(SIZE)).replace("imgsz=64)\nint8", "imgsz=64, auto=False, limit=2)\nint8")
    exec(compile(small, "README.md", "exec"), {})
    assert (at_the_desk / "int8.onnx").is_file()


def test_the_readme_is_short_and_its_links_are_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file() or target in ("commands.md", "recipes.md"), f"{page}: {target}"


def test_the_notebook_is_kept_without_outputs() -> None:
    (path,) = (ROOT / "examples").glob("*.ipynb")
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        assert not cell["outputs"] and cell["execution_count"] is None
        compile("".join(cell["source"]), path.name, "exec")
    assert len(cells) >= 5


def test_the_error_that_the_page_on_json_shows_is_that_of_a_missing_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (shown,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/json.md").read_text(encoding="utf-8"), re.DOTALL)
    result = invoke(["describe", "best.pt", "--json"])
    assert result.exit_code == 2 and json.loads(result.stdout) == json.loads(shown)


def test_both_tables_of_what_int8_gains_say_the_same() -> None:
    def gains(page: str, heading: str) -> dict[tuple[str, str], set[str]]:
        text = (
            (ROOT / page).read_text(encoding="utf-8").partition(heading)[2].partition("\n\n|")[2].partition("\n\n")[0]
        )
        rows = [[cell.strip() for cell in line.split("|")[1:]] for line in text.splitlines()[2:]]
        return {
            (row[0], row[1].partition(",")[0]): set(re.findall(r"\d\.\d", " ".join(row[2:])))
            for row in rows if row[1].partition(",")[0] in ("OpenVINO", "ONNX Runtime")
        }  # fmt: skip

    in_readme, in_docs = gains("README.md", "## Choosing"), gains("docs/models.md", "## Which way to go")
    assert len(in_readme) == 4 and in_readme == in_docs
