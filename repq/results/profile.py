"""Where a model's time goes."""

from __future__ import annotations

from repq.results.base import Result
from repq.results.timing import Timed


class NodeTime(Result):
    """What a runtime runs as one: ``ms`` is the mean over the runs. ``layer`` is None where no convolution is in it."""

    name: str
    kind: str  # as the runtime calls it
    layer: str | None
    ms: float
    precision: str = ""


class ProfileReport(Timed):
    """Times as the runtime itself tells them, in the order of execution; counting costs time as well.

    Attributes:
        total_ms: median of whole runs that were not profiled.
        nsight: command lines that trace the same with Nsight Systems; none where it is not installed.
    """

    model: str
    engine: str
    imgsz: tuple[int, int]
    batch: int
    runs: int
    total_ms: float
    nodes: tuple[NodeTime, ...]
    nsight: tuple[str, ...] = ()

    @property
    def nodes_ms(self) -> float:
        return sum(node.ms for node in self.nodes)
