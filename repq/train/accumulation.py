"""How many batches make one update of the weights."""

from __future__ import annotations

import numpy as np

LEAST_UPDATES = 4000


def batches_per_update(batch: int, nominal_batch: int | None, total_batches: int) -> int:
    """``nominal_batch / batch``, rounded, but never so many that the training has fewer than ``LEAST_UPDATES`` updates.

    A training of up to ``LEAST_UPDATES`` batches updates after every batch, whatever its nominal batch: a small data
    set gains more from many updates than from smooth gradients. (The official code's fixed 64 images leave 292 images
    at 60 epochs 300 updates, of which the warm-up takes all.)

    Args:
        batch: images per batch.
        nominal_batch: images per update; None for one batch.
        total_batches: of the whole training.
    """
    if nominal_batch is None:
        return 1
    return max(1, min(round(nominal_batch / batch), total_batches // LEAST_UPDATES))


def update_sizes(batches: int, per_update: int) -> list[int]:
    """Split an epoch's batches into updates of at most ``per_update`` batches, as even as possible."""
    updates = -(-batches // per_update)
    return [len(part) for part in np.array_split(np.arange(batches), updates)]
