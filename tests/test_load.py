"""What others compute on this machine, and what is said of it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from repq.machine.cpu import bound_cores
from repq.machine.load import OtherLoad, crowding_note

BURN = "import time\nend = time.process_time() + 1.0\nwhile time.process_time() < end: pass"


def test_another_process_is_seen() -> None:
    others = OtherLoad()
    with subprocess.Popen([sys.executable, "-c", BURN]) as child:
        while child.poll() is None and others.cores() < 0.3:
            time.sleep(0.05)
        assert others.cores() >= 0.3
        child.kill()


def test_own_work_is_not_that_of_others() -> None:
    others, began = OtherLoad(), time.process_time()
    start = time.monotonic()
    while time.monotonic() - start < 0.6:
        pass
    own = (time.process_time() - began) / (time.monotonic() - start)
    assert others.cores() <= bound_cores() - own + 0.15


@pytest.mark.parametrize(
    ("others", "threads", "cores", "room"),
    [(1.0, 2, 2, 1), (0.9, 2, 2, 1), (6.0, 16, 16, 10), (20.0, 8, 8, 1), (3.2, 4, 4, 1),
     (0.2, 2, 2, None), (1.0, 1, 2, None), (8.0, 8, 16, None), (2.0, 1, 1, None)],
)  # fmt: skip
def test_it_is_said_where_threads_have_no_room(others: float, threads: int, cores: int, room: int | None) -> None:
    note = crowding_note(others, threads, cores)
    assert note.endswith(f"OMP_NUM_THREADS={room} leaves them room") if room else note == ""


def test_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OtherLoad, "cores", lambda self: float(bound_cores()))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    others = OtherLoad()
    assert "leaves them room" in others.note_once()
    assert others.note_once() == ""
    assert OtherLoad().note_once(processes=2) == "", "the others share the work"
    assert OtherLoad().note_once(device="cuda") == "", "no thread of the CPU waits"
