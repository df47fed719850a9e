"""Every command with every kind of bad file: exit 2 with what is wrong, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_files import kinds, make
from command_lines import Material, every_option, invoke, is_path, refused

INPUTS = [(name, option) for name, option in every_option() if is_path(option) and option.marks["writes"] is None]


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize(("command", "option"), INPUTS, ids=lambda one: one if isinstance(one, str) else one.name)
def test_a_bad_file_is_refused(command: str, option, kind: str, material: Material, folder: Path) -> None:
    key = option.name.strip("-").replace("-", "_")
    bad = make(kind, material.path(command, option), folder)
    before = sorted(folder.iterdir())
    refused(invoke(*material.line(command, **{key: [bad]})))
    assert sorted(folder.iterdir()) == before
    assert not (material.folder / "out").exists()
