"""What other processes take of this machine's cores while something runs."""

from __future__ import annotations

import time

from repq.machine.cpu import bound_cores
from repq.results import MachineLoad

_NOTICED, _DISTURBING = 0.5, 0.25  # cores


class OtherLoad:
    """What other processes computed on this process's cores since this was made: all that was, less its own part."""

    def __init__(self) -> None:
        self._start = _computed()
        self._told = False

    def cores(self) -> float:
        """How many cores they kept busy, a fraction as a rule."""
        (clock, everyone, own), (then, before, mine) = _computed(), self._start
        return max(0.0, everyone - before - (own - mine)) / max(clock - then, 0.01)

    def so_far(self, threads: int) -> MachineLoad:
        """What is to be said of models that were timed with so many threads meanwhile."""
        others = self.cores()
        return MachineLoad(others=round(others, 2), crowded=in_the_way(others, threads, bound_cores(), _DISTURBING))

    def note_once(self, processes: int = 1, device: str = "cpu") -> str:
        """`crowding_note` of torch's threads and what was measured until the first call; empty from then on.

        Empty as well where several processes share the work, which then are the others, and where a GPU does it.
        """
        import torch

        told, self._told = self._told, True
        silent = told or processes > 1 or device != "cpu"
        return "" if silent else crowding_note(self.cores(), torch.get_num_threads())


def crowding_note(others: float, threads: int, cores: int | None = None) -> str:
    """What to do where threads that wait for each other share cores with others; empty: there is room for them.

    Args:
        others: cores that other processes keep busy.
        threads: of this process.
        cores: of the machine, by default those that this process may run on.
    """
    cores = cores or bound_cores()
    if threads < 2 or not in_the_way(others, threads, cores, _NOTICED):
        return ""
    free = max(1, round(cores - others))
    return (
        f"other processes keep {others:.1f} of {cores} cores busy: threads that wait for one that has no core take "
        f"several times as long; OMP_NUM_THREADS={free} leaves them room"
    )


def in_the_way(others: float, threads: int, cores: int, least: float) -> bool:
    """Whether what other processes compute takes cores, ``least`` or more of them, that these threads need."""
    return others >= least and others + threads >= cores + least


def _computed() -> tuple[float, float, float]:
    """The clock, and the seconds of processor time of everybody and of this process with its ended children."""
    import psutil

    process, times = psutil.Process(), psutil.cpu_times(percpu=True)
    ours = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(len(times))
    shown = [times[core] for core in ours if core < len(times)]
    busy = sum(core.user + getattr(core, "nice", 0.0) + core.system for core in shown)
    own = process.cpu_times()
    return time.monotonic(), busy, own.user + own.system + own.children_user + own.children_system
