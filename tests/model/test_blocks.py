"""Blocks and stages: which branches exist, and what they compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from repq.model.yolov6.blocks import (
    BlockKit,
    LinearAddBlock,
    PointConv,
    QARepVGGBlock,
    QARepVGGBlockV2,
    RealVGGBlock,
    ReparamBlock,
    RepVGGBlock,
)
from repq.model.yolov6.stages import _branch_lengths

BRANCHED = (RepVGGBlock, QARepVGGBlock, QARepVGGBlockV2, LinearAddBlock)


@pytest.mark.parametrize("block", [*BRANCHED, RealVGGBlock])
@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize(("before", "after", "stride"), [(4, 4, 1), (4, 6, 1), (4, 4, 2), (4, 6, 2)])
def test_shape(block: type, deploy: bool, before: int, after: int, stride: int) -> None:
    y = block(before, after, stride, deploy=deploy)(torch.randn(2, before, 8, 6))
    assert y.shape == (2, after, 8 // stride, 6 // stride)
    assert y.min() >= 0


@pytest.mark.parametrize("block", BRANCHED)
def test_deployed_form_is_one_convolution_with_bias(block: type[ReparamBlock]) -> None:
    assert set(block(4, 4, deploy=True).state_dict()) == {"rbr_reparam.weight", "rbr_reparam.bias"}


def test_bypass_exists_only_between_equal_shapes() -> None:
    assert "rbr_identity.weight" in RepVGGBlock(4, 4).state_dict()
    assert "scale_identity.weight" in LinearAddBlock(4, 4).state_dict()
    for before, after, stride in ((4, 6, 1), (4, 4, 2)):
        assert "rbr_identity.weight" not in RepVGGBlock(before, after, stride).state_dict()
        assert "scale_identity.weight" not in LinearAddBlock(before, after, stride).state_dict()


def normalized(x: Tensor) -> Tensor:
    """What a fresh batch norm in training mode gives: zero mean, unit variance per channel."""
    return functional.batch_norm(x, None, None, training=True, eps=1e-3)


def test_first_version_of_qarepvgg_lacks_the_average_only() -> None:
    torch.manual_seed(0)
    first, second = QARepVGGBlock(4, 4), QARepVGGBlockV2(4, 4)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 4, 7, 5)
    mean = functional.conv2d(x, torch.full((4, 1, 3, 3), 1 / 9), padding=1, groups=4)
    torch.testing.assert_close(second.pre_norm(x), first.pre_norm(x) + mean)
    dense = normalized(functional.conv2d(x, first.rbr_dense.conv.weight, padding=1))
    expected = normalized(dense + functional.conv2d(x, first.rbr_1x1.weight) + x).relu()
    torch.testing.assert_close(first(x), expected)


def test_linear_add_scales_every_branch_before_one_norm() -> None:
    torch.manual_seed(0)
    block = LinearAddBlock(4, 4)
    for scale in (block.scale_conv, block.scale_1x1, block.scale_identity):
        assert scale is not None
        torch.nn.init.uniform_(scale.weight, 0.3, 0.9)
    x = torch.randn(2, 4, 7, 5)
    s3, s1, s0 = (s.weight.view(-1, 1, 1, 1) for s in (block.scale_conv, block.scale_1x1, block.scale_identity))
    total = functional.conv2d(x, s3 * block.conv.weight, padding=1) + functional.conv2d(x, s1 * block.conv_1x1.weight)
    torch.testing.assert_close(block(x), normalized(total + s0.view(1, -1, 1, 1) * x).relu())


@pytest.mark.parametrize(("style", "act"), [("conv_relu", "ReLU"), ("conv_silu", "SiLU"), ("repvgg", "ReLU")])
def test_plain_convolutions_follow_the_style(style: str, act: str) -> None:
    kit = BlockKit(style, deploy=False)  # type: ignore[arg-type]
    assert type(kit.conv(2, 2, act=kit.activation).block.act).__name__ == act


@pytest.mark.parametrize(
    ("units", "lengths"), [(0, (1,)), (1, (1,)), (2, (1, 2)), (4, (2, 4)), (5, (4, 5)), (8, (4, 8))]
)
def test_mbla_branches(units: int, lengths: tuple[int, ...]) -> None:
    assert _branch_lengths(units) == lengths


@pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 8), (2, 7)])
def test_a_point_convolution_is_torchs_own(stride: int, size: int) -> None:
    layer, x = PointConv(3, 5, stride), torch.randn(2, 3, size, size, requires_grad=True)
    found = layer(x)
    expected = functional.conv2d(x, layer.weight, stride=stride)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(y.square().sum(), (x, layer.weight)) for y in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_gradient_keeps_the_layout(dtype: torch.dtype) -> None:
    """Two gradients of different layouts add up ten times slower."""
    x = torch.randn(2, 4, 9, 9).to(dtype, memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(PointConv(4, 5, 2).to(dtype)(x).square().sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
