"""How sure a difference in AP is: a paired bootstrap over images (Efron and Tibshirani, 1993, chapters 6 and 13)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repq.evaluate.matches import Matches


@dataclass(frozen=True, eq=False)
class ApDrop:
    """How much AP one model loses against another on the same images, and how that varies with the images.

    Attributes:
        drop: AP of the reference minus AP of the other, over all images.
        samples: (R,) the same over R resamples of the images.
    """

    drop: float
    samples: NDArray[np.float64]

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The percentile interval that holds ``confidence`` of the resamples."""
        tail = (1 - confidence) / 2
        low, high = np.quantile(self.samples, [tail, 1 - tail])
        return float(low), float(high)

    @property
    def standard_error(self) -> float:
        """How far the drop is from that over all images of the kind, one standard deviation."""
        return float(self.samples.std(ddof=1))


def resample_weights(images: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """(R, images): how many times each image is drawn, ``images`` draws with replacement a row."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples).astype(float)


def bootstrap_drop(reference: Matches, other: Matches, *, resamples: int = 1000, seed: int = 0) -> ApDrop:
    """Compare two models image by image: both see the same resamples, so what is hard in an image cancels out."""
    weights = resample_weights(reference.images, resamples, seed)
    samples = reference.resampled_ap(weights) - other.resampled_ap(weights)
    return ApDrop(reference.ap() - other.ap(), samples)
