"""What is made when it is first used, so that importing repq stays cheap."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a module's ``__getattr__`` (PEP 562).

    Args:
        package: the module's own ``__name__``.
        homes: name to the module that defines it.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return find


def compiles_on_first_use() -> bool:
    """Whether pydantic may compile a class when it is first used, for ``ConfigDict(defer_build=…)``.

    Before 2.14 it took no lock: of two threads that first use a class at once, one failed.
    """
    from pydantic import VERSION

    return tuple(map(int, VERSION.split(".")[:2])) >= (2, 14)
