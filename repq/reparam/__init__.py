"""Re-parameterization: of structures (fusing, with its proof) and of optimizers (training with branch scales)."""

from repq.reparam.fuse import Folded, folded_blocks, fuse
from repq.reparam.proof import Difference, fuse_with_proof
from repq.reparam.repopt import (
    BranchScales,
    RepAdamW,
    RepScales,
    RepSGD,
    build_rep_optimizer,
    extract_scales,
    gradient_multiplier,
    has_scales,
    load_scales,
    merged_kernel,
    reinitialize,
    save_scales,
)

__all__ = [
    "BranchScales",
    "Difference",
    "Folded",
    "RepAdamW",
    "RepSGD",
    "RepScales",
    "build_rep_optimizer",
    "extract_scales",
    "folded_blocks",
    "fuse",
    "fuse_with_proof",
    "gradient_multiplier",
    "has_scales",
    "load_scales",
    "merged_kernel",
    "reinitialize",
    "save_scales",
]
