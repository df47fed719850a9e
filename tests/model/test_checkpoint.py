"""Checkpoint import and export: the official form, state dicts, and repq's own files."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_yolov6 import AS_BUILT, GOLDEN_TAGS, golden_values, relative_error
from torch import nn

from repq.errors import CheckpointError, RepqError
from repq.model import Detector, build, get_spec, load_checkpoint, model_names, recover, save_checkpoint
from repq.model.detector import known_outline
from repq.model.yolov6.specs import STYLE_SUFFIXES
from repq.reparam import fuse

OFFICIAL_NAME = {"yolov6n_fuseab": "yolov6n", "yolov6s_distill_ns": "yolov6s"}


def randomized(name: str, num_classes: int = 80, seed: int = 0) -> Detector:
    generator = torch.Generator().manual_seed(seed)
    model = build(name, num_classes).eval()
    for entry, value in model.state_dict().items():
        if not entry.endswith(AS_BUILT):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.1)
    return model


def shapes_of(spec: Any, deploy: bool) -> dict[str, tuple[int, ...]]:
    return {entry: tuple(value.shape) for entry, value in known_outline(spec, deploy).state_dict().items()}


def entries_equal(found: Detector, expected: Detector) -> bool:
    one, other = found.state_dict(), expected.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[entry], other[entry]) for entry in one)


# --- the official form -----------------------------------------------------------------------------------------------


@pytest.fixture
def official_code() -> Iterator[type[nn.Module]]:
    """A stand-in for the official package while a file is written; gone again when it is read."""
    module = types.ModuleType("yolov6.layers.common")
    kind = type("Block", (nn.Module,), {"__module__": module.__name__})
    module.Block = kind  # type: ignore[attr-defined]
    packages = {name: types.ModuleType(name) for name in ("yolov6", "yolov6.layers")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**packages, module.__name__: module}.items():
            patch.setitem(sys.modules, name, value)
        yield kind


def as_official(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The same tree with modules of the official package instead of repq's; torch's own modules stay."""
    own = not type(module).__module__.startswith("torch.nn")
    if not own and not list(module.children()):
        return module
    copy = kind() if own else type(module)()
    for name, child in module.named_children():
        copy.add_module(name, as_official(child, kind))
    for name, parameter in module.named_parameters(recurse=False):
        copy.register_parameter(name, parameter)
    return copy


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")  # the flat form wants the classes' source
def test_takes_ema_weights_of_pickled_modules(tmp_path: Path, official_code: type[nn.Module], zipped: bool) -> None:
    raw, averaged = (as_official(randomized("yolov6n_v2", 3, seed), official_code).half() for seed in (1, 2))
    averaged.names = ["a", "b", "c"]
    values = {"model": raw, "ema": averaged, "updates": 7, "optimizer": None, "epoch": 3, "results": (np.float64(0.5),)}
    torch.save(values, tmp_path / "last.pt", _use_new_zipfile_serialization=zipped)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("yolov6", "yolov6.layers", "yolov6.layers.common"):
            patch.setitem(sys.modules, name, None)  # any import of it fails
        checkpoint = load_checkpoint(tmp_path / "last.pt")
    assert checkpoint.spec == get_spec("yolov6n_v2", 3)
    assert checkpoint.names == ("a", "b", "c")
    assert any("ema" in note for note in checkpoint.notes)
    assert any("float16" in note for note in checkpoint.notes)
    expected = averaged.float().state_dict()
    for entry, value in checkpoint.model.state_dict().items():
        assert value.dtype == (torch.int64 if entry.endswith("num_batches_tracked") else torch.float32)
        assert torch.equal(value, expected[entry])
    assert not checkpoint.model.training


def test_weights_without_ema_and_inside_a_wrapper(tmp_path: Path, official_code: type[nn.Module]) -> None:
    model = randomized("yolov6lite_s")
    wrapped = nn.DataParallel(as_official(model, official_code))
    torch.save({"model": wrapped, "ema": None}, tmp_path / "last.pt")
    assert entries_equal(load_checkpoint(tmp_path / "last.pt").model, model)


@pytest.mark.parametrize("name", ["yolov6n_qa", "yolov6n_qav1", "yolov6n_relu", "yolov6n_silu"])
def test_recorded_classes_decide_between_equal_entries(
    tmp_path: Path, official_code: type[nn.Module], name: str
) -> None:
    torch.save({"model": as_official(build(name, 2), official_code)}, tmp_path / "w.pt")
    checkpoint = load_checkpoint(tmp_path / "w.pt")
    assert replace(checkpoint.spec, name=name) == get_spec(name, 2)  # the same model can have two names
    assert not any("equal" in note for note in checkpoint.notes)


def test_unknown_activation_is_refused(tmp_path: Path, official_code: type[nn.Module]) -> None:
    model = build("yolov6n_v2", 2)
    model.backbone.stem.nonlinearity = nn.LeakyReLU()
    torch.save({"model": as_official(model, official_code)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="compute something else"):
        load_checkpoint(tmp_path / "w.pt")


def test_other_epsilon_keeps_the_outputs(tmp_path: Path, official_code: type[nn.Module]) -> None:
    model = randomized("yolov6lite_s", 2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-2
    torch.save({"model": as_official(model, official_code)}, tmp_path / "w.pt")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = load_checkpoint(tmp_path / "w.pt").model(images), model(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("file", "name", "classes"),
    [
        ("yolov6lite_s_coco", "yolov6lite_s", 80),
        ("yolov6lite_m_coco", "yolov6lite_m", 80),
        ("yolov6n_bccd_repvgg", "yolov6n_v2", 3),
        ("yolov6n_bccd_hs", "yolov6n_v2_hs", 3),
        ("yolov6n_bccd_repopt", "yolov6n_v2_opt", 3),
    ],
)
def test_shared_checkpoints(shared: Path, file: str, name: str, classes: int) -> None:
    checkpoint = load_checkpoint(shared / "checkpoints" / f"{file}.pt")
    assert checkpoint.spec == get_spec(name, classes)
    assert checkpoint.names == (("RBC", "WBC", "Platelets") if classes == 3 else None)
    assert all(parameter.dtype == torch.float32 for parameter in checkpoint.model.parameters())
    assert not any("equal" in note for note in checkpoint.notes)


# --- state dicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", GOLDEN_TAGS)
def test_golden_names_are_recovered(shared: Path, tag: str) -> None:
    golden = json.loads((shared / "golden" / f"{tag}.json").read_text())
    found = recover({name: tuple(shape) for name, shape in golden["state_dict"].items()})
    assert found.spec == get_spec(OFFICIAL_NAME.get(tag, tag), golden["num_classes"])
    assert any("only training uses" in note for note in found.notes) == (tag in OFFICIAL_NAME)


@pytest.mark.parametrize("tag", ["yolov6n_fuseab", "yolov6s_distill_ns", "yolov6n_qa", "yolov6n_v2_hs", "yolov6lite_s"])
def test_imported_golden_weights_detect_the_same(shared: Path, tmp_path: Path, tag: str) -> None:
    golden = json.loads((shared / "golden" / f"{tag}.json").read_text())
    built = build(OFFICIAL_NAME.get(tag, tag), golden["num_classes"]).state_dict()
    state = {
        name: built[name]
        if name.endswith(AS_BUILT)
        else torch.from_numpy(golden_values(name, tuple(shape)).astype(np.float32))
        for name, shape in golden["state_dict"].items()
    }
    torch.save(state, tmp_path / "state.pt")
    size = golden["input_size"]
    image = np.random.default_rng(0).uniform(0, 1, (1, 3, size, size)).astype(np.float32)
    with torch.no_grad():
        detections = load_checkpoint(tmp_path / "state.pt").model(torch.from_numpy(image))
    expected = np.load(shared / "golden" / f"{tag}.npz")["detections"]
    assert relative_error(detections, expected) < 1e-5  # another order of summation in FP32; 1e-4 is asked for


PLAIN = [
    name
    for name in model_names()
    if name.startswith("yolov6") and not name.endswith(tuple(f"_{suffix}" for suffix in STYLE_SUFFIXES))
]
STYLED = [f"yolov6{size}_{suffix}" for size in ("n", "t") for suffix in STYLE_SUFFIXES]


@pytest.mark.parametrize(
    ("name", "deploy"),
    [(name, False) for name in PLAIN + STYLED] + [(name, True) for name in ["yolov6lite_s", *STYLED]],
)
def test_recovers_from_shapes_alone(name: str, deploy: bool) -> None:
    shapes = shapes_of(get_spec(name, 5), deploy)
    found = recover(shapes)
    assert found.deploy == deploy
    assert shapes_of(found.spec, deploy) == shapes
    same = replace(found.spec, name=name) == get_spec(name, 5)
    fused_alike = deploy and replace(found.spec, name=name, style=get_spec(name).style) == get_spec(name, 5)
    assert same or fused_alike or any(name in note or "equal" in note for note in found.notes)
    assert recover(shapes, name).spec == get_spec(name, 5)


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dict_forms(tmp_path: Path, key: str | None, prefix: str) -> None:
    model = randomized("yolov6n_v2_opt", 4)
    state = {prefix + entry: value for entry, value in model.state_dict().items()}
    torch.save({key: state, "epoch": 1} if key else state, tmp_path / "w.pt")
    checkpoint = load_checkpoint(tmp_path / "w.pt")
    assert checkpoint.spec == get_spec("yolov6n_v2_opt", 4)
    assert entries_equal(checkpoint.model, model)


def test_constants_may_be_absent(tmp_path: Path) -> None:
    model = randomized("yolov6n_v2", 4)
    torch.save({k: v for k, v in model.state_dict().items() if not k.endswith(AS_BUILT)}, tmp_path / "w.pt")
    assert entries_equal(load_checkpoint(tmp_path / "w.pt").model, model)


def test_names_of_the_first_releases(tmp_path: Path) -> None:
    model = randomized("yolov6n_v2", 4)
    older = {
        entry.replace(".block.conv.", ".conv.").replace(".block.bn.", ".bn.").replace(".sppf.", "."): value
        for entry, value in model.state_dict().items()
    }
    torch.save(older, tmp_path / "w.pt")
    checkpoint = load_checkpoint(tmp_path / "w.pt")
    assert entries_equal(checkpoint.model, model)
    assert any("first releases" in note for note in checkpoint.notes)


def test_equal_entries_take_the_published_default_unless_named(tmp_path: Path) -> None:
    torch.save(build("yolov6n_silu", 2).state_dict(), tmp_path / "w.pt")
    checkpoint = load_checkpoint(tmp_path / "w.pt")
    assert any("yolov6n_silu" in note or checkpoint.spec.name == "yolov6n_silu" for note in checkpoint.notes)
    assert load_checkpoint(tmp_path / "w.pt", "yolov6n_silu").spec == get_spec("yolov6n_silu", 2)
    with pytest.raises(CheckpointError, match="not those of yolov6s"):
        load_checkpoint(tmp_path / "w.pt", "yolov6s")
    with pytest.raises(RepqError, match="yolov6n_slu"):
        load_checkpoint(tmp_path / "w.pt", "yolov6n_slu")


def test_what_fits_nothing_names_the_closest(tmp_path: Path) -> None:
    state = build("yolov6n_v2", 4).state_dict()
    state["backbone.ERBlock_3.0.rbr_1x1.conv.weight"] = torch.zeros(7, 7)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"yolov6n_v2 with 4 classes, 1 entries differ: .*ERBlock_3\.0.*\(7, 7\)"):
        load_checkpoint(tmp_path / "w.pt")
    del state["backbone.ERBlock_3.0.rbr_1x1.conv.weight"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [{}, {"model": None}, [1, 2], {"weight": torch.ones(3)}, nn.Linear(2, 2)])
def test_no_detector_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "w.pt")
    assert caught.value.found
    assert caught.value.fix


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = randomized("yolov6lite_s")
    model.detect.cls_preds[0].weight.data[0] = float("nan")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="not finite"):
        load_checkpoint(tmp_path / "w.pt")


# --- repq's own form -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["yolov6n_v2_hs", "yolov6n_qa", "yolov6lite_s"])
@pytest.mark.parametrize("fused", [False, True])
def test_own_form_reads_back_bit_for_bit(tmp_path: Path, name: str, fused: bool) -> None:
    model = randomized(name, 2)
    model = fuse(model) if fused else model
    extra = {"scale.a": torch.rand(3), "count": torch.tensor(4)}
    save_checkpoint(tmp_path / "m.safetensors", model, names=("a", "ä"), metadata={"note": "{}"}, extra=extra)
    checkpoint = load_checkpoint(tmp_path / "m.safetensors")
    assert (checkpoint.spec, checkpoint.model.deploy) == (model.spec, fused)
    assert entries_equal(checkpoint.model, model)
    assert (checkpoint.names, checkpoint.metadata, checkpoint.notes) == (("a", "ä"), {"note": "{}"}, ())
    assert checkpoint.extra.keys() == extra.keys()
    assert all(torch.equal(checkpoint.extra[key], value) for key, value in extra.items())
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_foreign_safetensors_are_a_state_dict(tmp_path: Path) -> None:
    model = randomized("yolov6n_v2_opt", 4)
    save_file({entry: value.clone() for entry, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    assert entries_equal(load_checkpoint(tmp_path / "w.safetensors").model, model)


def test_own_form_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, randomized("yolov6lite_s", 2))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(path)

    spec = get_spec("yolov6n", 2)
    for text in ("no json", spec.to_json(), replace(spec, backbone_repeats=(10**9,) * 4).to_json()):
        path.write_bytes(whole)
        save_file(load_file(path), path, metadata={"repq.version": "1", "repq.deploy": "false", "repq.spec": text})
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)
    save_file({"a": torch.ones(1)}, path, metadata={"repq.version": "99"})
    with pytest.raises(CheckpointError, match="99"):
        load_checkpoint(path)


def test_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("old")
    model = randomized("yolov6lite_s", 2)
    with pytest.raises(CheckpointError, match="class names"):
        save_checkpoint(path, model, names=("a",))
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "folder.safetensors", model)
    assert path.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.safetensors", "m.safetensors"]
