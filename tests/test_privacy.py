"""Nothing leaves the machine, and nothing is written outside the folders that the user names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WATCH = """
import sys
CALLS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"}
def watch(event, arguments):
    if event in CALLS:
        print("NETWORK", event, arguments[1:], file=sys.stderr)
sys.addaudithook(watch)
"""
NATIVE = re.compile(r"\b(connect|sendto|sendmsg)\(.*AF_INET")
WHOLE_WAY = """
import repq
import onnxruntime, openvino
openvino.Core().available_devices
from dataclasses import replace
from pathlib import Path
from torch import nn
from click.testing import CliRunner
from repq.cli import main
from repq.data import make_demo_set
from repq.model.yolov6.specs import ARCHITECTURES
from repq.recipe import DemoConfig
data = make_demo_set(Path("set"), DemoConfig(train_images=2, val_images=2, size=64))
ARCHITECTURES["yolov6n_v2"] = replace(ARCHITECTURES["yolov6n_v2"], depth=1 / 9)  # few blocks: it is exported
model = repq.build_model("yolov6n_v2", 3)
for module in model.weights.model.modules():
    if isinstance(module, nn.Conv2d) and not module.weight.any():
        nn.init.normal_(module.weight, 0, 0.05)
onnx = model.quantize(data, imgsz=64, limit=2, scheme="asymmetric", auto=False).export("model.onnx")
for engine in ("onnxruntime", "openvino"):
    onnx.build(engine, out=engine).evaluate(data)
short = ["--imgsz", "64", "--threads", "1", "--rounds", "1", "--runs", "1", "--warmup", "0"]
result = CliRunner().invoke(main, ["bench", "onnxruntime", "openvino", *short, "-o", "bench"])
assert result.exit_code == 0 and Path("bench/report.html").is_file(), result.output
"""


def watched(code: str, folder: Path) -> tuple[list[str], set[str]]:
    """Run code in an own home folder; what it tried on the network, and the files outside its folders."""
    for name in ("home", "tmp", "cache", "work"):
        (folder / name).mkdir()
    trace = folder / "trace"
    strace = shutil.which("strace")  # sees what native code does; without it Python's own calls alone are seen
    tracer = [strace, "-f", "--seccomp-bpf", "-qq", "-o", str(trace), "-e", "trace=network"] if strace else []
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MPL", "ORT_", "REPQ_"))}
    places = {"HOME": folder / "home", "TMPDIR": folder / "tmp", "REPQ_CACHE": folder / "cache"}
    done = subprocess.run(
        [*tracer, sys.executable, "-c", WATCH + code],
        cwd=folder / "work",
        env={**kept, **{key: str(path) for key, path in places.items()}, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    calls = [line for line in done.stderr.splitlines() if line.startswith("NETWORK")]
    if strace:
        calls += [line for line in trace.read_text(errors="replace").splitlines() if NATIVE.search(line)]
    return calls, {path.name for path in (folder / "home").rglob("*")}


def test_no_call_leaves_the_machine_and_home_stays_empty(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("matplotlib")
    assert watched(WHOLE_WAY, tmp_path) == ([], set())


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    code = (
        "import socket, pathlib\n"
        "socket.getaddrinfo('127.0.0.1', 9)\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))\n"
        "(pathlib.Path.home() / 'device-id').touch()"
    )
    calls, files = watched(code, tmp_path)
    assert files == {"device-id"}
    assert sum("socket.getaddrinfo" in call for call in calls) == 1
    assert sum("socket.connect" in call for call in calls) == 1
    if shutil.which("strace"):
        assert any("connect(" in call and "AF_INET" in call for call in calls)


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    code = "import os, repq; assert os.environ['ORT_DISABLE_TELEMETRY'] == '0'"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
