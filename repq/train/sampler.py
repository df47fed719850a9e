"""The order of images in an epoch: every image once, or images with rare classes more often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from repq.data import ImageRecord


def image_weights(records: Sequence[ImageRecord], balance: float) -> NDArray[np.float64]:
    """How often each image is drawn in relation to the others: ``(most / n_c) ^ balance`` of its rarest class c.

    n_c is the number of images with class c, and most the largest of these numbers. Images without objects weigh 1.
    With ``balance`` 1, images of a class come up about as often as those of any other; a half is the usual compromise
    (the repeat factors of Gupta et al., LVIS, 1908.03195, section 4.2, have this root).
    """
    classes = [np.unique(record.labels[:, 0]).astype(np.int64) for record in records]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *classes]))
    if not counts.any():
        return np.ones(len(records))
    factors = (counts.max() / np.maximum(counts, 1)) ** balance
    return np.array([factors[own].max(initial=1.0) for own in classes])


def epoch_order(weights: NDArray[np.float64], seed: int, epoch: int) -> Sequence[int]:
    """As many images as there are, in random order: each once for equal weights, else drawn with replacement.

    Drawing is systematic: an image comes up ``count * weight / sum`` times, rounded down or up by chance.
    """
    rng = np.random.default_rng((seed, epoch))
    count = len(weights)
    if (weights == weights[0]).all():
        return rng.permutation(count).tolist()
    shuffled = rng.permutation(count)
    steps = np.cumsum(weights[shuffled]) / weights.sum() * count
    drawn = np.searchsorted(steps, np.arange(count) + rng.random(), side="right")
    return rng.permutation(shuffled[np.minimum(drawn, count - 1)]).tolist()
