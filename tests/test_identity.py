"""The identity of a result: every field and every input file counts, but for what is marked as having no effect."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import repq.recipe as recipe
from repq import identity as module
from repq.identity import code_version, counts, describe, differences, hash_files, hash_tensors, identify
from repq.recipe.base import Assembled, Config
from repq.recipe.whole import Recipe, recipe_class, stages

REQUIRED: dict[str, dict[str, Any]] = {
    "DistillConfig": {"teacher": "a"},
    "DataConfig": {"path": "a"},
    "PlanConfig": {"max_drop": 0.01},
    "Ablation": {"name": "x", "variants": {"a": {}}},
    "Effects": {"baseline": "a", "together": "b"},
    "Recipe": {"name": "x", "data": {"path": "a"}, "weights": "a"},
}
"""Values of settings without a default."""


def settings_classes() -> list[type[Config]]:
    """Every settings class that a recipe or a command can hold, found from the recipe."""
    found: dict[type[Config], None] = {}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Config) and annotation not in found:
            found[annotation] = None
            for field in annotation.model_fields.values():
                visit(field.annotation)
                for made in (part for part in field.metadata if isinstance(part, Assembled)):
                    visit(made.settings_class())
        for argument in get_args(annotation):
            visit(argument)

    visit(recipe_class())
    for name in recipe.__all__:
        visit(getattr(recipe, name))
    bases = (Config, Recipe, recipe.CalibrationConfig, recipe.CorrectionConfig)  # the last two get fields from lists
    return [kind for kind in found if kind not in bases]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files for settings that name some: two contents."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).write_text(name)


CASES = [(kind, name) for kind in settings_classes() for name in kind.model_fields]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda case: case if isinstance(case, str) else case.__name__)
def test_every_field_counts_unless_it_is_marked(kind: type[Config], name: str) -> None:
    base = kind.model_validate(REQUIRED.get(kind.__name__, {}))
    for value in ("another value", Path("b"), 12345, {"a": 1}):
        changed = base.model_copy(update={name: value})  # as it is, whatever the rules between fields say
        assert (describe(changed) != describe(base)) == counts(kind, name)
        whole = {"section": {"nested": (changed,)}}
        assert (describe(whole) != describe({"section": {"nested": (base,)}})) == counts(kind, name)


def test_what_is_marked_has_no_effect_by_its_nature() -> None:
    marked = {f"{kind.__name__}.{name}" for kind, name in CASES if not counts(kind, name)}
    assert marked <= {
        *(f"{kind}.{name}" for kind in ("LoopConfig", "TrainConfig", "QatConfig", "RecoveryConfig")
          for name in ("workers", "cache_mib", "cuda_graphs", "tensorboard")),
        "TensorRtConfig.timing_cache", "PredictConfig.workers",
    }  # fmt: skip


def test_one_byte_of_a_named_file_changes_the_identity_and_its_place_does_not(tmp_path: Path) -> None:
    calibration = recipe.CalibrationConfig(manifest=Path("a"))
    before = describe(calibration)
    Path("moved").write_text("a")
    assert describe(recipe.CalibrationConfig(manifest=Path("moved"))) == before
    Path("a").write_text("A")
    assert describe(calibration) != before
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "x").write_text("1")
    first = describe(folder)
    (folder / "x").write_text("2")
    assert describe(folder) != first


@given(st.lists(st.sampled_from(["float32", "float64", "int8"]), min_size=2, max_size=2), st.integers(1, 4))
def test_arrays_differ_by_type_shape_name_and_value(kinds: list[str], size: int) -> None:
    one, other = (np.zeros(size, kind) for kind in kinds)
    assert (hash_tensors({"a": one}) == hash_tensors({"a": other})) == (kinds[0] == kinds[1])
    assert hash_tensors({"a": one}) != hash_tensors({"b": one})
    assert hash_tensors({"a": one}) != hash_tensors({"a": one.reshape(1, -1)})
    changed = one.copy()
    changed[-1] = 1
    assert hash_tensors({"a": one}) != hash_tensors({"a": changed})


def test_a_torch_model_and_a_numpy_array_are_described_by_their_values() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(2, 2)
    before = describe(layer)
    assert describe({"a": np.float32([1])}) == describe({"a": torch.tensor([1.0])})
    with torch.no_grad():
        layer.bias[0] += 1
    assert describe(layer) != before


def test_files_hashed_before_are_hashed_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import time

    monkeypatch.setenv("REPQ_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "image"
    path.write_bytes(b"1234")
    old = time.time_ns() - 10**10
    os.utime(path, ns=(old, old))
    later = time.time_ns() + 10**10
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "time_ns", lambda: later)  # long after the file was made
        (first,) = hash_files([path])
        calls: list[Path] = []
        patch.setattr(module, "hash_file", lambda path: calls.append(path) or "new")
        assert hash_files([path]) == [first] and not calls  # remembered
        path.write_bytes(b"4321")  # as many bytes, the same time of modification
        os.utime(path, ns=(old, old))
        assert hash_files([path]) == ["new"] and calls == [path]
    (tmp_path / "cache/hashes.sqlite").write_bytes(b"damaged")
    path.write_bytes(b"1234")
    assert hash_files([path]) == [first]


def test_library_versions_name_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime-gpu": "1.2", "torch": "3.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise module.metadata.PackageNotFoundError(name)
        return installed[name]

    module.library_versions.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(module.metadata, "version", version)
        found = module.library_versions()
    module.library_versions.cache_clear()
    assert found["onnxruntime"] == "onnxruntime-gpu 1.2"
    assert found["torch"] == "torch 3.0"
    assert found["openvino"] == "absent"


NO_RESULT = {
    "click", "filelock", "psutil", "pydantic", "pyyaml", "rich", "safetensors",  # reading, writing, talking
    "polygraphy", "tensorboard", "nvidia-ml-py",
}  # fmt: skip
"""What no figure and no file of a run hangs on."""
OTHER_TOOLS = ("bench", "docs", "dev")
"""Extras of those who compare, write pages or develop."""


def test_every_library_that_results_can_hang_on_belongs_to_their_identity() -> None:
    setup = ConfigParser()
    setup.read(Path(module.__file__).parents[1] / "setup.cfg", encoding="utf-8")
    extras = setup["options.extras_require"]
    lists = [setup["options"]["install_requires"], *(extras[name] for name in extras if name not in OTHER_TOOLS)]
    wanted = {re.split(r"[<>=~!;\s]", line)[0] for text in lists for line in text.split("\n") if line.strip()}
    known = {name for names in module.LIBRARIES.values() for name in names}
    assert not wanted - NO_RESULT - known


def test_the_code_of_a_working_copy_counts() -> None:
    assert code_version() == code_version()
    job = identify("ptq", {}, {})
    assert set(job.versions) == {*module.LIBRARIES, "repq"}
    assert job.key == identify("ptq", {}, {}).key
    keys = {job.key, identify("qat", {}, {}).key, identify("ptq", {"a": 1}).key, identify("ptq", {}, {"a": 1}).key,
            identify("ptq", {}, seed=1).key, identify("ptq", {}, on_machine=True).key}  # fmt: skip
    assert len(keys) == 6


def test_what_a_build_leaves_in_a_working_copy_makes_no_release_of_it(tmp_path: Path) -> None:
    package = Path(module.__file__).parent
    shutil.copytree(package, tmp_path / "repq", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "repq.egg-info").mkdir()
    (tmp_path / "repq.egg-info/PKG-INFO").write_text("Metadata-Version: 2.1\nName: repq\nVersion: 0.1.0\n")
    line = "from repq.identity import code_version; print(code_version())"
    found = [
        subprocess.run([sys.executable, "-c", line], cwd=folder, capture_output=True, text=True, check=True).stdout
        for folder in (tmp_path, package.parent)
    ]
    assert found[0] == found[1] == f"{code_version()}\n"
    assert len(found[0].split()) == 2  # the version, and the hash of the sources


def test_differences_name_what_differs() -> None:
    one = {"settings": {"a": 1, "b": {"c": 2}}, "seed": 0}
    other = {"settings": {"a": 1, "b": {"c": 3}, "d": 4}, "seed": 1}
    assert differences(one, one) == []
    assert differences(one, other) == ["seed", "settings.b.c", "settings.d"]


def test_results_lose_times_and_keep_the_rest() -> None:
    from repq.results import EpochRow

    names = set(EpochRow.model_fields)
    assert {name for name in names if not counts(EpochRow, name)} == {"seconds", "teacher_seconds"}


def test_what_has_no_identity_is_an_error() -> None:
    with pytest.raises(TypeError, match="object has no identity"):
        describe({"a": object()})


def test_every_stage_names_results_that_read_back() -> None:
    for stage in stages():
        for kind in stage.contents.results.values():
            assert issubclass(kind, BaseModel)
    names = list(itertools.chain.from_iterable(stage.sections for stage in stages()))
    assert len(names) == len(set(names))


def test_the_files_in_which_a_graph_keeps_weights_count(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shape = [TensorProto.FLOAT, [4]]
    values = [helper.make_tensor_value_info(name, *shape) for name in ("x", "y")]
    weights = [numpy_helper.from_array(np.arange(4, dtype=np.float32) + number, f"w{number}") for number in range(2)]
    nodes = [helper.make_node("Add", ["x", "w0"], ["z"]), helper.make_node("Add", ["z", "w1"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], weights))
    path, beside = tmp_path / "m.onnx", tmp_path / "m.bin"
    onnx.save(model, path, save_as_external_data=True, location=beside.name, size_threshold=0)
    before = describe(path)
    (tmp_path / "other").write_text("not of the model")
    assert describe(path) == before
    for place in range(beside.stat().st_size):
        content = bytearray(beside.read_bytes())
        content[place] ^= 1
        beside.write_bytes(content)
        assert describe(path) != before
        content[place] ^= 1
        beside.write_bytes(content)
    assert describe(path) == before
    beside.unlink()
    assert describe(path) != before  # whoever opens it says what is missing
    path.write_bytes(b"location of nothing")
    assert len(describe(path)["sha256"]) == 64


@pytest.mark.parametrize("location", ["/dev/zero", "../m.onnx", "x" * 5000, "a\0b", ""])
def test_a_graph_that_names_other_places_is_hashed_without_them(tmp_path: Path, location: str) -> None:
    from onnx import TensorProto, helper

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString())
    assert len(describe(path)["sha256"]) == 64
