"""The verdict of a run in sentences."""

from __future__ import annotations

from repq.recipe import engine_title
from repq.results import Verdict


def time_again(folder: str = "bench") -> str:
    """What to do about times that other processes disturbed and that the same command would reuse."""
    return f"time again: delete the folder {folder} of the output and repeat the command while nothing else computes"


def sentences(verdict: Verdict) -> list[str]:
    """Each engine, the worst first; how to time again, where that is needed; what was tried; what to ship."""
    lines = [*engine_sentences(verdict), *([time_again().capitalize()] if verdict.crowded else [])]
    if len(verdict.ways) > 1:
        tried = (name if drop is None else f"{name} (loses {drop:.4f})" for name, drop in verdict.ways)
        lines.append("tried: " + "; ".join(tried))
    if verdict.ship is not None:
        lines.append(f"to ship: {engine_title(verdict.ship)} INT8")
    return lines


def engine_sentences(verdict: Verdict) -> list[str]:
    """Each engine, the worst first; and if that is so, that its speed is not to be trusted."""
    good = [engine_title(row.engine) for row in verdict.engines if row.good]
    lines = []
    for row in sorted(verdict.engines, key=lambda row: row.good):
        bound = f"a loss of {verdict.max_drop:g} is allowed" if verdict.max_drop < 1 else "any loss is allowed"
        change = (
            f"{-row.drop:+.4f}; {bound}" if row.drop is not None else "FP32 finds nothing, so a loss cannot be seen"
        )
        facts = f"AP {row.ap_float:.4f} -> {row.ap_int8:.4f} ({change})"
        facts += "" if row.speedup is None else f", {row.speedup:.2f} times as fast as FP32"
        loses = "INT8 loses too much" if row.drop is not None else "not shown to be good"
        why = [loses] * (not row.holds) + ["INT8 does not pay"] * (not row.pays)
        pays = f"; it does in {' and '.join(good)}" if good and not row.pays else ""
        lines.append(f"{engine_title(row.engine)}: {facts}: {(' and '.join(why) or 'good') + pays}")
    if verdict.crowded:
        lines.append("Other processes computed while the engines were timed: the speeds are not to be trusted")
    return lines
