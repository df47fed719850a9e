"""Writing the folder, all but its model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from repq.api.model import Model
from repq.deploy.contract import DECODE, contract, header
from repq.errors import GraphError
from repq.recipe import LetterboxConfig

SAMPLES = Path(__file__).resolve().parent / "samples"
ENGINE = "engine"


def write_package(folder: Path, model: Model, onnx: Model, letterbox: LetterboxConfig) -> str:
    """Write an engine, or an ONNX file where ``model`` is one, with all that is needed to run it.

    Args:
        folder: empty.
        onnx: that the engine was built from.
        letterbox: by which the model was evaluated.

    Returns:
        Why there are no samples; empty: there are.
    """
    assert onnx.path is not None
    shutil.copyfile(onnx.path, folder / "model.onnx")
    engine = None
    if model.engine is not None:
        model.engine.save(folder / ENGINE)
        files = sorted(path.name for path in (folder / ENGINE).iterdir())
        main = next((name for name in files if not name.endswith((".json", ".bin"))), files[0])
        manifest = model.engine.manifest
        engine = {"runtime": manifest.engine, "version": manifest.version, "file": f"{ENGINE}/{main}"}
    reason = "" if model.layout.plain else _write_decoder(folder / DECODE, model, onnx.path)
    values = contract(model, onnx, letterbox, engine, decode=not (model.layout.plain or reason))
    (folder / "model.json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if reason:
        return reason
    (folder / "model.hpp").write_text(header(values), encoding="utf-8")
    for sample in sorted(SAMPLES.iterdir()):
        if sample.suffix in (".py", ".cpp"):
            shutil.copyfile(sample, folder / sample.name)
    return ""


def _write_decoder(path: Path, model: Model, onnx: Path) -> str:
    """Write the graph that makes detections of the model's outputs, or say why there is none."""
    from repq.export import load_onnx, save_onnx
    from repq.graph.decoding import decoder

    try:
        save_onnx(path, decoder(load_onnx(onnx), model.layout))
    except GraphError as error:
        return f"{error.what}: {error.found}"
    return ""
