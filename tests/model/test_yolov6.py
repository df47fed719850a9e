"""The family against the published models: names, sizes, and outputs of the official implementation."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from repq.errors import RepqError
from repq.model import Detector, build, get_spec, layer_ids, model_names
from repq.model.detector import known_outline
from repq.model.yolov6.specs import ARCHITECTURES, STYLE_SUFFIXES, ModelSpec

GOLDEN_TAGS = (
    "yolov6l",
    "yolov6lite_m",
    "yolov6lite_s",
    "yolov6m",
    "yolov6n",
    "yolov6n_fuseab",
    "yolov6n_qa",
    "yolov6n_v2_hs",
    "yolov6n_v2_opt",
    "yolov6s",
    "yolov6s6",
    "yolov6s_distill_ns",
    "yolov6s_mbla",
    "yolov6s_v2",
)
TRAINING_ONLY = ("_preds_ab.", "reg_preds_dist.")
AS_BUILT = ("num_batches_tracked", "proj", "proj_conv.weight")

# Millions of parameters as published: report tables (v2, v3), release notes 0.2.1 (first base variants), 0.3.0 (P6,
# base), 0.4.0 (Lite) and the MBLA table
PUBLISHED_MILLIONS = {
    "yolov6n_v2": 4.3,
    "yolov6t": 9.7,
    "yolov6s_v2": 17.2,
    "yolov6m_v2": 34.3,
    "yolov6l_v2": 58.5,
    "yolov6l_v2_relu": 58.5,
    "yolov6n": 4.65,
    "yolov6s": 18.5,
    "yolov6m": 34.9,
    "yolov6l": 59.6,
    "yolov6l_relu": 59.6,
    "yolov6n6": 10.4,
    "yolov6s6": 41.4,
    "yolov6m6": 79.6,
    "yolov6l6": 140.4,
    "yolov6s_mbla": 11.6,
    "yolov6m_mbla": 26.1,
    "yolov6l_mbla": 46.3,
    "yolov6x_mbla": 78.8,
    "yolov6n_base": 4.65,
    "yolov6s_base": 13.14,
    "yolov6m_base": 28.33,
    "yolov6l_base": 59.61,
    "yolov6n_v2_base": 4.3,
    "yolov6s_v2_base": 11.5,
    "yolov6m_v2_base": 27.7,
    "yolov6l_v2_base": 58.5,
}
# the published Lite counts keep the batch norms of the depthwise-pointwise pairs: up to 1.5 % above the fused count
PUBLISHED_LITE_MILLIONS = {"yolov6lite_s": 0.55, "yolov6lite_m": 0.79, "yolov6lite_l": 1.09}


def golden_values(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The weights that the golden files were made with: drawn by the entry's own name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape)
    if leaf in ("running_mean", "bias"):
        return rng.normal(0, 0.1, shape)
    if leaf == "alpha" or (leaf == "weight" and len(shape) == 1):
        return rng.uniform(0.3, 0.9, shape)
    return rng.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape)


def fill(model: Detector) -> None:
    for name, value in model.state_dict().items():
        if not name.endswith(AS_BUILT):
            value.copy_(torch.from_numpy(golden_values(name, tuple(value.shape))))


def relative_error(found: torch.Tensor, expected: NDArray[np.float32]) -> float:
    return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def without_numbers(name: str, *, deploy: bool = False) -> Detector:
    return known_outline(get_spec(name), deploy)


@pytest.mark.parametrize("tag", GOLDEN_TAGS)
def test_equals_the_official_implementation(shared: Path, tag: str) -> None:
    golden = json.loads((shared / "golden" / f"{tag}.json").read_text())
    arrays = np.load(shared / "golden" / f"{tag}.npz")
    entries = {
        name: tuple(shape)
        for name, shape in golden["state_dict"].items()
        if not any(part in name for part in TRAINING_ONLY)
    }
    dropped = sum(int(np.prod(shape)) for name, shape in golden["state_dict"].items() if name not in entries)

    model = build(tag, golden["num_classes"]).eval()
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == entries
    assert parameters(model) == golden["params"] - dropped

    fill(model)
    size = golden["input_size"]
    image = np.random.default_rng(0).uniform(0, 1, (1, 3, size, size)).astype(np.float32)
    with torch.no_grad():
        necks = model.features(torch.from_numpy(image))
        detections = model.detect(necks)
    assert len(necks) == sum(key.startswith("neck") for key in arrays.files)
    # FP32 rounding of another order of summation is about 1e-6; boxes are pixels, so scores get their own bound
    for level, neck in enumerate(necks):
        assert relative_error(neck, arrays[f"neck{level}"]) < 1e-5
    assert relative_error(detections, arrays["detections"]) < 1e-5
    assert relative_error(detections[..., 5:], arrays["detections"][..., 5:]) < 1e-5


def test_golden_tags_are_complete(shared: Path) -> None:
    assert {path.stem for path in (shared / "golden").glob("yolov6*.json")} == set(GOLDEN_TAGS)


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_MILLIONS.items())
def test_fused_size_is_the_published_one(name: str, millions: float) -> None:
    digits = len(str(millions).partition(".")[2])
    assert parameters(without_numbers(name, deploy=True)) / 1e6 == pytest.approx(millions, abs=0.5 * 10**-digits)


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_LITE_MILLIONS.items())
def test_lite_size_is_the_published_one(name: str, millions: float) -> None:
    assert parameters(without_numbers(name, deploy=True)) / 1e6 == pytest.approx(millions, rel=0.015)


# every architecture, and every style in a plain and in a CSP network
BUILT_NAMES = (
    *(name for name in model_names() if name in ARCHITECTURES or "lite" in name),
    *(f"{name}_{style}" for name in ("yolov6n", "yolov6m_v2") for style in STYLE_SUFFIXES),
)


@pytest.mark.parametrize("name", BUILT_NAMES)
def test_every_architecture_and_style_builds_both_forms(name: str) -> None:
    trained, deployed = without_numbers(name), without_numbers(name, deploy=True)
    spec = trained.spec
    assert spec.name == name
    assert len(spec.head_channels) == len(spec.strides)
    assert parameters(deployed) <= parameters(trained)
    state = deployed.state_dict()
    # a fused model holds convolutions with bias and the few numbers between them, and no batch norm
    others = set(state) - {f"{layer}.{part}" for layer in layer_ids(deployed) for part in ("weight", "bias")}
    assert all(entry.endswith(("alpha", "detect.proj", "proj_conv.weight")) for entry in others)
    assert "detect.proj_conv" not in layer_ids(deployed)


# one of every block style, stage, neck and pooling
FORWARD_NAMES = (
    "yolov6n",
    "yolov6n_v2",
    "yolov6n_qav1",
    "yolov6n_v2_hs",
    "yolov6n_v2_opt",
    "yolov6n_base",
    "yolov6n_silu",
    "yolov6n6",
    "yolov6s_v2_base",
    "yolov6s_mbla_relu",
    "yolov6lite_l",
)


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("name", FORWARD_NAMES)
def test_forward_on_a_batch_of_wide_images(name: str, deploy: bool) -> None:
    torch.manual_seed(0)
    model = build(name, num_classes=3, deploy=deploy).eval()
    images = torch.rand(2, 3, 64, 128)
    cells = sum((64 // stride) * (128 // stride) for stride in model.spec.strides)
    with torch.no_grad():
        detections = model(images)
        single = model(images[1:])
    assert detections.shape == (2, cells, 8)
    torch.testing.assert_close(detections[1:], single, rtol=1e-4, atol=1e-4)  # another batch, another kernel


@pytest.mark.parametrize("name", ["yolov6n", "yolov6s_mbla", "yolov6lite_s"])
def test_training_output_decodes_to_the_detections(name: str) -> None:
    model = build(name, num_classes=3)
    model.eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        detections = model(images)
        model.detect.training = True  # the head's own switch: batch norms keep their statistics
        output = model.detect(model.features(images))
    assert output.distances.shape[-1] == 4 * model.spec.bins
    assert tuple(feature.shape[1] for feature in output.features) == model.spec.head_channels
    assert torch.equal(model.detect.decode(output), detections)


def test_all_trained_weights_get_gradients() -> None:
    model = build("yolov6n_v2", num_classes=3).train()
    output = model(torch.rand(2, 3, 64, 64))
    # fresh prediction layers have zero weights and pass no gradient back: reach the rest through the neck
    loss = output.scores.sum() + output.distances.sum() + sum(feature.sum() for feature in output.features)
    loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"detect.proj", "detect.proj_conv.weight"}


def test_training_suffixes_mean_the_plain_model() -> None:
    assert get_spec("yolov6n_fuseab") == get_spec("yolov6n")
    assert get_spec("yolov6s_distill_ns") == get_spec("yolov6s")


def test_a_spec_can_be_changed_and_built() -> None:
    spec = replace(get_spec("yolov6n_v2", 2), style="qarepvgg", name="mine")
    model = build(spec)
    assert model.spec is spec
    assert "backbone.stem.rbr_1x1.weight" in model.state_dict()


@pytest.mark.parametrize("name", ["yolov6n", "yolov6lite_s", "yolov6m6_qa"])
def test_spec_survives_json(name: str) -> None:
    spec = get_spec(name, 7)
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("change", [{"style": "rep_vgg"}, {"strides": "8"}, {"colour": 1}])
def test_a_wrong_description_is_refused(change: dict[str, object]) -> None:
    values = json.loads(get_spec("yolov6n").to_json()) | change
    with pytest.raises(RepqError, match=next(iter(change))):
        ModelSpec.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_no_description_is_refused(text: str) -> None:
    with pytest.raises(RepqError, match="model description"):
        ModelSpec.from_json(text)


@pytest.mark.parametrize(
    ("name", "closest"),
    [("yolov6ss", "yolov6s"), ("yolov6n_v2_qaa", "yolov6n_v2_qa"), ("yolov6lites", "yolov6lite_s"), ("", "yolo")],
)
def test_an_unknown_name_is_refused_with_the_closest_ones(name: str, closest: str) -> None:
    with pytest.raises(RepqError, match=closest):
        build(name)


@pytest.mark.parametrize("name", ["yolov6lite_s_qa", "yolov6n_v2_hs_qa", "yolov6x", "yolov6n_base_base"])
def test_combinations_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(RepqError, match="no model named"):
        get_spec(name)


def test_no_classes_is_refused() -> None:
    with pytest.raises(RepqError, match="at least one class"):
        get_spec("yolov6n", 0)


@pytest.mark.parametrize("size", [(630, 640), (0, 32), (48, 32)])
def test_a_size_between_strides_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(RepqError, match="multiples of 32"):
        get_spec("yolov6n").check_size(*size)


def test_every_name_is_its_own() -> None:
    assert len(set(model_names())) == len(model_names())
    assert all(get_spec(name).name == name for name in model_names())
