"""The rows of ``repq doctor``."""

import sys
from importlib import metadata

import pytest

from repq.engine import ENGINES, availability
from repq.errors import EngineError
from repq.results import Availability


def test_cpu_runtimes_are_usable_here():
    usable = {(row.runtime, row.device) for row in availability() if row.usable}
    assert {("torch", "cpu"), ("onnxruntime", "cpu"), ("openvino", "cpu")} <= usable


def test_what_is_unusable_says_why_and_every_row_reads_back():
    for row in availability():
        assert row.detail
        assert Availability.model_validate_json(row.model_dump_json()) == row


@pytest.mark.parametrize("missing", ["torch", "onnxruntime", "openvino", "tensorrt"])
def test_a_missing_runtime_is_a_row(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    rows = [row for row in availability() if row.runtime == missing]
    assert rows
    assert not any(row.usable for row in rows)
    assert all("pip install" in (row.fix or "") for row in rows)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("problem", [ImportError("no module"), OSError("libx.so: undefined symbol")], ids=repr)
def test_a_library_that_does_not_load_is_an_error_of_its_engine(engine, problem, monkeypatch):
    def fails(name):
        raise problem

    monkeypatch.setattr("importlib.import_module", fails)
    with pytest.raises(EngineError, match=str(problem)) as caught:
        engine.version()
    assert engine.title.split()[0] in caught.value.what and "pip install" in (caught.value.fix or "")


def test_a_broken_runtime_is_a_row(monkeypatch):
    import openvino

    monkeypatch.delattr(openvino, "Core")
    [row] = [row for row in availability() if row.runtime == "openvino"]
    assert not row.usable
    assert "fails" in row.detail


def test_onnxruntime_has_a_version_whatever_package_it_came_in(monkeypatch):
    import onnxruntime

    def nowhere(package):  # as onnxruntime, where onnxruntime-gpu is installed
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", nowhere)
    rows = [row for row in availability() if row.runtime == "onnxruntime"]
    assert rows and all(row.version == onnxruntime.__version__ for row in rows)


def test_every_engine_says_what_had_to_be_installed():
    for entry in ENGINES:
        assert "pip install" in entry.install or "comes with repq" in entry.install, entry.name
