"""What all results share."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    # Infinities (the SNR of equal outputs) become strings, since JSON has none and null would not read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def values(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain


def measured_time(default: Any = ...) -> Any:
    """A field that differs from run to run (times, dates): no other result depends on it."""
    return Field(default, json_schema_extra={"no_effect": True})


Range = tuple[float, float]
