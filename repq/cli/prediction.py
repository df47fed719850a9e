"""Finding objects in images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from repq.cli.options import MODEL_FILE, ON_CPU, OWN_THREADS, WHERE, Model, OwnSize, Runtime
from repq.cli.shell import Shell
from repq.recipe import GraphConfig, PredictConfig
from repq.recipe.base import AnyPath, Device, Threads, setting


def predict_command(
    shell: Shell, model: Model,
    sources: Annotated[
        tuple[str, ...],
        setting(flag="SOURCE", min_length=1, help="Image, folder, glob, list, video, camera number or stream."),
    ],
    predict: PredictConfig,
    graph: GraphConfig,
    out: Annotated[
        AnyPath, setting(flag="-o --out", writes=("*",), help="Folder for predictions.json and all that is asked for.")
    ] = Path("predictions"),
    compare: Annotated[
        AnyPath | None,
        setting(flag="--compare", metavar="MODEL2",
                help=f"Draw the boxes of a second {MODEL_FILE} beside them, with lost and new ones marked."),
    ] = None,
    imgsz: OwnSize = None,
    engine: Runtime = None,
    threads: Annotated[
        Threads | None,
        setting(flag="--threads", needs=f"{ON_CPU} or --compare", excludes="--engine tensorrt", help=OWN_THREADS),
    ] = None,
    device: Annotated[
        Device, setting(flag="--device", needs="MODEL checkpoint", help=WHERE)
    ] = "cpu",
    force: Annotated[
        bool, setting(flag="--force", help="Write beside other files, over those of the same names.")
    ] = False,
) -> None:  # fmt: skip
    """SOURCE is an image, a folder, a pattern in quotes, a list of images (.txt), a video, a camera number such as 0,
    or the address of a stream; several may be given. Images that cannot be read are counted and left out.
    """
    from repq.report.prediction import predict_table
    from repq.stages import predict_files

    report = predict_files(
        model, sources, out, predict, graph=graph, compare=compare, imgsz=imgsz, engine=engine, threads=threads,
        device=device, force=force, progress=shell.progress, log=shell.log,
    )  # fmt: skip
    shell.finish(report.values(), lambda: predict_table(report))
