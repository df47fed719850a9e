"""What all results share."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    # Infinities (the SNR of equal outputs) become strings, since JSON has none and null would not read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def values(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain


Range = tuple[float, float]
