"""Re-parameterization: of structures (fusing, with its proof) and of optimizers (`repq.reparam.repopt`)."""

from repq.reparam.fuse import folded_blocks, fuse
from repq.reparam.proof import fuse_with_proof

__all__ = ["folded_blocks", "fuse", "fuse_with_proof"]
