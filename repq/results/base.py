"""What all results share."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from repq.lazy import compiles_on_first_use


class Result(BaseModel):
    # Infinities (the SNR of equal outputs) become strings, since JSON has none and null would not read back.
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", defer_build=compiles_on_first_use()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _encodable(cls, value: Any) -> Any:
        """A byte of a file's name that is no UTF-8 is written as an escape: JSON has no place for it."""
        if isinstance(value, str) and not value.isascii():
            return value.encode("utf-8", "backslashreplace").decode()
        return value

    def values(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain


def measured_time(default: Any = ...) -> Any:
    """A field that differs from run to run (times, dates): no other result depends on it."""
    return Field(default, json_schema_extra={"no_effect": True})


Range = tuple[float, float]


def gained(now: float, before: float) -> float:
    """What an SNR in dB has gained: nothing where both are infinite, whose difference is no number."""
    return now - before if now != before else 0.0
