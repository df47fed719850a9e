"""Every way to INT8 in every engine that is here, on drawn data and models trained on the spot, as one table.

It is `repq ablation results`, with the figures that matter in one table. A killed run goes on where it stopped.

    python benchmarks/results_table.py
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from functools import partial
from pathlib import Path

from repq.machine.environment import capture_environment
from repq.pipeline.ablation import run_ablation
from repq.recipe import load_ablation
from repq.report.blocks import Column, number, table
from repq.report.markdown import render_markdown
from repq.report.numbers import fraction, times
from repq.results import AblationReport, TrialFigures

SPEED = "times as fast as FP32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/results"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    ablation, trials = load_ablation(Path("results"))
    report = run_ablation(ablation.name, trials, options.work, log=partial(print, file=sys.stderr, flush=True))
    text = results_text(report)
    path = options.out / f"{date.today():%Y-%m-%d}-results.md"
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"{text}\n{path}")


def results_text(report: AblationReport) -> str:
    """The table in Markdown, with the command and the machine."""

    def figure(name: str, trial: TrialFigures) -> float | None:
        return trial.figures.get(name)

    shown = {"AP FP32": "AP FP32", "AP INT8 simulated": "AP simulated"}
    shown |= {name: name.replace(SPEED, "faster") for name in report.figures() if name.startswith(("AP INT8 ", SPEED))}
    columns = [Column[TrialFigures]("Model and way to INT8", "variant")]
    for name, title in shown.items():
        columns.append(number(title, partial(figure, name), times if name.startswith(SPEED) else fraction))
    machine = capture_environment()
    libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    return (
        f"{render_markdown([table('Every way to INT8, on drawn data', columns, report.trials)])}\n\n"
        "`make results` (`recipes/ablations/results.yaml`): YOLOv6-N of 80 drawn images at 128, trained for 22 epochs. "
        f"{machine.cpu}, {machine.cores} cores, load {machine.load_average:.1f} at the end; {libraries}.\n"
    )


if __name__ == "__main__":
    main()
