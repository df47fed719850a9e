"""The YOLOX family against the published models: names, sizes, outputs, files."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from few_blocks import few_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from repq.errors import CheckpointError, RepqError
from repq.evaluate import postprocess
from repq.export import export_float
from repq.graph import nms_output
from repq.model import Detector, build, get_spec, layer_ids, load_checkpoint, model_names, outline, recover
from repq.model.detector import known_outline
from repq.model.yolox.blocks import FocusUnit, space_to_depth
from repq.preprocessing import preset
from repq.recipe import EvalConfig, NmsConfig
from repq.reparam import fuse, fuse_with_proof

# millions of parameters as published (tables 3 and 4 of the paper, and the release notes)
PUBLISHED_MILLIONS = {
    "yolox_nano": 0.912,
    "yolox_tiny": 5.056,
    "yolox_s": 8.968,
    "yolox_m": 25.326,
    "yolox_l": 54.209,
    "yolox_x": 99.071,
    "yolox_darknet53": 63.7,
}
TAGS = ("yolox_nano", "yolox_tiny", "yolox_s")
OPTIONS = tuple(name for name in model_names() if name.startswith("yolox_nano"))
ENDS = tuple(name.removeprefix("yolox_nano") for name in OPTIONS if name != "yolox_nano")


def golden_values(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The weights that the golden files were made with: drawn by the entry's own name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape)
    if name.endswith(("running_mean", "bias")):
        return rng.normal(0, 0.1, shape)
    return rng.uniform(0.3, 0.9, shape) if len(shape) < 2 else rng.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape)


def filled(name: str, classes: int = 3) -> Detector:
    return with_golden_values(build(name, classes).eval())


def with_golden_values(model: Detector) -> Detector:
    """The model with such weights, on which every layer has something to say."""
    state = {
        entry: torch.from_numpy(golden_values(entry, tuple(value.shape)).astype(np.float32))
        for entry, value in model.state_dict().items()
        if value.is_floating_point()
    }
    model.load_state_dict(state, strict=False)
    return model


def images(size: int) -> torch.Tensor:
    return torch.from_numpy((np.random.default_rng(0).uniform(0, 1, (1, 3, size, size)) * 255).astype(np.float32))


@pytest.mark.parametrize("tag", TAGS)
def test_outputs_are_those_of_the_official_implementation(shared: Path, tag: str) -> None:
    golden = json.loads((shared / "golden" / f"{tag}.json").read_text())
    arrays = np.load(shared / "golden" / f"{tag}.npz")
    model = filled(tag, golden["num_classes"])
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == golden["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["params"]
    with torch.no_grad():
        features = model.features(images(golden["input_size"]))
        found = {f"neck{level}": maps for level, maps in enumerate(features)} | {"detections": model.predict(features)}
    for name, value in found.items():
        assert np.abs(value.numpy() - arrays[name]).max() < 1e-4 * np.abs(arrays[name]).max(), name


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_MILLIONS.items())
def test_they_have_the_published_sizes(name: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in outline(get_spec(name, 80), False).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.03 if name.endswith("53") else 6e-4)


@given(st.integers(1, 4), st.sampled_from([(8, 8), (6, 10), (2, 4)]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_focus_and_its_convolution_are_one_convolution(channels: int, size: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    trained = FocusUnit(channels, act="silu", deploy=False).double().eval()
    nn.init.uniform_(trained.bn.running_var, 0.5, 2)
    nn.init.normal_(trained.bn.running_mean)
    fused = FocusUnit(channels, act="silu", deploy=True).double()
    (fold,) = trained.folds()
    fused.load_state_dict({"conv.weight": fold.affine.weight, "conv.bias": fold.affine.bias})
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert space_to_depth(x)[:, 3:6].equal(x[..., 1::2, ::2])
    torch.testing.assert_close(fused(x), trained(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*OPTIONS, "yolox_darknet53"])
def test_fusing_changes_nothing(name: str) -> None:
    spec = get_spec(name, 3)
    if name == "yolox_darknet53":
        spec = replace(spec, repeats=(1, 1, 2, 1))
    model = with_golden_values(build(spec).eval())
    fused, report = fuse_with_proof(model, images(64), 1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    stem = next(iter(layer_ids(fused)))
    if "darknet53" not in name:
        assert tuple(fused.get_submodule(stem).weight.shape[1:]) == (3, 6, 6)
    assert report.max_rel_error < 1e-4


@pytest.mark.parametrize(("name", "size"), [("yolox_nano", (64, 64)), ("yolox_nano_nmsfree", (64, 96))])
def test_a_graph_is_of_plain_convolutions_and_decoded(name: str, size: tuple[int, int]) -> None:
    model = fuse(with_golden_values(build(few_blocks(name, 3)).eval()))
    graph = export_float(model, size)
    first = next(node for node in graph.graph.node if node.op_type not in ("Constant", "Identity"))
    assert first.op_type == "Conv"
    x = torch.rand(1, 3, *size) * 255
    with torch.no_grad():
        expected = model(x).numpy()
    (found,) = run(graph, x)
    assert found.shape == (1, sum(size[0] // stride * size[1] // stride for stride in (8, 16, 32)), 8)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)

    config = {"confidence": 0.05, "iou": 0.5, "max_detections": 20}
    with_boxes = nms_output(graph, NmsConfig(**config))
    free = name.endswith("nmsfree")
    assert ("NonMaxSuppression" in {node.op_type for node in with_boxes.graph.node}) != free
    (boxes,) = run(with_boxes, x)
    wanted = postprocess(expected, EvalConfig(**config), model.spec.layout)[0]
    assert len(wanted)
    kept = boxes[0][boxes[0][:, 4] > 0]
    np.testing.assert_allclose(by_place(kept), by_place(wanted), rtol=1e-3, atol=1e-3)


def by_place(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes in an order that scores of one rounding do not change."""
    return boxes[np.lexsort((boxes[:, 5], *boxes[:, 3::-1].round(1).T))]


def run(graph: ModelProto, x: torch.Tensor) -> list[NDArray[np.float32]]:
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"images": x.numpy()})


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["model", "ema", "bare", "wrapped"])
def test_official_files_are_read(form: str, tmp_path: Path) -> None:
    state = filled("yolox_nano", 5).state_dict()
    content = {
        "model": {"start_epoch": 300, "model": state, "optimizer": {"state": {}, "param_groups": []}},
        "ema": {"model": {name: value * 0 for name, value in state.items()}, "ema": state},
        "bare": state,
        "wrapped": {"model": {f"module.{name}": value for name, value in state.items()}},
    }[form]
    torch.save(content, tmp_path / "a.pth")
    found = load_checkpoint(tmp_path / "a.pth")
    assert found.spec == get_spec("yolox_nano", 5)
    assert any("yolox-legacy" in note for note in found.notes)
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, state[name])


SIZES = tuple(name for name in model_names() if name.startswith("yolox") and not name.endswith(ENDS))


@pytest.mark.parametrize("name", [*SIZES, *(f"{size}{end}" for size in (SIZES[0], SIZES[-1]) for end in ENDS)])
def test_every_model_is_recognized_by_its_entries(name: str) -> None:
    spec = get_spec(name, 7)
    for deploy in (False, True):
        shapes = {entry: tuple(value.shape) for entry, value in known_outline(spec, deploy).state_dict().items()}
        assert recover(shapes, name).spec == spec
        found = recover(shapes)
        plain = name.removesuffix("_relu").removesuffix("_hardswish")
        assert (found.spec, found.deploy) == (get_spec(plain, 7), deploy)
        assert plain == name or any(name in note or "equal" in note for note in found.notes)


def test_files_that_only_look_like_ones_are_refused() -> None:
    state = outline(get_spec("yolox_nano", 3), False).state_dict()
    shapes = {entry: tuple(value.shape) for entry, value in state.items()}
    backbone = {entry: shape for entry, shape in shapes.items() if not entry.startswith("head")}
    other = shapes | {"head.cls_preds.0.weight": (3, 65, 1, 1), "neck.extra": (1,)}
    uneven = shapes | {"head.cls_preds.1.bias": (4,), "head.cls_preds.1.weight": (4, 64, 1, 1)}
    for broken, words in (
        (backbone, "backbone without a head"),
        (other, r"2 entries differ"),
        (uneven, r"head.cls_preds.1.weight is \(4, 64, 1, 1\) instead of \(3, 64, 1, 1\)"),
    ):
        with pytest.raises(CheckpointError, match=words):
            recover(broken)
    with pytest.raises(CheckpointError, match="yolox_s"):
        recover(shapes, "yolox_s")


def test_sizes_that_no_level_divides_are_refused() -> None:
    with pytest.raises(RepqError, match="416x400"):
        get_spec("yolox_nano").check_size(416, 400)


def test_real_weights_find_objects(shared: Path) -> None:
    found = load_checkpoint(shared / "checkpoints/yolox_nano_coco.pth")
    assert found.spec == get_spec("yolox_nano", 80)
    graph = shared / "onnx/yolox_nano_416.onnx"
    session = onnxruntime.InferenceSession(graph)
    x = images(416)
    (raw,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        features = found.model.features(x)
        own = found.model.head(features)
    own = torch.cat((own[..., :4], own[..., 4:].sigmoid()), -1).numpy()  # the public export: scores, boxes not decoded
    assert np.abs(own - raw).max() < 1e-3 * np.abs(raw).max()


def test_the_preprocessing_is_part_of_the_spec() -> None:
    spec = get_spec("yolox_s", 3)
    assert spec.preprocessing == preset("yolox")
    legacy = replace(spec, preprocessing=preset("yolox-legacy"))
    assert type(spec).from_json(legacy.to_json()) == legacy
