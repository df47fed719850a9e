"""What ``torchrun`` says of this process in its environment, which other launchers fill with numbers of their own."""

from __future__ import annotations

import os


def place_in_group() -> tuple[int, int]:
    """The number of this process and how many there are; ``(0, 1)`` where ``torchrun`` did not start it."""
    rank, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        return 0, 1
    return int(rank), int(count)
