"""Folds a trained detector into its deployed form: one convolution with bias per block."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from repq.errors import RepqError
from repq.model import (
    ConvModule,
    Detector,
    DPBlock,
    LinearAddBlock,
    QARepVGGBlock,
    QARepVGGBlockV2,
    ReparamBlock,
    RepVGGBlock,
    build,
)
from repq.reparam.algebra import (
    Affine,
    after_batch_norm,
    average_affine,
    conv_affine,
    identity_affine,
    scaled,
    total,
)


@dataclass(frozen=True)
class Folded:
    """One convolution of the fused model and what it stands for.

    Attributes:
        block: path of the block in both models.
        kind: class name of the block.
        layer: path of the fused convolution.
        kernels: the branch kernels before folding, as trained.
        affine: the fused kernel and bias, float64.
    """

    block: str
    kind: str
    layer: str
    kernels: tuple[Tensor, ...]
    affine: Affine


def fuse(model: Detector) -> Detector:
    """The deployed form of a detector, in eval mode: the same outputs, no batch norm, one kernel per block.

    Computes in float64 and rounds once to the model's own type. The input is untouched; a detector that is deployed
    already comes back as a copy.

    Raises:
        RepqError: a part of the deployed form has no counterpart in the model.
    """
    return copy.deepcopy(model).eval() if model.deploy else assemble(model, list(folded_blocks(model)))


def folded_blocks(model: Detector) -> Iterator[Folded]:
    """Fold every block of a trained detector, one after the other, in module order."""
    for path, module in model.named_modules():
        for suffix, kernels, affine in _folds(module):
            yield Folded(path, type(module).__name__, f"{path}.{suffix}", kernels, affine)


def assemble(model: Detector, blocks: Sequence[Folded]) -> Detector:
    """Put folded blocks, and everything of ``model`` that needs no folding, into a new deployed detector."""
    first = next(model.parameters())
    fused = build(model.spec, deploy=True).to(first.device, first.dtype)
    state = fused.state_dict()
    trained = model.state_dict()
    for block in blocks:
        for entry, value in (("weight", block.affine.weight), ("bias", block.affine.bias)):
            state[f"{block.layer}.{entry}"] = value
    folded = {f"{block.layer}.{entry}" for block in blocks for entry in ("weight", "bias")}
    for entry in state.keys() - folded:
        if entry not in trained:
            raise RepqError(
                f"{model.spec.name} cannot be fused",
                found=f"{entry} has no counterpart in the trained model",
                fix="report this as a fault of repq, with the name of the model",
            )
        state[entry] = trained[entry]
    fused.load_state_dict(state)
    return fused.eval()


Branches = tuple[Tensor, ...]


def _folds(module: nn.Module) -> Iterator[tuple[str, Branches, Affine]]:
    """The convolutions that a block becomes: path below the block, kernels of its branches, folded result."""
    if isinstance(module, ConvModule):  # RealVGGBlock is one too
        yield "conv", *_conv_and_norm(module.conv, module.bn)
    elif isinstance(module, DPBlock):
        yield "conv_dw_1", *_conv_and_norm(module.conv_dw_1, module.bn_1)
        yield "conv_pw_1", *_conv_and_norm(module.conv_pw_1, module.bn_2)
    elif isinstance(module, RepVGGBlock):
        yield "rbr_reparam", *_repvgg(module)
    elif isinstance(module, QARepVGGBlock):
        yield "rbr_reparam", *_qarepvgg(module)
    elif isinstance(module, LinearAddBlock):
        yield "rbr_reparam", *_linear_add(module)


def _conv_and_norm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Branches, Affine]:
    """bn(conv(x))."""
    return (conv.weight,), after_batch_norm(conv_affine(conv), bn)


def _repvgg(block: RepVGGBlock) -> tuple[Branches, Affine]:
    """bn(conv3(x)) + bn(conv1(x)) [+ bn(x)] (RepVGG, section 3.3)."""
    dense, point = block.rbr_dense, block.rbr_1x1
    branches = [after_batch_norm(conv_affine(branch.conv), branch.bn) for branch in (dense, point)]
    if block.rbr_identity is not None:
        branches.append(after_batch_norm(_identity(block), block.rbr_identity))
    return (dense.conv.weight, point.conv.weight), total(*branches)


def _qarepvgg(block: QARepVGGBlock) -> tuple[Branches, Affine]:
    """bn(bn(conv3(x)) + conv1(x) [+ x [+ mean3(x)]]) (QARepVGG, section 4; the average is the second version's)."""
    dense = block.rbr_dense
    branches = [after_batch_norm(conv_affine(dense.conv), dense.bn), conv_affine(block.rbr_1x1)]
    if block.has_identity:
        branches.append(_identity(block))
    if isinstance(block, QARepVGGBlockV2) and block.rbr_avg is not None:
        branches.append(average_affine(block.out_channels, 1, 3, dense.conv.weight.device))
    return (dense.conv.weight, block.rbr_1x1.weight), after_batch_norm(total(*branches), block.bn)


def _linear_add(block: LinearAddBlock) -> tuple[Branches, Affine]:
    """bn(s3 conv3(x) + s1 conv1(x) [+ s0 x]) (RepOptimizer, section 3.2)."""
    branches = [
        scaled(conv_affine(block.conv), block.scale_conv.weight),
        scaled(conv_affine(block.conv_1x1), block.scale_1x1.weight),
    ]
    if block.scale_identity is not None:
        branches.append(scaled(_identity(block), block.scale_identity.weight))
    return (block.conv.weight, block.conv_1x1.weight), after_batch_norm(total(*branches), block.bn)


def _identity(block: ReparamBlock) -> Affine:
    return identity_affine(block.out_channels, 1, next(block.parameters()).device)
