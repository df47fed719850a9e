"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from repq.files import replacing, write_text


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\ud800")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupted_block_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "weights"

    def write_half() -> None:
        with replacing(target) as beside:
            beside.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(target.parent.iterdir()) == []


def test_a_whole_block_replaces_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    target.write_bytes(b"old")
    with replacing(target) as beside:
        beside.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]
