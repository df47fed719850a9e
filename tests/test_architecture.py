"""Imports point one way: a package may import only what stands above it in this table."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "repq"
ORDER = (
    (
        "errors",
        "amounts",
        "printable",
        "reading",
        "onnx_file",
        "progress",
        "log",
        "files",
        "memory",
        "concurrency",
        "lazy",
        "json_value",
        "privacy",
        "spinning",
        "stopping",
        "torchrun",
    ),
    ("layers", "box_codings", "layout", "preprocessing", "thresholds"),
    ("scales", "results", "recipe", "output_layouts", "identity", "artifact"),
    ("machine",),
    ("model",),
    ("data",),
    ("evaluate",),
    ("roll_call",),
    ("distributed",),
    ("reparam",),
    ("train",),
    ("family_training",),
    ("quant",),
    ("prune",),
    ("graph",),
    ("export", "estimate"),
    ("engine",),
    ("bench",),
    ("report",),
    ("api",),
    ("predict", "deploy"),
    ("stages",),
    ("pipeline",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
CORE = {
    "box_codings",
    "output_layouts",
    "machine",
    "amounts",
    "printable",
    "reading",
    "onnx_file",
    "lazy",
    "json_value",
    "privacy",
    "errors",
    "progress",
    "log",
    "files",
    "memory",
    "concurrency",
    "spinning",
    "stopping",
    "torchrun",
    "layers",
    "layout",
    "preprocessing",
    "thresholds",
    "scales",
    "results",
    "recipe",
    "identity",
    "artifact",
}
LIGHT_FAMILIES = ("repq.model.family", "repq.model.families")  # values and a list; they load no torch
ONLY_CORE = {"graph", "engine", "report"}  # these stand low in the table but know nothing above them except the core
NO_TORCH = ("graph", "report", "data", "evaluate")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    if relative.match("model/*/training.py"):  # a family's folder reaches through the table; its other parts are model
        return "family_training"
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_up(path: Path) -> None:
    own = part(path)
    assert own in LEVEL, f"{own} has no place in the table"
    for name in imported(path):
        pieces = name.split(".")
        if pieces[0] != "repq" or len(pieces) < 2 or pieces[1] == "__version__":
            continue
        other = pieces[1]
        if name.startswith(LIGHT_FAMILIES):
            continue
        if other == own:
            continue
        assert LEVEL[other] < LEVEL[own] or (other in CORE and own in CORE), f"{own} may not import {other}"
        allowed = CORE | {"graph"} if own == "engine" else CORE  # engines lower graphs
        assert own not in ONLY_CORE or other in allowed, f"{own} may import the core alone, not {other}"


@pytest.mark.parametrize("package", NO_TORCH)
def test_these_parts_do_without_torch(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        found = {name for name in imported(path) if name.split(".")[0] == "torch"}
        assert not found, f"{path} imports torch"


def test_files_have_names_that_say_something() -> None:
    vague = {"utils", "util", "common", "helpers", "misc"}
    assert not [path for path in ROOT.rglob("*.py") if path.stem in vague]


def test_importing_repq_and_asking_for_help_load_no_heavy_library() -> None:
    code = (
        "import sys, repq, repq.cli\n"
        "try:\n    repq.cli.main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'cv2', 'onnx', 'onnxruntime', 'openvino', 'matplotlib', 'pycocotools'} & set(sys.modules)\n"
        "slow = {'numpy', 'pydantic', 'socket', 'tempfile'} & set(sys.modules)\n"
        "assert not heavy and not slow, (heavy, slow)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
