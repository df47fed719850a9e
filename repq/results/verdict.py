"""Whether INT8 is good enough to ship, engine by engine."""

from __future__ import annotations

from repq.results.base import Result


class EngineVerdict(Result):
    """INT8 against FP32 in one engine. None: not measured there.

    Attributes:
        drop: AP that INT8 loses, 0..1; negative where it gains. None: FP32 has AP 0, so it cannot be measured.
        speedup: FP32 median latency over that of INT8.
        holds: whether the drop is within the budget.
        pays: whether INT8 is as much faster as was asked for.
    """

    engine: str
    ap_float: float
    ap_int8: float
    drop: float | None
    speedup: float | None
    holds: bool
    pays: bool

    @property
    def good(self) -> bool:
        return self.holds and self.pays


class Verdict(Result):
    """What came out of a run.

    Attributes:
        ways: what was tried to hold the budget, in order, with the largest AP drop of each. None: not measurable.
        ship: the engine to ship: the target, or the fastest in INT8 of those that are good; None: none is.
        next: what to try next, where nothing is to be shipped.
        crowded: whether other processes had cores that the models needed while they were timed.
    """

    max_drop: float
    min_speedup: float
    engines: tuple[EngineVerdict, ...]
    ways: tuple[tuple[str, float | None], ...]
    ship: str | None
    next: str | None = None
    crowded: bool = False
