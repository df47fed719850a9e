"""Fixtures for all tests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

# The same examples in every run; `pytest --hypothesis-profile default` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# One thread: the models are so small that a second one spends its time spinning. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real images, checkpoints and reference outputs; beside the project or named by REPQ_SHARED."""
    folder = Path(os.environ.get("REPQ_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"the reference material is not at {folder} (set REPQ_SHARED to its folder)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests' label caches out of the user's cache folder."""
    os.environ["REPQ_CACHE"] = str(tmp_path_factory.mktemp("cache"))


class ExportMemory:
    """What torch's exporter gave for a model, a size and settings: seconds of work for the same graph each time.

    It stands in for the exporter alone, in one run of the tests and for all of its processes; everything that repq does
    with the graph runs. The key is all that reaches the exporter: the spec, every tensor, the size, opset and batch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.used = folder, True

    def __call__(self, export: Any, model: Any, imgsz: tuple[int, int], config: Any) -> Any:
        import onnx

        if not self.used:
            return export(model, imgsz, config)
        from repq.identity import hash_tensors

        parts = (model.spec.to_json(), hash_tensors(model.state_dict()), imgsz, config.opset, config.batch)
        path = self.folder / hashlib.sha256(repr(parts).encode()).hexdigest()
        with FileLock(f"{path}.lock"):
            if not path.exists():
                onnx.save(export(model, imgsz, config), path)
            return onnx.load(path)


@pytest.fixture(scope="session", autouse=True)
def _export_memory(tmp_path_factory: pytest.TempPathFactory) -> ExportMemory:
    import repq.export

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"
    folder.mkdir(exist_ok=True)
    memory, export = ExportMemory(folder), repq.export._torch_export
    repq.export._torch_export = lambda model, imgsz, config: memory(export, model, imgsz, config)
    return memory


@pytest.fixture
def fresh_exports(_export_memory: ExportMemory) -> Iterator[None]:
    """For a test of the exporter itself: every export of the test runs."""
    _export_memory.used = False
    yield
    _export_memory.used = True
