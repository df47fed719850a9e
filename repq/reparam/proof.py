"""Fuses and proves it: every block's output, and the whole model's, before and after on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repq.errors import ToleranceError
from repq.model import Detector
from repq.reparam.fuse import Folded, assemble, folded_blocks, fuse
from repq.results import BlockFusion, FusionReport, Range

_IMAGES_AT_ONCE = 4


@dataclass
class Difference:
    """Running comparison of two equally shaped tensors, ``before`` being the reference."""

    max_abs_error: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, before: Tensor, after: Tensor) -> None:
        """Take one more pair into account; a value that is not finite makes the error infinite."""
        error = (after.double() - before.double()).abs().max().item()
        self.max_abs_error = max(self.max_abs_error, error if error == error else float("inf"))
        self.low, self.high = min(self.low, before.min().item()), max(self.high, before.max().item())

    @property
    def max_rel_error(self) -> float:
        """``max_abs_error`` over the range (max - min) of the reference; infinite for an error on a constant."""
        if self.max_abs_error == 0:
            return 0.0
        extent = self.high - self.low
        return self.max_abs_error / extent if extent > 0 else float("inf")


def fuse_with_proof(model: Detector, images: Tensor, tolerance: float) -> tuple[Detector, FusionReport]:
    """Fuse a detector and compare it with itself on real images.

    Every block of the trained model hands its own input to its fused counterpart, in one pass and without keeping any
    activation, so that a row shows the error of that block alone. A block that becomes two convolutions has a row for
    each, both with the error of the block's output. The whole model's error is the larger of those of its boxes and of
    its scores, each relative to its own range.

    Args:
        model: the detector, trained or deployed (which gives no rows and no error); untouched.
        images: (B, 3, H, W).
        tolerance: bound of every relative error.

    Raises:
        ToleranceError: a block's or the whole model's relative error is above ``tolerance``; the message names it.
    """
    blocks = [] if model.deploy else list(folded_blocks(model))
    fused = assemble(model, blocks) if blocks else fuse(model)
    errors = {block.block: Difference() for block in blocks}
    layout, boxes, scores = model.spec.layout, Difference(), Difference()
    with torch.no_grad(), _evaluating(model), _comparing(model, fused, errors):
        for part in images.split(_IMAGES_AT_ONCE):
            before, after = model(part), fused(part)
            boxes.add(layout.boxes_of(before), layout.boxes_of(after))
            scores.add(layout.scores_of(before), layout.scores_of(after))
    report = FusionReport(
        model=model.spec.name,
        blocks=tuple(_row(block, errors[block.block]) for block in blocks),
        max_abs_error=max(boxes.max_abs_error, scores.max_abs_error),
        max_rel_error=max(boxes.max_rel_error, scores.max_rel_error),
        images=len(images),
        tolerance=tolerance,
    )
    check(report)
    return fused, report


def check(report: FusionReport) -> None:
    """Compare a report with its own tolerance.

    Raises:
        ToleranceError: a relative error is above it; the message names the worst block.
    """
    worst = max(report.blocks, key=lambda block: block.max_rel_error, default=None)
    fix = "look at the block's batch-norm statistics (tiny variances), or allow more with --tolerance"
    if worst is not None and not worst.max_rel_error <= report.tolerance:
        raise ToleranceError(
            f"fusing changed the output of {worst.block}",
            found=f"relative error {worst.max_rel_error:.2e} ({worst.kind}), tolerance {report.tolerance:.2e}",
            fix=fix,
        )
    if not report.max_rel_error <= report.tolerance:
        raise ToleranceError(
            f"fusing changed the detections of {report.model}",
            found=f"relative error {report.max_rel_error:.2e}, tolerance {report.tolerance:.2e}"
            + (f"; the worst block is {worst.block} with {worst.max_rel_error:.2e}" if worst else ""),
            fix=fix,
        )


def _row(block: Folded, error: Difference) -> BlockFusion:
    return BlockFusion(
        block=block.block,
        kind=block.kind,
        layer=block.layer,
        max_abs_error=error.max_abs_error,
        max_rel_error=error.max_rel_error,
        weight_range_before=_range(block.kernels),
        weight_range_after=_range((block.affine.weight,)),
    )


def _range(kernels: Sequence[Tensor]) -> Range:
    return min(kernel.min().item() for kernel in kernels), max(kernel.max().item() for kernel in kernels)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and every module back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _comparing(model: Detector, fused: Detector, errors: dict[str, Difference]) -> Iterator[None]:
    """While active, every forward pass of ``model`` runs the fused blocks on the same inputs and adds to ``errors``."""

    def comparison(block: str) -> Any:
        counterpart = fused.get_submodule(block)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            errors[block].add(output, counterpart(*inputs))

        return hook

    handles = [model.get_submodule(block).register_forward_hook(comparison(block)) for block in errors]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
