"""The command line: each command parses, calls one stage and prints. Nothing heavy loads before a command runs."""

from __future__ import annotations

import importlib

import click

from repq import __version__
from repq.cli.frame import EXIT_CODES, Framed

COMMANDS = {
    "run": ("runs", "Run a whole recipe, from weights or data to a report."),
    "compare": ("runs", "Every engine and precision of WEIGHTS side by side, and which one to ship."),
    "ablation": ("runs", "Run the variants of a recipe with several seeds."),
    "train": ("training", "Train a detector, plain or with RepOptimizer."),
    "fuse": ("training", "Fold the branches of WEIGHTS, with a proof per block."),
    "prune": ("training", "Remove channels of WEIGHTS that are worth least, and recover."),
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
    "profile": ("measurement", "Say where a model's time goes, layer by layer."),
    "report": ("measurement", "Join timings of several machines into one report."),
    "calib": ("quantization", "Draw calibration images and write a manifest."),
    "doctor": ("measurement", "Say which engines work here, and why others do not."),
    "config": ("about", "List the settings of a section of recipes."),
    "completion": ("about", "Print what makes a shell complete commands and options."),
}
"""Name to the module of its function, ``NAME_command``, and one line; in the order of the work."""

GROUPS = {
    "runs": "The whole job",
    "training": "Float models",
    "quantization": "To INT8",
    "deployment": "Graphs and engines",
    "prediction": "Use",
    "measurement": "Measure",
    "about": "About repq",
}
"""What the help calls the commands of each module."""

ALIASES = {"val": "eval", "detect": "predict", "quantize": "ptq"}
"""Names that other tools have for the same."""

EXAMPLES = (
    ("repq run ptq --weights best.pt --data data.yaml --imgsz 640", "all of it, with a report"),
    ("repq ptq best.pt --data data.yaml --imgsz 640 --target openvino -o int8.safetensors", ""),
    ("repq export int8.safetensors --imgsz 640 --target openvino -o int8.onnx", ""),
    ("repq config ptq", "every setting with its range, default and meaning"),
)


class Commands(Framed):
    """Knows the names of the commands, and makes one when it is asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``repq help COMMAND`` is ``repq COMMAND --help``."""
        return super().parse_args(ctx, [*args[1:], "--help"] if args[:1] == ["help"] else args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            return None
        from repq.cli.generated import command

        module, line = COMMANDS[cmd_name]
        function = getattr(importlib.import_module(f"repq.cli.{module}"), f"{cmd_name}_command")
        return command(function, cmd_name, line)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        others = {name: [f" [also: {alias}]" for alias, of in ALIASES.items() if of == name] for name in COMMANDS}
        for module, title in GROUPS.items():
            named = [(name, line) for name, (home, line) in COMMANDS.items() if home == module]
            rows = [(name, " ".join([line, *others[name]])) for name, line in named]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        with formatter.section("Examples"):
            for example, meaning in EXAMPLES:
                formatter.write(
                    "".join(f"{'':{formatter.current_indent}}{line}\n" for line in _unbroken(example, meaning))
                )
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])


def _unbroken(example: str, meaning: str) -> tuple[str, ...]:
    """An example as lines that no help breaks, so that it can be copied; with what it means behind it, or above."""
    together = f"{example}   # {meaning}" if meaning else example
    return (together,) if len(together) < 78 or not meaning else (f"# {meaning}", example)


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the version and those of the engines, and end."""
    if not asked or context.resilient_parsing:
        return
    from repq.engine import ENGINES
    from repq.identity import library_versions

    found = library_versions()
    click.echo(f"repq {__version__}")
    for entry in ENGINES:
        click.echo(f"{entry.title} {found.get(entry.name, 'is not installed')}")
    context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version,
              help="Show the version and those of the engines.")  # fmt: skip
def main() -> None:
    """From a trained re-parameterized detector to a measured INT8 engine.

    MODEL is a checkpoint (.pt, .safetensors), an ONNX file or the folder of a built engine. Every command takes --json,
    -q, -v and --log-file.
    """
