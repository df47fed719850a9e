"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real images, checkpoints and reference outputs; beside the project or named by REPQ_SHARED."""
    folder = Path(os.environ.get("REPQ_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"the reference material is not at {folder} (set REPQ_SHARED to its folder)")
    return folder
