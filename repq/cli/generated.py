"""Commands made from the signatures of functions.

A parameter is an argument or an option, by its `repq.recipe.base.setting`, or a settings object, whose fields become
options. Types, ranges, choices, defaults and help texts are those of the fields, read anew for every call. All other
fields of the settings are reached by ``--set KEY=VALUE``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from repq.cli.places import demand_places
from repq.cli.relations import demand_relations
from repq.cli.shell import Shell
from repq.printable import printable
from repq.recipe import for_target, parse_settings, set_value
from repq.recipe.base import AnyPath, Config, OneOf, annotation_of, demand_number, marks, settings_in

F = TypeVar("F", bound=Callable[..., None])


class Offer:
    """Which fields of a settings object are options of a command; alone, all that have a flag are.

    Args:
        paths: the fields, such as ``calibration.method``, or objects with all of theirs.
        changes: by path, what the command says otherwise than the field: ``flag``, ``help``, ``default``, ``needs`` ….
        others: whether ``--set`` reaches the other fields.
    """

    def __init__(
        self, *paths: str, changes: Mapping[str, Mapping[str, Any]] | None = None, others: bool = True
    ) -> None:
        self.paths = paths
        self.changes = changes or {}
        self.others = others

    def __contains__(self, path: str) -> bool:
        return not self.paths or any(path == own or path.startswith(f"{own}.") for own in self.paths)


@dataclass
class Option:
    """An option or argument.

    Attributes:
        targets: paths of the fields that it fills, and their defaults.
        annotation: type of its value, with all limits.
        default: what it is when it is not given; `PydanticUndefined`: it is required.
        marks: what `setting` noted.
        switch: it turns settings on that are None without it.
    """

    targets: dict[str, Any]
    annotation: Any
    default: Any
    help: str
    marks: Mapping[str, Any]
    switch: bool = False
    names: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What messages and relations call it: its long name, or the argument's."""
        return self.names[-1].partition("/")[0]

    @property
    def ident(self) -> str:
        return next(iter(self.targets)).replace(".", "_")


def options_of(model: type[Config]) -> list[Option]:
    """The options of a command, from the model of its parameters. Fields with the same flag share one option."""
    found: dict[str, Option] = {}
    for option in _offered(model, "", None, None):
        flag = option.marks["flag"]
        if flag in found:
            found[flag].targets |= option.targets
        else:
            found[flag] = option
    return list(found.values())


def _offered(
    kind: type[Config], prefix: str, offer: Offer | None, above: FieldInfo | None, switch: str | None = None
) -> Iterator[Option]:
    """The options of a settings class; ``above`` is the field that holds it, ``switch`` the option that makes it be."""
    for name, info in kind.model_fields.items():
        path, nested = f"{prefix}{name}", settings_in(info)
        relative = path.partition(".")[2]
        changes: Mapping[str, Any] = {} if offer is None else offer.changes.get(relative, {})
        noted = {**marks(info), **changes}
        flag = noted.get("flag") if offer is None or relative in offer else None
        if flag:
            default = changes.get("default", info.get_default(call_default_factory=True))
            if default is PydanticUndefined and above is not None and not above.is_required():
                default = None
            yield Option(
                targets={path: info.get_default(call_default_factory=True)},
                annotation=bool if nested else annotation_of(info), default=default,
                help=changes.get("help", info.description or ""), switch=nested is not None, names=flag.split(),
                marks={**noted, "needs": noted["needs"] or switch or ()},
            )  # fmt: skip
        if nested is not None:
            inner = next((part for part in info.metadata if isinstance(part, Offer)), None) if not prefix else offer
            below = flag.split()[-1] if flag else switch
            yield from _offered(nested, f"{path}.", inner, info if prefix else None, below)


# --- one option ------------------------------------------------------------------------------------------------------


class Value(click.ParamType):
    """Text of the command line as a value within the limits of a field."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        self.name = _kind(annotation)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            demand_number(value, self.annotation)
            adapter: TypeAdapter[Any] = TypeAdapter(self.annotation, config=ConfigDict(allow_inf_nan=False))
            return adapter.validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            self.fail(f"{message} (got {printable(repr(value), 100)})", param, ctx)
        except ValueError as error:
            self.fail(f"{error} (got {printable(repr(value), 100)})", param, ctx)


def bare(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without ``Annotated`` and without None, and all that was noted of it."""
    noted: list[Any] = []
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            noted += [part for entry in more for part in (entry.metadata if isinstance(entry, FieldInfo) else (entry,))]
            continue
        parts = [part for part in get_args(annotation) if part is not type(None)]
        if type(None) in get_args(annotation) and len(parts) == 1:
            annotation = parts[0]
            continue
        return annotation, noted


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The names that a value may have, as they are now; none where it is no name of a list."""
    plain, noted = bare(annotation)
    listed = next((part for part in noted if isinstance(part, OneOf)), None)
    return listed.names() if listed else get_args(plain) if get_origin(plain) is Literal else ()


def items_of(annotation: Any) -> tuple[Any, int]:
    """Type of one value and how many there are: 1, a fixed number, or -1 for any."""
    plain, noted = bare(annotation)
    if get_origin(plain) is not tuple or any(isinstance(part, BeforeValidator) for part in noted):
        return annotation, 1
    first, *rest = get_args(plain)
    return first, -1 if rest == [...] else len(rest) + 1


def bounds_of(annotation: Any) -> str:
    """The range of a number, such as ``1..8192``; empty where there is none."""
    limits = {name: getattr(part, name) for part in bare(annotation)[1] for name in ("ge", "gt", "le", "lt")
              if getattr(part, name, None) is not None}  # fmt: skip
    low = f"above {_plain(limits['gt'])}" if "gt" in limits else _plain(limits.get("ge", ""))
    high = f"below {_plain(limits['lt'])}" if "lt" in limits else _plain(limits.get("le", ""))
    return f"{low}..{high}" if low or high else ""


def _plain(number: Any) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _kind(annotation: Any) -> str:
    plain, _noted = bare(annotation)
    choices = choices_of(annotation)
    if choices:
        return f"[{'|'.join(choices)}]"
    if get_origin(plain) is tuple:
        return "SIZE"
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(plain, "TEXT")


def parameter(option: Option) -> click.Parameter:
    """An option as click knows it."""
    item, count = items_of(option.annotation)
    value, required = Value(item), option.default is PydanticUndefined
    if not option.name.startswith("-"):
        many = f"{option.name} [{option.name}]..." if count == -1 else option.name
        return click.Argument([option.ident], type=value, nargs=count, metavar=many, required=required)
    text = option.help + ("" if "[default:" in option.help else _extras(option, item))
    names = [*option.names, option.ident]
    if bare(option.annotation)[0] is bool:
        return click.Option(names, is_flag=True, help=text)
    return click.Option(
        names, type=value, metavar=option.marks["metavar"] or value.name, required=required, help=text,
        multiple=count == -1, nargs=max(count, 1),
    )  # fmt: skip


def _extras(option: Option, item: Any) -> str:
    default = "" if option.switch else _shown(option.default, option.names[-1])
    parts = [f"default: {default}" if default else "", bounds_of(item)]
    return f"  [{'; '.join(filter(None, parts))}]" if any(parts) else ""


def _shown(default: Any, name: str) -> str:
    if default in (None, (), PydanticUndefined) or (isinstance(default, bool) and "/" not in name):
        return ""
    if isinstance(default, bool):
        return name.split("/")[0 if default else 1].strip("-")
    if isinstance(default, tuple):
        return ", ".join(map(str, dict.fromkeys(default)))
    return f"{default:g}" if isinstance(default, float) else str(default)


# --- one command -----------------------------------------------------------------------------------------------------


def parameters_of(function: Callable[..., None]) -> type[Config]:
    """The parameters of a function but the shell, as one settings class."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "shell"
    }
    return create_model(function.__name__, __base__=Config, **fields)


def command(function: Callable[..., None], name: str, help: str) -> click.Command:
    """Make the command of a function.

    Args:
        function: gets the shell and validated values; its docstring says more than ``help``.
        help: one line.
    """
    model = parameters_of(function)
    options = options_of(model)
    settings = [key for key, info in model.model_fields.items() if settings_in(info)]

    def call(
        as_json: bool, everything: bool, quiet: bool, verbose: bool, log_file: Path | None,
        other_settings: tuple[str, ...] = (), **values: Any,
    ) -> None:  # fmt: skip
        context = click.get_current_context()
        given = {
            option.name: values[option.ident]
            for option in options
            if context.get_parameter_source(option.ident) is ParameterSource.COMMANDLINE
        }
        demand_relations(options, given, as_json=as_json)
        nested = _nested(options, given, settings, other_settings)
        if "target" in nested:
            wanted = for_target(nested["target"], nested)
            nested |= {key: wanted[key] for key in settings if key in wanted}
        parsed = parse_settings(model, nested, what=name)
        demand_places(options, parsed, log_file)
        shell = Shell(as_json, everything=everything, quiet=quiet, verbose=verbose, log_file=log_file)
        with shell.one_result():
            function(shell, **{key: getattr(parsed, key) for key in model.model_fields})

    more = [
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object on standard output."),
        click.Option(["--all", "everything"], is_flag=True, help="Show long tables whole, not their worst rows."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Show nothing but results and errors."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Show times, and where errors come from."),
        click.Option(["--log-file"], type=Value(AnyPath), metavar="FILE", help="Append all that is said."),
    ]
    taken = {path for option in options for path in option.targets}
    example = next((text for text in _others(model, "", taken) if text), None)
    if example is not None:
        example = example.removeprefix(f"{settings[0]}.")
        others = f"Other settings, as in a recipe: {example}"
        more.insert(0, click.Option(["--set", "other_settings"], multiple=True, metavar="KEY=VALUE", help=others))
    text = f"{help}\n\n{inspect.cleandoc(function.__doc__ or '')}"
    return click.Command(name, callback=call, params=[*map(parameter, options), *more], help=text)


def _others(kind: type[Config], prefix: str, taken: set[str]) -> Iterator[str]:
    """Settings that are no option, as one gives them to ``--set``, with their defaults."""
    for name, info in kind.model_fields.items():
        path, nested = f"{prefix}{name}", settings_in(info)
        if nested is not None and not any(isinstance(part, Offer) and not part.others for part in info.metadata):
            yield from _others(nested, f"{path}.", taken)
        elif prefix and path not in taken:
            yield f"{path}={json.dumps(default_of(info))}"


def default_of(info: FieldInfo) -> Any:
    """The default of a field as a plain JSON value."""
    return TypeAdapter(Any).dump_python(info.get_default(call_default_factory=True), mode="json")


def _nested(
    options: list[Option], given: Mapping[str, Any], settings: list[str], overrides: tuple[str, ...]
) -> dict[str, Any]:
    """The values of all parameters: what was given, what the command says otherwise than the fields, overrides."""
    values: dict[str, Any] = {key: {} for key in settings}
    for option in options:
        for path, own in option.targets.items():
            if option.name in given:
                if not option.switch:
                    _put(values, path, given[option.name])
                elif given[option.name]:
                    _put(values, path, {})
            elif option.marks["follows"] in given:
                _put(values, path, True)
            elif option.default is None and own is PydanticUndefined:  # required of what is not asked for
                continue
            elif option.default is not PydanticUndefined and option.default != own and not _excluded(option, given):
                _put(values, path, option.default)
    for override in overrides:
        first = override.partition("=")[0].partition(".")[0]
        set_value(values, override if first in settings else f"{settings[0]}.{override}")
    return values


def _excluded(option: Option, given: Mapping[str, Any]) -> bool:
    excludes = option.marks["excludes"]
    return any(name in given for name in ([excludes] if isinstance(excludes, str) else excludes))


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    if value != {} or last not in values:
        values[last] = value
