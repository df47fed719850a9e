"""The command line: each command parses, calls one stage and prints. Nothing heavy loads before a command runs."""

from __future__ import annotations

import click

from repq import __version__
from repq.cli.deployment import build, describe, export, lint
from repq.cli.measurement import bench, check, estimate, evaluate
from repq.cli.options import Commands
from repq.cli.preparation import calib, doctor
from repq.cli.quantization import diagnose, ptq, qat, sensitivity
from repq.cli.reporting import report
from repq.cli.training import fuse, train
from repq.cli.whole_run import ablation, run

# In the order of the work, which is the order of the help.
COMMANDS = (
    run, ablation, train, fuse, diagnose, sensitivity, ptq, qat, export, lint, estimate, build, describe, evaluate,
    check, bench, report, calib, doctor,
)  # fmt: skip


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="repq")
def main() -> None:
    """From a trained re-parameterized detector to a measured INT8 engine.

    MODEL is a checkpoint (.pt, .safetensors), an ONNX file or the folder of a built engine. Every command takes
    --json; errors that you can mend exit with 2, results outside a bound with 1.
    """


for command in COMMANDS:
    main.add_command(command)
