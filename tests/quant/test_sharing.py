"""Layers that must share a scale: the largest of their own, or one from the histogram of all their values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from repq.layers import LayerId, QuantPlan
from repq.model import Detector, build, layer_ids
from repq.quant import insert_quantizers, observe, quantize, scale_table
from repq.quant.calibration.histogram import Histogram
from repq.quant.convolution import is_depthwise
from repq.recipe import CalibrationConfig, PtqConfig
from repq.scales import TensorScale

GROUP = (LayerId("backbone.stem.rbr_reparam"), LayerId("detect.stems.0.block.conv"))


@pytest.fixture(scope="module")
def fused() -> Detector:
    torch.manual_seed(0)
    return build("yolov6n_v2", 3, deploy=True).eval()


def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def histogram(values: Tensor, bins: int = 256) -> Histogram:
    result = Histogram("x", bins)
    result.add(values)
    return result


def state(found: Histogram) -> tuple:
    return found.exponent, found.minimum, found.maximum, found.counts.tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-6, 6), st.integers(0, 2**31), st.booleans()), min_size=1, max_size=4),
)
def test_the_joint_histogram_is_that_of_all_values_at_once(parts: list[tuple[float, int, bool]]) -> None:
    tensors = []
    for scale, seed, positive in parts:
        values = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 10**scale
        tensors.append(values.clamp(min=0) if positive else values)
    distinct = {tuple(values.tolist()): values for values in tensors}
    together = histogram(torch.cat(list(distinct.values())))
    assert state(Histogram.joint([histogram(values) for values in tensors])) == state(together)


def test_zeros_alone_and_readers_of_one_tensor() -> None:
    zeros, values = torch.zeros(8), torch.linspace(-1, 2, 50)
    assert state(Histogram.joint([histogram(zeros), histogram(values)])) == state(histogram(torch.cat([zeros, values])))
    assert state(Histogram.joint([histogram(values), histogram(values)])) == state(histogram(values))


def test_parts_stay_as_they_were() -> None:
    small, large = histogram(torch.linspace(0, 1, 9)), histogram(torch.linspace(0, 100, 9))
    before = state(small)
    Histogram.joint([small, large])
    assert state(small) == before


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("how", ["largest", "joint"])
def test_grouped_layers_get_one_scale_and_others_keep_theirs(how: str, scheme: str, fused: Detector) -> None:
    calibration = CalibrationConfig(method="max", bins=256)
    config = PtqConfig(scheme=scheme, share_scales=how, calibration=calibration)  # type: ignore[arg-type]
    result = quantize(fused, [images()], config, groups=[GROUP])
    assert result.own_scales is not None and result.shared_groups == 1
    own, shared = result.own_scales, scale_table(result.model)
    first, second = (shared[layer].input for layer in GROUP)
    assert (first.scale, first.zero_point) == (second.scale, second.zero_point)
    others = [layer for layer in own if layer not in GROUP]
    assert [shared[layer].input.scale for layer in others] == [own[layer].input.scale for layer in others]
    low = min(lowest(own[layer].input) for layer in GROUP)
    high = max(highest(own[layer].input) for layer in GROUP)
    # of the method max both ways cover all values; a zero point is rounded to an integer
    assert lowest(first) == pytest.approx(low, abs=float(first.scale))
    assert highest(first) == pytest.approx(high, abs=float(first.scale))


def test_no_groups_change_nothing(fused: Detector) -> None:
    config = PtqConfig(share_scales="joint", calibration=CalibrationConfig(method="max", bins=256))
    assert quantize(fused, [images()], config).own_scales is None


def lowest(scale: TensorScale) -> float:
    bottom = -scale.q_max if scale.dtype == "int8" else scale.q_min
    return float((bottom - int(scale.zero_point)) * scale.scale)


def highest(scale: TensorScale) -> float:
    return float((scale.q_max - int(scale.zero_point)) * scale.scale)


def test_an_observation_keeps_what_is_in_no_group(fused: Detector) -> None:
    model = insert_quantizers(fused, QuantPlan(GROUP), PtqConfig()).eval()
    seen = observe(model, GROUP, [torch.rand(1, 3, 64, 64)], bins=256)
    joint = seen.joint([GROUP])
    assert joint.histograms[GROUP[0]] is joint.histograms[GROUP[1]]
    assert seen.joint([]).histograms == seen.histograms
    assert joint.images == seen.images


@pytest.mark.parametrize("how", ["largest", "joint"])
def test_layers_with_a_scale_for_every_channel_share_none(how: str) -> None:
    """Groups are counted, and go into the checkpoint, as the layers' scales really are."""
    detector = build("yolov6lite_s", 3, deploy=True).eval()
    depthwise = [name for name, module in detector.named_modules() if is_depthwise(module)][:3]
    dense = [name for name in layer_ids(detector) if name not in depthwise][:4]
    groups = [(dense[0], dense[1]), (dense[2], depthwise[0]), (depthwise[1], dense[3], dense[0]), depthwise[1:3]]
    calibration = CalibrationConfig(method="max", bins=256)
    config = PtqConfig(share_scales=how, calibration=calibration)  # type: ignore[arg-type]
    assert quantize(detector, [images()], config, groups=groups).groups == tuple(map(tuple, groups))
    by_channel = config.model_copy(update={"correct": config.correct.model_copy(update={"channel_inputs": True})})
    found = quantize(detector, [images()], by_channel, groups=groups)
    assert found.groups == ((dense[0], dense[1]), (dense[3], dense[0])) and found.shared_groups == 2
    scales = scale_table(found.model)
    assert all(scales[layer].input.axis is None for group in found.groups for layer in group)
