"""What ONNX Runtime runs on: the provider that was asked for, never another in its place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repq.errors import EngineError
from repq.recipe import Provider

NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Setting -> ONNX Runtime's own name."""


def demand_provider(provider: Provider) -> None:
    """Refuse a provider that the installed package does not have.

    Raises:
        EngineError: it is not there.
    """
    import onnxruntime

    present = onnxruntime.get_available_providers()
    if NAMES[provider] not in present:
        raise EngineError(
            f"this ONNX Runtime has no {NAMES[provider]}",
            found=", ".join(present),
            fix="pip uninstall onnxruntime, then pip install onnxruntime-gpu; or use --provider cpu",
        )


def nodes_by_provider(session: Any, feed: Mapping[str, Any]) -> dict[str, int]:
    """Run a session that was opened with profiling once, and count the nodes by the provider that ran them."""
    session.run(None, dict(feed))
    profile = Path(session.end_profiling())
    try:
        events = json.loads(profile.read_text(encoding="utf-8"))
    finally:
        profile.unlink()
    ran = {event["name"]: event["args"]["provider"] for event in events if event.get("args", {}).get("provider")}
    return dict(sorted(Counter(ran.values()).items()))
