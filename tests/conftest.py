"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, however busy the machine; `pytest --hypothesis-profile default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# One thread: the models are so small that a second one spends its time spinning. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_finish() -> None:
    """Collect garbage less often: what all tests have loaded stays, and walking it took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 10, 50)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real images, checkpoints and reference outputs; beside the project or named by REPQ_SHARED."""
    folder = Path(os.environ.get("REPQ_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"the reference material is not at {folder} (set REPQ_SHARED to its folder)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep caches out of the user's cache folder. The processes of one run share what torch's exporter gave.

    So do the runs for which REPQ_TEST_EXPORTS names one folder: to be emptied whenever the code changes.
    """
    cache, base = tmp_path_factory.mktemp("cache"), tmp_path_factory.getbasetemp()
    own = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"
    exports = Path(os.environ.get("REPQ_TEST_EXPORTS", own)).absolute()
    exports.mkdir(exist_ok=True)
    (cache / "exports").symlink_to(exports)
    os.environ["REPQ_CACHE"] = str(cache)


@pytest.fixture(autouse=True)
def _operators_are_parsed_once() -> None:
    """Torch's exporter parses the sources of all its operators at every export, 0.5 s each time."""
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(module, "ONNXRegistry", None)
    if registry is not None and not hasattr(registry.from_torchlib, "cache_info"):
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Gives a place at which a folder is seen on a disk that is read-only, for root too."""
    places: list[Path] = []

    def shown(folder: Path) -> Path:
        place = tmp_path / f"read-only-{len(places)}"
        place.mkdir()
        for words in (["--bind", str(folder), str(place)], ["-o", "remount,ro,bind", str(place)]):
            if shutil.which("mount") is None or subprocess.run(["mount", *words], capture_output=True).returncode:
                pytest.skip("nothing can be mounted here")
            places.append(place)
        return place

    yield shown
    for place in dict.fromkeys(places):
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def cpp_command() -> list[str]:
    """A command that builds detect.cpp against OpenVINO's own package, or a skip with the reason."""
    openvino = pytest.importorskip("openvino")
    home = Path(openvino.__file__).parent
    libraries = sorted((home / "libs").glob("libopenvino.so*"))
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    if not libraries or not (home / "include/openvino/openvino.hpp").is_file():
        pytest.skip("this package of OpenVINO has no headers and libraries")
    return ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-isystem{home / 'include'}", "detect.cpp",
            "-o", "detect", str(libraries[0]), f"-Wl,-rpath,{home / 'libs'}",
            f"-Wl,-rpath-link,{home / 'libs'}"]  # fmt: skip
