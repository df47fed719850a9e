"""What all settings share: a frozen base, the form of a field, and names that come from a list."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


def _as_size(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


ImageSize = Annotated[tuple[int, int], BeforeValidator(_as_size)]
"""Height and width in pixels; a single integer means a square."""


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


C = TypeVar("C", bound=Config)


def setting(
    default: Any = ..., *, help: str, flag: str | None = None, metavar: str | None = None, no_effect: bool = False,
    **limits: Any,
) -> Any:  # fmt: skip
    """A field of a settings class, with everything that the command line and the identity of a result need to know.

    Args:
        default: as for ``pydantic.Field``.
        help: one short sentence; the text of the option and of the documentation.
        flag: name of the option on the command line, such as ``--conf``; None: reachable by ``--set`` alone.
        metavar: what the option's value is called in the help.
        no_effect: the field has no effect on the result (threads, cache sizes …), and so none on its identity.
        limits: ``ge``, ``gt``, ``le``, ``lt``, ``pattern`` …, as for ``pydantic.Field``.
    """
    extra: dict[str, Any] = {"flag": flag, "metavar": metavar, "no_effect": no_effect}
    return Field(default, description=help, json_schema_extra=extra, **limits)


@dataclass(frozen=True)
class OneOf:
    """Annotates a ``str`` that must be the ``name`` of an object in a list, which is read anew at every validation.

    Args:
        where: module and list, such as ``repq.engine:ENGINES``. Importing that module loads no heavy library.
    """

    where: str

    def names(self) -> tuple[str, ...]:
        """The names that are valid now."""
        return tuple(entry.name for entry in resolve(self.where))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

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
