"""The pages that are made from the code when the site is built: commands from click, recipes from their settings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from repq.cli import ALIASES, COMMANDS, GROUPS, main
from repq.cli.about import sections, settings_of
from repq.cli.frame import EXIT_CODES
from repq.recipe.reader import SHIPPED


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for name, lines in (("commands.md", commands()), ("recipes.md", recipes())):
        files.append(File.generated(config, name, content="\n".join(lines) + "\n"))
    return files


def commands() -> Iterator[str]:
    """Every command with its options, as its help says them."""
    yield "# Commands\n"
    yield "This page is made from the commands themselves; `repq COMMAND --help` says the same.\n"
    yield "## Every command\n"
    context = click.Context(main, info_name="repq")
    doctor = main.get_command(context, "doctor")
    assert doctor is not None
    yield from _table(("option", "meaning"), _options(doctor, click.Context(doctor, context, "doctor"), ()))
    yield "`repq completion bash >> ~/.bashrc` completes commands and options.\n"
    common = {name for parameter in doctor.params for name in parameter.opts}
    for module, title in GROUPS.items():
        for name in (name for name, (home, _) in COMMANDS.items() if home == module):
            command = main.get_command(context, name)
            assert command is not None
            yield from _command(command, click.Context(command, context, name), title, common)
    yield "## Exit codes\n"
    yield from _table(("code", "meaning"), ((str(code), meaning) for code, meaning in EXIT_CODES.items()))


def _command(command: click.Command, context: click.Context, group: str, common: Collection[str]) -> Iterator[str]:
    yield f"## repq {context.info_name}\n"
    also = ", ".join(f"`repq {alias}`" for alias, name in ALIASES.items() if name == context.info_name)
    yield f"*{group}.*" + (f" Also: {also}." if also else "") + "\n"
    yield f"{_escaped(command.help or '')}\n"
    yield f"```text\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```\n"
    yield from _table(("option", "meaning"), _options(command, context, common))


def _options(command: click.Command, context: click.Context, but: Collection[str]) -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None and not set(parameter.opts) & set(but):
            yield f"`{record[0]}`", record[1]


def recipes() -> Iterator[str]:
    """The recipes that repq ships, and every setting of every section."""
    yield "# Recipes\n"
    yield (
        "A recipe is a short YAML file; unknown keys fail and name the closest valid one. `repq run NAME` runs one of "
        "those below: `best.pt` and `data.yaml` are looked for in the working folder, and `--weights`, `--data`, "
        "`--imgsz` and `--set KEY=VALUE` take the place of what the recipe says. This page is made from the recipes "
        "and the settings classes; `repq config SECTION` prints the same tables.\n"
    )
    for folder, command in ((SHIPPED, "run"), (SHIPPED / "ablations", "ablation")):
        for path in sorted(folder.glob("*.yaml")):
            yield from _recipe(path, command)
    for name, kind in sections().items():
        yield f"## The section `{name}`\n" if name != "recipe" else "## What concerns the whole recipe\n"
        yield (kind.__doc__ or "").split("\n\n")[0].replace("\n", " ") + "\n"
        rows = ((f"`{row['name']}`", _default(row), f"`{row['range']}`", row["help"]) for row in settings_of(kind))
        yield from _table(("setting", "default", "range", "meaning"), rows)


def _recipe(path: Path, command: str) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    head = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    yield f"## {path.stem}\n"
    yield f"{_escaped(' '.join(line for line in head if not line.startswith('repq ')))}\n"
    yield f"```sh\nrepq {command} {path.stem}\n```\n"
    yield "```yaml\n" + "\n".join(line for line in lines if not line.startswith("#")) + "\n```\n"


def _default(row: dict[str, Any]) -> str:
    return "required" if row["required"] else "" if row["default"] is None else f"`{row['default']}`"


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"
    yield ""


def _cell(text: str) -> str:
    line = text.replace("\n", " ")
    return line if line.startswith("`") else _escaped(line).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Markdown that shows what the terminal does: outside of code, stars, lines and brackets are no markup."""
    return re.sub(r"`[^`]*`|([*_<\[])", lambda found: f"\\{found[1]}" if found[1] else found[0], text)
