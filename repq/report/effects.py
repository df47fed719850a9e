"""What changes to a detector do alone, what all together do, and whether that is what the single ones add up to.

A figure has a spread over the seeds. An effect is taken seed by seed, against the baseline of the same seed. It is
shown only where its mean is larger than the distance from its lowest to its highest seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from repq.report.blocks import Block, Column, Columns, Table, Text, number, table
from repq.report.numbers import change, fraction, plural, significant
from repq.results import AblationReport, Shipped, Spread, spread_of

_SAME = 1e-9  # of an effect: rounding
_SUM, _BEYOND = "(all single changes added up)", "(all together beyond that)"


@dataclass(frozen=True)
class _Measure:
    """A figure of what is shipped. Changes of a relative one are factors, which multiply; of another, differences."""

    name: str
    value: Callable[[Shipped], float | None]
    write: Callable[[float], str]
    relative: bool = True

    def read(self, shipped: Iterable[Shipped]) -> list[float] | None:
        """The figure of each; None: it was not measured of all."""
        found = [self.value(one) for one in shipped]
        return [value for value in found if value is not None] if None not in found else None

    def scaled(self, value: float) -> float:
        """On the scale on which effects add up."""
        return math.log(max(value, 1e-12)) if self.relative else value

    def effect(self, amount: Spread) -> str:
        """An effect on that scale, in words."""
        if not self.relative:
            return _ranged(amount, change)
        mean, low, high = map(math.exp, (amount.mean, amount.low, amount.high))
        factors = Spread(seeds=amount.seeds, mean=mean, low=low, high=high, deviation=None)
        return f"× {_ranged(factors, '{:.3f}'.format)}"


_MEASURES = (
    _Measure("AP", lambda found: found.ap, fraction, relative=False),
    _Measure("AP50", lambda found: found.ap50, fraction, relative=False),
    _Measure("Million parameters", lambda found: found.parameters / 1e6, significant),
    _Measure("Million multiply-adds", lambda found: found.macs / 1e6, significant),
    _Measure("Latency, ms", lambda found: found.latency_ms, significant),
    _Measure("Size, MiB", lambda found: found.size_bytes / 2**20, significant),
)


class _Row(NamedTuple):
    """Effects of one change, or of several, by measure."""

    title: str
    effects: Mapping[str, Spread]


def effect_blocks(report: AblationReport) -> list[Block]:
    """By engine: the figures of every variant, the effects of every change, and what they say; nothing without any."""
    if report.effects is None:
        return []
    engines = dict.fromkeys(engine for trial in report.trials for engine in trial.shipped)
    return [block for engine in engines for block in _of_engine(report, engine, *report.effects)]


def _of_engine(report: AblationReport, engine: str, baseline: str, together: str) -> list[Block]:
    found: dict[str, dict[int, Shipped]] = {}
    for trial in report.trials:
        if engine in trial.shipped:
            found.setdefault(trial.variant, {})[trial.seed] = trial.shipped[engine]
    all_shipped = [shipped for of_seed in found.values() for shipped in of_seed.values()]
    measures = [one for one in _MEASURES if one.read(all_shipped) is not None]
    blocks: list[Block] = [_figures_table(engine, found, measures)]
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in found.values())))
    if not seeds or not {baseline, together} <= set(found):
        return blocks
    rows = _effect_rows(found, seeds, baseline, together, measures)
    title = f"Effects in {engine} against {baseline!r}, seed by seed"
    columns: Columns[_Row] = [
        Column("Change", "title"),
        *(number(measure.name, partial(_of_measure, measure, len(seeds)), str) for measure in measures),
    ]
    note = (
        "Differences of AP; factors of the rest, whose mean is geometric. Mean (lowest … highest seed). A ? marks what "
        "is not shown: the seeds lie further apart than the mean is from nothing, or there is one seed."
    )
    lines = _sentences(engine, rows, len(seeds), measures)
    return [*blocks, table(title, columns, rows, note), *map(Text, lines)]


def _figures_table(engine: str, found: Mapping[str, Mapping[int, Shipped]], measures: Sequence[_Measure]) -> Table:
    def written(measure: _Measure, variant: str) -> str:
        return _ranged(spread_of(measure.read(found[variant].values()) or []), measure.write)

    columns: Columns[str] = [
        Column("Variant", str),
        *(number(measure.name, partial(written, measure), str) for measure in measures),
    ]
    note = "For one image, with all passes where there are several. Mean (lowest … highest seed)."
    return table(f"What is shipped, in {engine}", columns, found, note)


def _effect_rows(
    found: Mapping[str, Mapping[int, Shipped]],
    seeds: Sequence[int],
    baseline: str,
    together: str,
    measures: Sequence[_Measure],
) -> list[_Row]:
    """The single changes, then their sum, all together, and by how much that is another."""
    singles = [variant for variant in found if variant not in (baseline, together)]

    def amounts(variant: str, measure: _Measure) -> list[float]:
        changed, before = ([found[name][seed] for seed in seeds] for name in (variant, baseline))
        pairs = zip(measure.read(changed) or (), measure.read(before) or (), strict=True)
        return [measure.scaled(after) - measure.scaled(value) for after, value in pairs]

    by_title: dict[str, dict[str, list[float]]] = {}
    for measure in measures:
        alone = {variant: amounts(variant, measure) for variant in singles}
        summed = [sum(values) for values in zip(*alone.values(), strict=True)] if alone else [0.0] * len(seeds)
        joint = amounts(together, measure)
        beyond = [whole - parts for whole, parts in zip(joint, summed, strict=True)]
        for title, values in {**alone, _SUM: summed, together: joint, _BEYOND: beyond}.items():
            by_title.setdefault(title, {})[measure.name] = values
    return [
        _Row(title, {name: spread_of(values) for name, values in effects.items()})
        for title, effects in by_title.items()
    ]


def _is_shown(effect: Spread, seeds: int) -> bool:
    """Whether an effect is larger than the spread of its seeds, of which there are at least two."""
    return seeds > 1 and abs(effect.mean) > max(effect.high - effect.low, _SAME)


def _of_measure(measure: _Measure, seeds: int, row: _Row) -> str:
    effect = row.effects[measure.name]
    doubtful = "" if _is_shown(effect, seeds) or _is_nothing(effect) else " ?"
    return measure.effect(effect) + doubtful


def _is_nothing(effect: Spread) -> bool:
    return max(abs(effect.low), abs(effect.high)) <= _SAME


def _ranged(spread: Spread, write: Callable[[float], str]) -> str:
    mean, low, high = map(write, (spread.mean, spread.low, spread.high))
    return mean if low == high else f"{mean} ({low} … {high})"


def _sentences(engine: str, rows: Sequence[_Row], seeds: int, measures: Sequence[_Measure]) -> list[str]:
    """What the figures bear of how changes act together, of each measure that any change moves."""
    found = {row.title: row.effects for row in rows}
    together = rows[-2].title
    lines = []
    for measure in measures:
        parts, whole, beyond = (found[title][measure.name] for title in (_SUM, together, _BEYOND))
        if all(_is_nothing(row.effects[measure.name]) for row in rows):
            continue
        verb = "multiply to" if measure.relative else "add up to"
        lead = (
            f"{measure.name} in {engine}: the single changes {verb} {measure.effect(parts)}, "
            f"all together give {measure.effect(whole)}"
        )
        if _is_nothing(beyond):
            lines.append(f"{lead}: the same.")
        elif seeds < 2:
            lines.append(f"{lead}. An interaction is not shown: one seed says nothing of the spread.")
        elif _is_shown(beyond, seeds):
            word = "more" if beyond.mean > 0 else "less"
            lines.append(f"{lead}: {word} than that, by {measure.effect(beyond)}.")
        else:
            lines.append(f"{lead}. An interaction is not shown: {measure.effect(beyond)} over {plural(seeds, 'seed')}.")
    return lines
