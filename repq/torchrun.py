"""What ``torchrun`` says of this process in its environment, which other launchers fill with numbers of their own."""

from __future__ import annotations

import os

from repq.reading import whole


def place_in_group() -> tuple[int, int]:
    """The number of this process and how many there are; ``(0, 1)`` where ``torchrun`` did not start it."""
    rank, count = (whole(os.environ.get(name, ""), digits=9) for name in ("RANK", "WORLD_SIZE"))
    return (0, 1) if rank is None or count is None or rank >= count else (rank, count)


def is_alone() -> bool:
    """Whether this process shares no work, and so need not load torch to find out with whom."""
    return place_in_group()[1] == 1


def processes_here() -> int:
    """How many of these processes run on this machine; 1 where ``torchrun`` did not start this one."""
    count = whole(os.environ.get("LOCAL_WORLD_SIZE", ""), digits=9)
    return 1 if is_alone() else max(1, count or 1)
