"""Folds a trained detector into its deployed form: one convolution with bias per block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from repq.errors import RepqError
from repq.memory import copied
from repq.model import Affine, Detector, Foldable, outline


@dataclass(frozen=True)
class Folded:
    """One convolution of the fused model and what it stands for.

    Attributes:
        block: path of the block in both models.
        kind: class name of the block.
        layer: path of the fused convolution.
        kernels: the branch kernels before folding, as trained.
        affine: the fused kernel and bias, float64.
        norms: the batch norms that went into it.
    """

    block: str
    kind: str
    layer: str
    kernels: tuple[Tensor, ...]
    affine: Affine
    norms: tuple[nn.BatchNorm2d, ...] = ()


def fuse(model: Detector) -> Detector:
    """The deployed form of a detector, in eval mode: the same outputs, no batch norm, one kernel per block.

    Computes in float64 and rounds once to the model's own type. The input is untouched; a detector that is deployed
    already comes back as a copy.

    Raises:
        RepqError: a part of the deployed form has no counterpart in the model.
    """
    return copied(model).eval() if model.deploy else assemble(model, list(folded_blocks(model)))


def folded_blocks(model: Detector) -> Iterator[Folded]:
    """Fold every block of a trained detector, one after the other, in module order."""
    for path, module in model.named_modules():
        for fold in module.folds() if isinstance(module, Foldable) else ():
            yield Folded(path, type(module).__name__, f"{path}.{fold.layer}", fold.kernels, fold.affine, fold.norms)


def assemble(model: Detector, blocks: Sequence[Folded]) -> Detector:
    """Put folded blocks, and everything of ``model`` that needs no folding, into a new deployed detector."""
    dtype = next(model.parameters()).dtype
    fused = outline(model.spec, True)
    trained = model.state_dict()
    state: dict[str, Tensor] = {}
    for block in blocks:
        for entry, value in (("weight", block.affine.weight), ("bias", block.affine.bias)):
            state[f"{block.layer}.{entry}"] = value.to(dtype)
    for entry in fused.state_dict().keys() - state.keys():
        if entry not in trained:
            raise RepqError(
                f"{model.spec.name} cannot be fused",
                found=f"{entry} has no counterpart in the trained model",
                fix="report this as a fault of repq, with the name of the model",
            )
        state[entry] = trained[entry].clone()
    fused.load_state_dict(state, assign=True)
    return fused.eval()
