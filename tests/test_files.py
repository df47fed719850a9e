"""Files are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from repq.files import cache_folder, replacing, replacing_folder, scratch_folder, write_text


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


@pytest.mark.parametrize("way", [replacing, replacing_folder])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, way: Any) -> None:
    """And what one that still runs is writing is not."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom repq.files import replacing, replacing_folder\n"
        f"with {way.__name__}(Path(sys.argv[1])) as beside:\n"
        "    (beside / 'x' if beside.is_dir() else beside).write_bytes(b'half')\n"
        "    print('written', flush=True)\n    sys.stdin.read()\n"
    )
    place = tmp_path / "out[1].bin"
    running = subprocess.Popen([sys.executable, "-c", code, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdout is not None and running.stdout.readline() == b"written\n"
    (half,) = tmp_path.iterdir()

    def write() -> None:
        with way(place) as beside:
            (beside / "x" if beside.is_dir() else beside).write_bytes(b"whole")

    write()
    assert half.exists()
    running.kill()
    running.communicate()
    write()
    assert list(tmp_path.iterdir()) == [place]


def test_scratch_of_a_killed_process_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import sys\nfrom repq.files import scratch_folder\nwith scratch_folder() as folder:\n"
        "    (folder / 'x').write_bytes(b'half')\n    print(folder, flush=True)\n    sys.stdin.read()\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert running.stdout is not None
    left = Path(running.stdout.readline().strip())
    with scratch_folder() as own:
        assert left.parent == own.parent == tmp_path and left.exists()
        assert own.stat().st_mode & 0o777 == 0o700
    running.kill()
    running.communicate()
    assert list(tmp_path.iterdir()) == [left]
    with scratch_folder() as own:
        assert list(tmp_path.iterdir()) == [own]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_take_the_place_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "out" / "x", "old")
    with pytest.raises(FileNotFoundError), replacing_folder(tmp_path / "out") as new:
        new.rmdir()
    assert (tmp_path / "out" / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("own", ["~nosuchuser_x/cache", "~nosuchuser_x"])
@pytest.mark.parametrize("variable", ["REPQ_CACHE", "XDG_CACHE_HOME"])
def test_a_home_that_is_none_leaves_a_cache_among_temporary_files(
    variable: str, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REPQ_CACHE", raising=False)
    monkeypatch.setenv(variable, own)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache_folder().parent == tmp_path


def test_a_text_that_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    """A finished run, ablation or comparison can be read again from a read-only disk."""
    path = tmp_path / "é.txt"
    write_text(path, "a\nb é")
    before = path.stat()
    write_text(path, "a\nb é")
    assert (path.stat().st_ino, path.stat().st_ctime_ns) == (before.st_ino, before.st_ctime_ns)
    write_text(path, "a\nb")
    assert path.read_text() == "a\nb"


@pytest.mark.parametrize("place", [".", "..", "../..", "../../a"])
def test_a_folder_is_named_in_any_way(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    with pytest.raises(OSError, match="working folder"), replacing_folder(Path(place)):
        pass
    with replacing_folder(Path(place), keep_others=True) as new:
        (new / "file").write_text("x")
    assert (Path(place) / "file").read_text() == "x" and not list(tmp_path.rglob("*.part"))
