"""RepOptimizer: train a plain kernel as if it had branches (arXiv 2205.15242)."""

from repq.model import BranchScales
from repq.reparam.repopt.kernels import branch_factors, gradient_multiplier, merged_kernel, reinitialize
from repq.reparam.repopt.optimizers import RepAdamW, RepSGD, build_rep_optimizer
from repq.reparam.repopt.scales import (
    RepScales,
    extract_scales,
    has_scales,
    load_scales,
    matched,
    save_scales,
    search_and_target,
    takes_scales,
)

__all__ = [
    "BranchScales",
    "RepAdamW",
    "RepSGD",
    "RepScales",
    "branch_factors",
    "build_rep_optimizer",
    "extract_scales",
    "gradient_multiplier",
    "has_scales",
    "load_scales",
    "matched",
    "merged_kernel",
    "reinitialize",
    "save_scales",
    "search_and_target",
    "takes_scales",
]
