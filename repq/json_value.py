"""Values that travel as JSON inside checkpoints, graphs and engines."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

V = TypeVar("V", bound="JsonValue")


class JsonValue:
    """A dataclass of plain values; with ``extra="forbid"`` in its pydantic settings it knows no other key."""

    def to_json(self) -> str:
        """The value as one JSON object."""
        value: Any = self
        return json.dumps(asdict(value))

    @classmethod
    def from_json(cls: type[V], text: str) -> V:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: the text is something else.
        """
        kind: Any = cls
        value: V = adapter(kind).validate_json(text)
        return value


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's reader and writer of a dataclass."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
