"""What pruning took away and what that cost, and the sweep that decided it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from repq.report.blocks import Block, Column, Columns, Facts, Figure, Table, Text, number, table
from repq.report.numbers import change, compact, count, difference, fraction, percent, significant
from repq.report.pruning_plots import pruning_sweep
from repq.report.sections.training import epoch_blocks
from repq.report.summary import PRUNE, Section
from repq.results import Accuracy, PrunedGroup, PruneReport, SweptGroup, metric_of


class _Stage(NamedTuple):
    """A model on its way through pruning."""

    title: str
    accuracy: Accuracy | None
    macs: int
    parameters: int


class _Swept(NamedTuple):
    """A group of the sweep by its number in the drawing, with one of the numbers of channels that were tried of it."""

    number: int
    group: PrunedGroup
    tried: SweptGroup


def prune_blocks(report: PruneReport) -> list[Block]:
    """The model before and after, what every group lost, the sweep, and the recovery."""
    blocks: list[Block] = [Text(_lead(report)), _stages_table(report)]
    if any(group.sweep for group in report.groups):
        blocks += [Text(_SWEEP), _sweep_figure(report), _sweep_table(report)]
    if report.zeros is None:
        blocks.append(_group_table(report))
    if report.epochs:
        blocks += epoch_blocks(report.epochs, "pruning", Facts([("Epochs of recovery", count(len(report.epochs)))]))
    return blocks


def _sweep_figure(report: PruneReport) -> Figure:
    alt = "loss of every group pruned alone, by how much of it is gone, and the share of its channels that went"
    return Figure("Pruning sweep", partial(pruning_sweep, report.groups), alt, wide=True, file="pruning-sweep.svg")


def terminal_blocks(report: PruneReport) -> list[Block]:
    """What every group lost, and what is left of the model."""
    lines = [_lead(report)]
    stages = (
        ("whole", report.accuracy_before),
        ("pruned", report.accuracy_pruned),
        ("recovered", report.accuracy_recovered),
    )
    lines += [f"AP {title}: {fraction(found.ap)}" for title, found in stages if found is not None]
    return [*([_group_table(report)] if report.zeros is None else []), Text("\n".join(lines))]


PRUNING = Section("pruning", "Pruning", lambda summary: prune_blocks(summary[PRUNE]), needs=(PRUNE,))

_SWEEP = (
    "Each group pruned alone, its least important channels first, and what the answers then lose against the whole "
    "model's. Groups give most where a saved multiply-add costs least."
)


def pruned_to(report: PruneReport) -> str:
    """What is left of the model, in a few words."""
    if report.zeros is not None:
        return f"{percent(report.zeros)} of the weights are zero, shapes as before"
    whole, left = report.macs_before, report.macs_after
    return (
        f"{significant(left / 1e6)} of {significant(whole / 1e6)} million multiply-adds ({percent(left / whole)}), "
        f"{count(report.parameters_after)} of {count(report.parameters_before)} parameters"
    )


def _lead(report: PruneReport) -> str:
    dense = "" if report.zeros is None else " Dense engines gain no latency from zeros."
    return f"{report.model}: {pruned_to(report)}.{dense}"


def _stages_table(report: PruneReport) -> Table:
    before = (report.macs_before, report.parameters_before)
    after = (report.macs_after, report.parameters_after)
    stages = [_Stage("whole", report.accuracy_before, *before), _Stage("pruned", report.accuracy_pruned, *after)]
    if report.epochs:
        stages.append(_Stage("recovered", report.accuracy_recovered, *after))
    columns: Columns[_Stage] = (
        Column("Model", "title"),
        number("Million multiply-adds", lambda stage: stage.macs / 1e6, significant),
        number("Parameters", "parameters", count),
        number("AP", lambda stage: metric_of(stage.accuracy), fraction, optional=True),
        number("AP50", lambda stage: metric_of(stage.accuracy, "ap50"), fraction, optional=True),
        number("AP change", lambda stage: difference(metric_of(report.accuracy_before), metric_of(stage.accuracy)),
               change, optional=True),
    )  # fmt: skip
    return table("Before and after", columns, stages)


def _group_table(report: PruneReport) -> Table:
    columns: Columns[PrunedGroup] = (
        Column("Layers", _name, code=True),
        number("Channels before", "before", count),
        number("After", "after", count),
        number("Loss, most of it gone", lambda row: max((tried.loss for tried in row.sweep), default=None), compact,
               optional=True),
    )  # fmt: skip
    rows = [group for group in report.groups if group.after < group.before]
    return table(f"Pruned groups ({len(rows)} of {len(report.groups)})", columns, rows, fold=25,
                 badness=lambda row: 1 - row.after / row.before)  # fmt: skip


def _sweep_table(report: PruneReport) -> Table:
    swept = enumerate((group for group in report.groups if group.sweep), start=1)
    rows = [_Swept(place, group, tried) for place, group in swept for tried in group.sweep]
    columns: Columns[_Swept] = (
        number("#", "number", str),
        Column("Layers", lambda row: _name(row.group), code=True),
        number("Channels", lambda row: row.group.before, count),
        number("Left", lambda row: row.tried.left, count),
        number("Multiply-adds saved", lambda row: row.tried.macs_saved, percent),
        number("Loss", lambda row: row.tried.loss, compact),
        number("Loss for 1 % saved", lambda row: _for_a_percent(row.tried), compact),
        Column("Chosen", lambda row: "yes" if row.tried.left == row.group.after else ""),
    )
    return table(f"All {len(rows)} trials of the sweep", columns, rows, fold=13)


def _for_a_percent(tried: SweptGroup) -> float | None:
    return tried.loss / (100 * tried.macs_saved) if tried.macs_saved > 0 else None


def _name(group: PrunedGroup) -> str:
    return group.layers[0] + (f" and {len(group.layers) - 1} more" if group.layers[1:] else "")
