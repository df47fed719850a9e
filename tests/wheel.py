"""The wheel, tried as one who installs it would: ``make wheel-test``.

The wheel is built from this copy of the repository and installed by pip, without its requirements, into a new virtual
environment in another folder. Its requirements come from the environment that runs this script, by a path file: torch
alone would take minutes. So it shows that the wheel holds all that repq needs of itself (code, recipes, templates,
samples) and that its entry point works; that the requirements of setup.cfg are complete and their ranges right is
shown by ``make test-ranges``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import repq
from pathlib import Path
from repq.data import make_demo_set
from repq.recipe import DemoConfig
assert Path.cwd() / "bare" in Path(repq.__file__).parents, repq.__file__
make_demo_set(Path("set"), DemoConfig(train_images=4, val_images=2, size=64))
repq.build_model("yolov6n_v2", 3).save("best.safetensors")
"""
SMALL = ("ptq.auto=false", "ptq.calibration.images=2", "build.engines=[onnxruntime]", "check.max_drop=1", "max_drop=1",
         "bench.rounds=1", "bench.runs_per_round=1", "min_speedup=0")  # fmt: skip


def run(*command: str | Path, folder: Path) -> None:
    """Run a command that has to succeed, with nothing of this copy on Python's path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    print("$", *command, flush=True)
    subprocess.run(list(map(str, command)), cwd=folder, env=environment, check=True)


def main() -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="repq-wheel-") as name:
        folder = Path(name)
        build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
        run(sys.executable, *build, ROOT, folder=folder)
        (wheel,) = folder.glob("repq-*.whl")
        venv.create(folder / "bare")
        binaries = folder / "bare" / "bin"
        install = ("-m", "pip", "--python", binaries / "python", "install", "--quiet", "--no-deps")
        run(sys.executable, *install, wheel, folder=folder)
        (packages,) = (folder / "bare" / "lib").glob("python3*/site-packages")
        (packages / "requirements.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        run(binaries / "python", "-c", PROGRAM, folder=folder)
        run(binaries / "repq", "--version", folder=folder)
        given = ("--weights", "best.safetensors", "--data", "set/data.yaml", "--imgsz", "64", "--work", "run")
        run(binaries / "repq", "run", "ptq", *given, *(word for one in SMALL for word in ("--set", one)), folder=folder)
        assert (folder / "run" / "report.html").is_file()
        run(binaries / "repq", "predict", "run/deploy/engine", "set/images/val", folder=folder)
    print(f"the wheel works; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
