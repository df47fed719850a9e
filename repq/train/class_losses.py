"""Losses of class scores: binary cross entropies that weigh easy points down, each in its own way."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

ClassLoss = Literal["varifocal", "focal", "quality_focal", "poly"]
GAMMA = 2.0
ALPHA = 0.25  # weight of positives in the focal loss
VARIFOCAL_ALPHA = 0.75  # weight of negatives in the varifocal loss
POLY_EPSILON = 1.0


def class_loss(scores: Tensor, labels: Tensor, quality: Tensor, kind: ClassLoss) -> Tensor:
    """Loss of each score, of shape (…, C) like the arguments. With p the score, y the label and q the quality:

    - ``varifocal``: ``BCE(p, q)`` times q where y = 1, ``0.75 p^2`` elsewhere (Zhang et al. 2008.13367, equation 2).
    - ``quality_focal``: ``|q - p|^2 BCE(p, q)`` (Li et al. 2006.04388, equation 3).
    - ``focal``: ``a (1 - r)^2 BCE(p, y)``, r being p and a = 0.25 where y = 1, r = 1 - p and a = 0.75 elsewhere
      (Lin et al. 1708.02002, equation 5).
    - ``poly``: ``focal`` + ``a (1 - r)^3`` (Leng et al. 2204.12511, Poly-1 form of the focal loss, section 5).

    The weights take part in the gradient.

    Args:
        scores: after the sigmoid.
        labels: one-hot; zeros for points without an object.
        quality: the score that a point should give, 0..1; zero where the label is.
    """
    if kind == "varifocal":
        weights = VARIFOCAL_ALPHA * scores.pow(GAMMA) * (1 - labels) + quality * labels
        return F.binary_cross_entropy(scores, quality, reduction="none") * weights
    if kind == "quality_focal":
        return F.binary_cross_entropy(scores, quality, reduction="none") * (quality - scores).abs().pow(GAMMA)
    wrong = scores * (1 - labels) + (1 - scores) * labels
    alpha = ALPHA * labels + (1 - ALPHA) * (1 - labels)
    focal = alpha * wrong.pow(GAMMA) * F.binary_cross_entropy(scores, labels, reduction="none")
    return focal if kind == "focal" else focal + POLY_EPSILON * alpha * wrong.pow(GAMMA + 1)
