"""Drawings of pruning: what each group costs alone, and what it gave."""

from __future__ import annotations

from collections.abc import Sequence

from repq.report.drawing import INK, INT8, SERIES_A, SERIES_B, layer_axis, panels, svg_text
from repq.results import PrunedGroup


def pruning_sweep(groups: Sequence[PrunedGroup]) -> str:
    """Of every group that can lose channels: the losses of the sweep, their price, and the share that went."""
    shown = [group for group in groups if group.sweep]
    names = [" + ".join(group.layers) for group in shown]
    places = range(1, len(shown) + 1)
    with panels(9.6, [2.4, 2.0, 1.7]) as (figure, (losses, prices, shares)):
        for place, group in zip(places, shown, strict=True):
            found = [tried.loss for tried in group.sweep if tried.loss > 0]  # the axis shows no others
            losses.plot([place] * len(found), found, "-", color=SERIES_A, linewidth=1.1, marker="o", markersize=2.4)
        losses.plot([], [], "o-", color=SERIES_A, markersize=2.4, label="loss; a dot for each number of channels left")
        last = [group.sweep[-1] for group in shown]
        priced = [(place, tried.loss / (100 * tried.macs_saved)) for place, tried in zip(places, last, strict=True)
                  if tried.loss > 0 and tried.macs_saved > 0]  # fmt: skip
        prices.plot([place for place, _ in priced], [price for _, price in priced], "o", color=SERIES_B, markersize=4,
                    label="loss for 1 % of the multiply-adds, most of the group gone")  # fmt: skip
        gone = [1 - group.after / group.before for group in shown]
        shares.bar(list(places), gone, width=0.7, color=INT8, label="share of the channels that went")
        shares.set_ylim(0, 1)
        shares.axhline(0, color=INK, linewidth=0.8)
        for axes in (losses, prices):
            if priced:
                axes.set_yscale("log")
        losses.set_ylabel("loss")
        prices.set_ylabel("loss for 1 %")
        shares.set_ylabel("share gone")
        for axes in (losses, prices, shares):
            layer_axis(axes, names, "group of layers that lose channels together" if axes is shares else "")
        return svg_text(figure, "pruning-sweep")
