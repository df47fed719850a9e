"""What fusing did."""

from __future__ import annotations

from repq.results.base import Range, Result


class BlockFusion(Result):
    """One block before and after fusing. Errors compare the block's output on the same real input."""

    block: str
    kind: str
    layer: str
    max_abs_error: float
    max_rel_error: float  # max_abs_error over the output's range (max - min)
    weight_range_before: Range  # over all branch kernels, before batch norm is folded in
    weight_range_after: Range


class FusionReport(Result):
    """The proof of one fused model. ``max_*`` are of the whole model's detections."""

    model: str
    blocks: tuple[BlockFusion, ...]
    max_abs_error: float
    max_rel_error: float
    images: int
    tolerance: float
