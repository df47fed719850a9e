"""Multiply-adds per layer."""

from __future__ import annotations

import pytest
import torch

from repq.errors import RepqError
from repq.layers import LayerId
from repq.model import build, count_macs, counting_macs, layer_ids


def test_matches_counting_by_hand() -> None:
    model = build("yolov6n_v2", num_classes=3, deploy=True)
    counts = count_macs(model, (64, 96))
    assert tuple(counts) == layer_ids(model)
    assert counts[LayerId("backbone.stem.rbr_reparam")] == 32 * 48 * 16 * 3 * 9
    # each input pixel of the transposed convolution makes 2x2 pixels of each of the 64 outputs, from 64 inputs
    assert counts[LayerId("neck.upsample0.upsample_transpose")] == 2 * 3 * 64 * 64 * 4
    assert counts[LayerId("detect.cls_preds.0")] == 8 * 12 * 3 * 32


def test_depthwise_layers_count_one_input_channel() -> None:
    model = build("yolov6lite_s", deploy=True)
    assert count_macs(model, 64)[LayerId("neck.downsample2.conv_dw_1")] == 4 * 4 * 96 * 25


@pytest.mark.parametrize(
    ("name", "imgsz", "published_gflops"),
    [
        ("yolov6n", 640, 11.4),
        ("yolov6s", 640, 45.3),
        ("yolov6m", 640, 85.8),
        ("yolov6l", 640, 150.7),
        ("yolov6n_v2", 640, 11.1),
        ("yolov6t", 640, 24.9),
        ("yolov6s6", 1280, 198.0),
        ("yolov6x_mbla", 640, 199.0),
        ("yolov6m_base", 640, 72.3),
    ],
)
def test_agrees_with_the_published_work(name: str, imgsz: int, published_gflops: float) -> None:
    with torch.device("meta"):
        model = build(name, deploy=True)
    # published figures count pooling and activations too: one to two percent more than convolutions alone
    assert 2e-9 * sum(count_macs(model, imgsz).values()) == pytest.approx(published_gflops, rel=0.02)


def test_leaves_the_model_alone() -> None:
    model = build("yolov6lite_s", num_classes=3, deploy=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, 64)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["yolov6n_v2", "yolov6lite_s", "yolox_nano"])
def test_runs_on_several_images_tell_the_work_of_one(name: str) -> None:
    model = build(name, 3, deploy=True).eval()
    with counting_macs(model) as counts, torch.no_grad():
        model(torch.zeros(3, 3, 64, 128))
    assert counts == count_macs(model, (64, 128))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_each_caller_gets_counts_of_its_own() -> None:
    model = build("yolov6n_v2", 3, deploy=True)
    wanted = dict(count_macs(model, 64))
    count_macs(model, 64).clear()
    assert count_macs(model, 64) == wanted != count_macs(model, 96)
    assert count_macs(build("yolov6n_v2", 2, deploy=True), 64) != wanted


def test_a_size_between_strides_is_refused() -> None:
    with pytest.raises(RepqError, match="multiples of 64"):
        count_macs(build("yolov6lite_s", deploy=True), 96)
