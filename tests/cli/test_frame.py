"""Signals, closed pipes, full disks, faults: how a command ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from command_lines import Material, invoke, options, refused
from pydantic import BaseModel, ValidationError

from repq.cli import COMMANDS, Commands, main
from repq.cli.shell import Shell
from repq.errors import RepqError, ToleranceError
from repq.recipe.reader import SHIPPED
from repq.stopping import ending_on_signals


def raising(error: BaseException) -> click.Group:
    """A command line whose only command fails."""

    class Failing(Commands):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
            def fail() -> None:
                raise error

            return click.Command(cmd_name, callback=fail)

    return Failing("repq")


def invalid() -> ValidationError:
    class Numbers(BaseModel):
        number: int

    try:
        Numbers.model_validate({"number": "x"})
    except ValidationError as error:
        return error
    raise AssertionError


EXPECTED = [
    RepqError("no", found="\x1b[31mred\u202e"), FileNotFoundError(errno.ENOENT, "No such file", "a\x1bb"),
    *(OSError(number, os.strerror(number), "x") for number in (errno.ENOSPC, errno.EROFS, errno.EISDIR, errno.EACCES,
      errno.ENOTDIR, errno.ENAMETOOLONG, errno.EIO, errno.EDQUOT, errno.ELOOP)),
    PermissionError(errno.EACCES, "Permission denied"), MemoryError(), RecursionError("too deep"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "bad"),
    json.JSONDecodeError("no", "{", 0), yaml.YAMLError("no"), yaml.scanner.ScannerError("a", None, "b", None),
    invalid(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]  # fmt: skip


@pytest.mark.parametrize("error", EXPECTED, ids=lambda error: type(error).__name__)
def test_what_a_user_can_correct_is_a_message(error: BaseException) -> None:
    message = refused(CliRunner().invoke(raising(error), ["x"]))
    assert message.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("x"), ValueError("x"), AssertionError(), ZeroDivisionError(), RuntimeError("x")]
)
def test_a_fault_of_our_own_is_a_traceback(error: BaseException) -> None:
    result = CliRunner().invoke(raising(error), ["x"])
    assert result.exit_code == 70
    assert "Traceback" in result.output and type(error).__name__ in result.output


def test_a_result_outside_a_bound_is_1() -> None:
    assert CliRunner().invoke(raising(ToleranceError("too far")), ["x"]).exit_code == 1


@pytest.mark.parametrize("words", [["no-such-command"], ["eval", "--no-such-option"], ["eval", "a\x1b[31m\u202eb.pt"],
                                   ["eval", "--split", "\x1b]0;x\x07"], ["--x\x1b[0m"]])  # fmt: skip
def test_nothing_from_the_command_line_steers_the_terminal(words: list[str]) -> None:
    result = invoke(*words, *(["--data", "x\x1b.yaml"] if words[0] == "eval" else []))
    assert refused(result).replace("\n", "").isprintable()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_value_of_no_option_is_a_switch(command: str) -> None:
    made = main.get_command(click.Context(main), command)
    assert made is not None
    taking = [one for one in made.params if isinstance(one, click.Option) and not one.is_flag]
    assert taking
    words = [command, "--no-such-option"]
    for option in taking:
        for name in option.opts:
            words += [name, *["--json"] * option.nargs]
    value, switch = invoke(*words), invoke(*words, "--json")
    assert refused(value) and not value.stdout
    assert refused(switch) and json.loads(switch.stdout)["error"]["exit_code"] == 2
    assert not invoke(command, "--no-such-option", "--", "--json").stdout


# --- processes -------------------------------------------------------------------------------------------------------


def start(*words: object, code: str = "", **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "repq", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **more)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["import", "work"])
def test_a_signal_ends_with_one_line_and_leaves_nothing(
    number: signal.Signals, code: int, moment: str, material: Material, folder: Path
) -> None:
    """At any time from the first line of ours on; what the command was about to write, and its scratch, is gone."""
    scratch = folder / "tmp"
    scratch.mkdir()
    out = folder / "out.safetensors"
    program = (
        "import runpy, signal, sys, threading, os, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        f"sys.argv = ['repq', 'fuse', {str(material.files['WEIGHTS'])!r}, '-o', {str(out)!r}, '--imgsz', '640']\n"
        "def kill():\n"
        + ("    while 'click' not in sys.modules: pass\n" if moment == "import" else
           "    while not any(os.path.isdir(os.path.join(os.environ['TMPDIR'], name))\n"
           "                  for name in os.listdir(os.environ['TMPDIR'])): time.sleep(0.001)\n")
        + f"    os.kill(os.getpid(), {int(number)})\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
        "runpy.run_module('repq', run_name='__main__')\n"
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(scratch)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert signal.Signals(number).name in done.stderr.splitlines()[-1]
    probe = b"blat"  # by such a file, which it removes at once, tempfile looks whether it may write into a folder
    assert [path for path in folder.rglob("*") if path.is_dir() or path.read_bytes() != probe] == [scratch]


def test_what_a_library_makes_of_a_signal_is_no_failure() -> None:
    """As torch's exporter does where its imports are cut off: the signal becomes an error like any other."""
    program = (
        "import os, signal, sys, time, click\n"
        "from repq.cli.frame import Framed\n"
        "from repq.errors import RepqError\n"
        "@click.group(cls=Framed)\n"
        "def main(): pass\n"
        "for wrapped in AttributeError('_dynamo'), ImportError('x'), RepqError('not here'):\n"
        "    @main.command()\n"
        "    def x():\n"
        "        try:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "            time.sleep(60)\n"
        "        except BaseException as error:\n"
        "            raise wrapped from error\n"
        "    try:\n"
        "        main(['x'])\n"
        "    except SystemExit as ended:\n"
        "        print(ended.code)\n"
    )
    process = start(code=program)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output.split()) == (0, ["143"] * 3)
    assert len(errors.splitlines()) == 3 and all(line.startswith("stopped by SIGTERM") for line in errors.splitlines())


def test_a_closed_pipe_is_no_error() -> None:
    process = start("config", "--json")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(120) == 141
    assert process.stderr.read() == ""


@ending_on_signals()
def wrapped() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    except BaseException as error:
        raise ImportError("what an import makes of it") from error


def test_ignored_signals_stay_so_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending_on_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        with pytest.raises(SystemExit) as stopped:
            wrapped()
        assert stopped.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_waits_while_a_compiled_module_is_loaded() -> None:
    """Some abort the process where Python that they call raises."""
    loaded = []

    class Loader(ExtensionFileLoader):
        def exec_module(self, module: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            loaded.append(module)

    @ending_on_signals()
    def load() -> None:
        Loader("x", "x.so").exec_module("x")
        time.sleep(10)

    with pytest.raises(SystemExit) as stopped:
        load()
    assert stopped.value.code == 143 and loaded == ["x"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("start", "unbuffered"),
    [(["-c", "import torch, repq.cli; repq.cli.main()"], ""), (["-m", "repq"], ""), (["-m", "repq"], "1")],
    ids=["torch loaded", "buffered", "unbuffered"],
)
def test_a_full_disk_behind_the_output(start: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, *start, "config", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 2
    assert "No space left" in done.stderr and "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


ALL_CLOSED = "<&- >&- 2>&-"


@pytest.mark.skipif(os.name == "nt", reason="closed by a shell")
@pytest.mark.parametrize(
    ("words", "closed"),
    [(words, closed) for words in ("config --json", "nosuch --json") for closed in (">&-", "2>&-", "<&-", ALL_CLOSED)]
    + [(words, ALL_CLOSED) for words in ("--version", "config", "config nosuch")],
)
def test_closed_streams_are_no_fault(words: str, closed: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    line = f"{sys.executable} -m repq {words} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment)
    assert done.returncode == (2 if "nosuch" in words else 0), done.stderr
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("rank", "count", "shown"),
    [("1", "2", False), ("0", "2", True), ("3", None, True), ("x", "2", True), ("7", "", True)],
)
def test_only_later_processes_of_torchrun_are_silent(
    rank: str, count: str | None, shown: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Other launchers number their jobs by the same variable."""
    monkeypatch.setenv("RANK", rank)
    if count is not None:
        monkeypatch.setenv("WORLD_SIZE", count)
    assert bool(invoke("config", "--json").stdout) == shown
    shell = Shell(log_file=tmp_path / "log")
    shell.log("something")
    assert "something" in (tmp_path / "log").read_text() if shown else not (tmp_path / "log").exists()


# --- help ------------------------------------------------------------------------------------------------------------


def modules_after_help(*commands: str) -> set[str]:
    code = (
        "import sys\n"
        "from repq.cli import main\n"
        f"for command in {commands!r}:\n"
        "    try:\n"
        "        main([*command.split(), '--help'])\n"
        "    except SystemExit as ended:\n"
        "        assert not ended.code\n"
        "print(*sys.modules)\n"
    )
    out, _ = start(code=code).communicate()
    return {name.partition(".")[0] for name in out.splitlines()[-1].split()}


HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "cv2", "matplotlib", "pycocotools", "tensorrt"}


def test_help_loads_next_to_nothing() -> None:
    assert not modules_after_help("") & {*HEAVY, "pydantic", "yaml", "numpy", "rich"}


@pytest.mark.parametrize(("command", "folder"), [("run", SHIPPED), ("ablation", SHIPPED / "ablations")])
def test_help_names_what_is_shipped(command: str, folder: Path) -> None:
    listed = CliRunner().invoke(main, [command, "--help"]).output.partition("one that repq ships:")[2].partition(".")[0]
    assert sorted(listed.replace(",", " ").split()) == sorted(path.stem for path in folder.glob("*.yaml"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert " ".join(COMMANDS[command][1].split()) in " ".join(result.output.split())
    for option in options(command):
        assert option.name in result.output


def test_help_of_commands_loads_no_heavy_library() -> None:
    assert not modules_after_help("run", "ptq", "bench") & HEAVY
