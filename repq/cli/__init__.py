"""The command line: each command parses, calls one stage and prints. Nothing heavy loads before a command runs."""

from __future__ import annotations

import importlib

import click

from repq import __version__
from repq.cli.frame import Framed

COMMANDS = {
    "run": ("runs", "Run a whole recipe, from weights or data to a report."),
    "ablation": ("runs", "Run the variants of a recipe with several seeds."),
    "train": ("training", "Train a detector, plain or with RepOptimizer."),
    "fuse": ("training", "Fold the branches of WEIGHTS, with a proof per block."),
    "diagnose": ("quantization", "Say which way to INT8 WEIGHTS need."),
    "sensitivity": ("quantization", "Measure what quantizing each layer costs, and plan."),
    "ptq": ("quantization", "Quantize WEIGHTS after training."),
    "qat": ("quantization", "Train WEIGHTS to answer in INT8 as they do in float."),
    "export": ("deployment", "Write a checkpoint as ONNX."),
    "lint": ("deployment", "Look at an ONNX file through TensorRT's eyes."),
    "estimate": ("deployment", "Estimate how fast an ONNX graph runs on a device that is not here."),
    "build": ("deployment", "Build an engine from an ONNX file."),
    "describe": ("deployment", "List the layers of a model."),
    "predict": ("prediction", "Find objects with MODEL in images, videos or a camera, and draw them."),
    "eval": ("measurement", "COCO AP of a model on a data set."),
    "check": ("measurement", "Compare a model with its engines on images."),
    "bench": ("measurement", "Time models side by side in one run."),
    "report": ("measurement", "Join timings of several machines into one report."),
    "calib": ("quantization", "Draw calibration images and write a manifest."),
    "doctor": ("measurement", "Say which engines work here, and why others do not."),
}
"""Name to the module of its function, ``NAME_command``, and one line; in the order of the work."""


class Commands(Framed):
    """Knows the names of the commands, and makes one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        from repq.cli.generated import command

        module, line = COMMANDS[cmd_name]
        function = getattr(importlib.import_module(f"repq.cli.{module}"), f"{cmd_name}_command")
        return command(function, cmd_name, line)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="repq")
def main() -> None:
    """From a trained re-parameterized detector to a measured INT8 engine.

    MODEL is a checkpoint (.pt, .safetensors), an ONNX file or the folder of a built engine. Every command takes --json.

    Exit codes: 0 done; 1 a result is outside a bound; 2 what was given cannot be used, with what to do about it; 70 a
    fault of repq, with a traceback; 130 and 143 stopped by Ctrl-C or SIGTERM; 141 the output was closed.
    """
