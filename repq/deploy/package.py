"""Writing the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from repq.api.model import Model
from repq.deploy.contract import contract, header
from repq.recipe import LetterboxConfig

SAMPLES = Path(__file__).resolve().parent / "samples"
ENGINE = "engine"


def write_package(folder: Path, model: Model, onnx: Model, letterbox: LetterboxConfig, card: str) -> None:
    """Write an engine, or an ONNX file where ``model`` is one, with all that is needed to run it.

    Args:
        folder: empty.
        onnx: that the engine was built from.
        letterbox: by which the model was evaluated.
        card: the model card, in Markdown.
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
    values = contract(model, onnx, letterbox, engine)
    (folder / "model.json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "model.hpp").write_text(header(values), encoding="utf-8")
    for sample in sorted(SAMPLES.iterdir()):
        if sample.suffix in (".py", ".cpp"):
            shutil.copyfile(sample, folder / sample.name)
    (folder / "README.md").write_text(card, encoding="utf-8")
