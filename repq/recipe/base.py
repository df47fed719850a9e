"""What all settings share: a frozen base, the form of a field, bounded types, and names that come from a list."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from operator import getitem
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from repq.lazy import compiles_on_first_use
from repq.reading import number, whole


class Config(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, defer_build=compiles_on_first_use()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_other_value_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``yes`` and ``off``, which YAML reads as true and false, are neither 1 nor 0 where a number is wanted.

        A text is one only as `repq.reading.number` says.
        """
        given = value if isinstance(value, (list, tuple)) else (value,)
        field = cls.model_fields[str(info.field_name)]
        for one in given if not any(isinstance(part, BeforeValidator) for part in field.metadata) else ():
            demand_number(one, field.annotation)
        switches = [one for one in given if isinstance(one, bool)]
        if switches and not _takes_switch(field.annotation):
            raise ValueError(f"{str(switches[0]).lower()} (in YAML also yes, no, on, off) is no value of this setting")
        return value


def demand_number(value: Any, annotation: Any) -> None:
    """Refuse a text that is no number (`repq.reading.number`) where a number is wanted, and no text.

    Raises:
        ValueError: it is none, such as ``1_0``, which pydantic would take.
    """
    kinds = set(_kinds(annotation))
    wanted = kinds & {int, float} and not kinds - {int, float, type(None)}
    if wanted and isinstance(value, str) and number(value) is None:
        raise ValueError("a number is wanted: digits, and where they belong a sign, a point and an exponent")


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types that a value, or each value of a tuple, may have."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        yield from (str,) if any(isinstance(part, BeforeValidator) for part in parts) else _kinds(parts[0])
    elif get_origin(annotation) in (Union, UnionType, tuple):
        for part in parts:
            yield from () if part is ... else _kinds(part)
    else:
        yield annotation


def _takes_switch(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_switch, get_args(annotation)))


C = TypeVar("C", bound=Config)

Conditions = str | tuple[str, ...]
"""What an option needs, or excludes, on a command line: ``--fp16`` (given), ``--method percentile`` (has this value),
``--engine torch|`` (has it, or is not given), ``--top |`` (is not given), ``MODEL onnx|engine`` (an argument is of one
of these kinds; arguments that the command does not have do not count). Alternatives are joined by `` or ``; of several
needs in a tuple each has to hold. See `repq.cli.relations`."""


def setting(
    default: Any = ..., *, help: str, flag: str | None = None, metavar: str | None = None, no_effect: bool = False,
    needs: Conditions = (), excludes: Conditions = (), follows: str | None = None,
    writes: str | tuple[str, ...] | None = None, **limits: Any,
) -> Any:  # fmt: skip
    """A field of a settings class, with everything that the command line and the identity of a result need to know.

    Args:
        default: as for ``pydantic.Field``.
        help: one short sentence; the text of the option and of the documentation.
        flag: the option on the command line, such as ``--conf``, ``-o --out`` or ``--tf32/--no-tf32``; a name without a
            dash, such as ``MODEL``, is an argument. None: reachable by ``--set`` alone.
        metavar: what the option's value is called in the help.
        no_effect: the field has no effect on the result (threads, cache sizes …), and so none on its identity.
        needs: without what the option would do nothing, which is an error; see `Conditions`.
        excludes: beside what it would do nothing.
        follows: another flag that switches this field on as well.
        writes: of a path: it is written; the suffix of the file (an empty text: any), or the names (globs) of
            everything that is written into the folder.
        limits: ``ge``, ``gt``, ``le``, ``lt``, ``pattern`` …, as for ``pydantic.Field``.
    """
    extra: dict[str, Any] = {"flag": flag, "metavar": metavar, "no_effect": no_effect, "needs": needs,
                             "excludes": excludes, "follows": follows, "writes": writes}  # fmt: skip
    return Field(default, description=help, json_schema_extra=extra, **limits)


def marks(field: Any) -> Mapping[str, Any]:
    """What `setting` noted of a field; empty for a plain one."""
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def annotation_of(field: Any) -> Any:
    """The type of a field with all that bounds it, as it would stand in the class."""
    return getitem(Annotated, (field.annotation, *field.metadata)) if field.metadata else field.annotation


def settings_in(field: Any) -> type[Config] | None:
    """The settings class that a field holds, or may hold beside None; None for a plain value."""
    for part in field.metadata:
        if isinstance(part, Assembled):
            return part.settings_class()
    return _config_in(field.annotation)


def _config_in(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    alternatives = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    return next((found for found in map(_config_in, alternatives) if found is not None), None)


# --- types with bounds -----------------------------------------------------------------------------------------------


def _as_size(value: Any) -> Any:
    if isinstance(value, str):
        parts = value.lower().replace(",", "x").split("x")
        sizes = [whole(part, digits=9) for part in parts]
        if len(sizes) > 2 or None in sizes:
            raise ValueError(f"{value[:40]!r} is no image size; write 640 or 480x640 (height x width)")
        return sizes[0], sizes[-1]
    return (value, value) if isinstance(value, Real) else value


def _named(value: Any) -> Any:
    if value == "":
        raise ValueError("a path is empty, such as that of a variable without a value; the working folder is '.'")
    return value


def _as_path(path: Path) -> Path:
    name = os.fsencode(path)  # a ValueError for characters that no name can have
    if b"\0" in name:
        raise ValueError("a path cannot hold a NUL character")
    if len(name) >= 4096 or any(len(part) > 255 for part in name.split(b"/")):
        raise ValueError(f"a path of {len(name)} bytes is too long")
    return path


def _chosen_device(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=1e6)]
"""The weight of a part of a loss, and the like."""
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Batch = Annotated[int, Field(ge=1, le=65_536)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Decibels = Annotated[float, Field(ge=-1000, le=1000)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
ImageSize = Annotated[tuple[Pixels, Pixels], BeforeValidator(_as_size)]
"""Height and width in pixels; a single integer means a square; ``480x640`` is read as well."""
AnyPath = Annotated[Path, BeforeValidator(_named), AfterValidator(_as_path)]
Device = Annotated[str, Field(pattern=r"^[a-z]{1,16}(:[0-9]{1,3})?$"), AfterValidator(_chosen_device)]
"""Where torch runs: ``cpu``, ``cuda``, ``cuda:1`` …; ``auto`` is ``cuda`` where torch finds a GPU, else ``cpu``."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]


# --- names from lists, settings from lists ---------------------------------------------------------------------------


@dataclass(frozen=True)
class OneOf:
    """Annotates a ``str`` that must be the ``name`` of an object in a list, which is read anew at every validation.

    Args:
        where: module and list, such as ``repq.engine:ENGINES``. Importing that module loads no heavy library.
        also: names that are valid beside those of the list.
    """

    where: str
    also: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """The names that are valid now."""
        return (*self.also, *(entry.name for entry in resolve(self.where)))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.names())}

    def _check(self, value: str) -> str:
        names = self.names()
        if value not in names:
            close = difflib.get_close_matches(value, names, n=1, cutoff=0.0)
            hint = f"; the closest is {close[0]!r}" if close else ""
            raise ValueError(f"{value!r} is none of {', '.join(names)}{hint}")
        return value


@dataclass(frozen=True)
class Assembled:
    """Annotates a ``Config`` whose class a function makes from a list of objects, anew when the list has changed.

    Args:
        where: module and function, such as ``repq.quant.corrections:settings_class``.
    """

    where: str

    def settings_class(self) -> type[Config]:
        """The class as the list is now."""
        made: type[Config] = resolve(self.where)()
        return made

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._parse, serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(self.settings_class().__pydantic_core_schema__)

    def _parse(self, value: Any) -> Config:
        wanted = self.settings_class()
        if isinstance(value, wanted):
            return value
        return wanted.model_validate(value.model_dump() if isinstance(value, Config) else value)


def _dump(value: Config, info: Any) -> Any:
    return value.model_dump(mode=info.mode)


def resolve(where: str) -> Any:
    """What ``module:name`` names."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)
