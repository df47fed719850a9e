"""Commands on repq itself: its settings, and completion in shells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from repq.cli.generated import bare, bounds_of, choices_of, default_of
from repq.cli.shell import Shell
from repq.errors import RecipeError
from repq.recipe.base import Config, annotation_of, marks, setting, settings_in
from repq.recipe.whole import Recipe, recipe_class

_KINDS = {bool: "true|false", int: "integer", float: "number", str: "text", Path: "path"}
SECTION_HELP = "A section of recipes; default: what concerns the whole recipe, and the names of the sections."


def config_command(
    shell: Shell,
    section: Annotated[str, setting(flag="SECTION", help=SECTION_HELP)] = "recipe",
    as_schema: Annotated[bool, setting(flag="--schema", excludes="--json", help="As a JSON schema.")] = False,
) -> None:
    """Every setting with its default, range, option and meaning. SECTION is train, ptq, qat, export …; `recipe` is what
    all stages share. The names are those of recipes and of --set.
    """
    kind = sections().get(section)
    if kind is None:
        raise RecipeError(f"recipes have no section {section!r}", fix=f"use one of {', '.join(sections())}")
    if as_schema:
        shell.print_json(plain_schema(kind.model_json_schema()))
        return
    from repq.report.text import settings_table

    rows = list(settings_of(kind))
    about = "" if section != "recipe" else f"Sections: {', '.join(sections())}"
    text = (kind.__doc__ or "").split("\n\n")[0]
    values = {"section": section, "settings": rows, "sections": list(sections())}
    shell.finish(values, lambda: settings_table(section, rows, f"{text}\n{about}".strip()))


def completion_command(
    shell: Shell, kind: Annotated[Literal["bash", "zsh", "fish"], setting(flag="SHELL", help="The shell.")]
) -> None:
    """For example: `repq completion bash >> ~/.bashrc`"""
    from click.shell_completion import get_completion_class

    from repq.cli import main

    found = get_completion_class(kind)
    assert found is not None
    source = found(main, {}, "repq", "_REPQ_COMPLETE").source()
    shell.finish({"shell": kind, "source": source}, source)


def sections() -> dict[str, type[Config]]:
    """The sections of recipes by name; ``recipe`` is what all stages share."""
    fields = recipe_class().model_fields
    return {"recipe": Recipe, **{name: kind for name in fields if (kind := settings_in(fields[name])) is not None}}


def settings_of(kind: type[Config], prefix: str = "") -> Iterator[dict[str, Any]]:
    """What is to be said of each setting, those of nested settings with their paths."""
    for name, info in kind.model_fields.items():
        nested, noted = settings_in(info), marks(info)
        if nested is not None:
            yield from settings_of(nested, f"{prefix}{name}.")
            continue
        annotation = annotation_of(info)
        allowed = "|".join(choices_of(annotation)) or bounds_of(annotation)
        plain = bare(annotation)[0]
        yield {
            "name": f"{prefix}{name}",
            "default": None if info.is_required() else default_of(info),
            "required": info.is_required(),
            "range": allowed or _KINDS.get(plain, "list"),
            "option": str(noted.get("flag") or "").split(" ")[-1] or None,
            "help": info.description or "",
        }


def plain_schema(schema: Any) -> Any:
    """A JSON schema without what only the command line needs to know of a field."""
    if isinstance(schema, list):
        return [plain_schema(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    ours = ("flag", "metavar", "no_effect", "needs", "excludes", "follows", "writes")
    described = "flag" in schema and "needs" in schema
    return {key: plain_schema(value) for key, value in schema.items() if not (described and key in ours)}
