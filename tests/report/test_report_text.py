"""Tables on terminals of any width: the worst rows first, no line wider than the terminal."""

from __future__ import annotations

import pytest
from report_samples import make_ptq, make_results
from sensitivity_samples import make_plan, make_sensitivity

from repq.report.text import SHOWN, check_table, ptq_table, sensitivity_table, shown_on
from repq.results import LayerQuantization

TEXTS = {
    "ptq": lambda: ptq_table(make_ptq()),
    "sensitivity": lambda: sensitivity_table(make_sensitivity(), make_plan()),
    "check": lambda: check_table(make_results()["check"]),
}


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_no_line_is_wider_than_the_terminal(name: str, everything: bool, width: int) -> None:
    with shown_on(width, everything=everything):
        lines = TEXTS[name]().splitlines()
    assert [line for line in lines if len(line) > width] == []


def test_a_long_table_shows_its_worst_rows_and_says_how_to_see_the_rest() -> None:
    def noise(row: LayerQuantization) -> float:
        return sum(10 ** (-db / 10) for db in (row.weight_snr_db, row.activation_snr_db) if db is not None)

    ptq = make_ptq()
    ranked = [row.layer for row in sorted(ptq.layers, key=noise, reverse=True)]
    with shown_on(200, everything=False):
        short = ptq_table(ptq)
    with shown_on(200, everything=True):
        whole = ptq_table(ptq)
    shown = [line.split()[0] for line in short.splitlines() if line.split()[:1] and line.split()[0] in ranked]
    assert sorted(shown, key=ranked.index) == shown
    assert shown == ranked[:SHOWN] and "--all" in short
    assert all(layer in whole for layer in ranked) and "--all" not in whole
