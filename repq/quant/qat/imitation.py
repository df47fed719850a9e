"""How far a quantized detector's answers are from its float model's: neck maps, class scores and boxes.

Every part is a sum over images that is divided by the sum of the teacher's scores where it sees something, as the
detection loss is divided by its target scores: so the parts of several batches add up, and images count by what is in
them. No labels take part.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from repq.model import TrainOutput
from repq.recipe import QatConfig
from repq.train.boxes import AnchorGrid
from repq.train.distill import class_divergence
from repq.train.losses import DetectionLoss
from repq.train.objective import Objective

SEEN = 0.03  # a point whose best score is lower shows no object: evaluation starts here


@dataclass(frozen=True)
class ImitationWeights:
    """How much each part counts, and the temperature of the channel-wise one."""

    features: float
    classes: float
    boxes: float
    temperature: float = 1.0

    @staticmethod
    def from_config(config: QatConfig) -> ImitationWeights:
        return ImitationWeights(config.feature_weight, config.class_weight, config.box_weight, config.temperature)


def imitation_loss(
    own: TrainOutput, taught: TrainOutput, grid: AnchorGrid, *, objective: Objective, weights: ImitationWeights
) -> DetectionLoss:
    """The weighted parts ``distill_features``, ``distill_class`` and ``distill_box``; those of weight 0 are left out.

    Args:
        own, taught: what student and teacher answer in training form to the same images.
        objective: of the detectors; it says how far boxes are apart.
    """
    best = taught.scores.amax(-1)
    seen = best >= SEEN
    content = (best * seen).sum(-1).clamp(min=1)
    sums = {}
    if weights.features:
        both = zip(own.features, taught.features, strict=True)
        pairs = [pair for pair in both if pair[0].shape == pair[1].shape]  # pruned maps have other channels
        of_images = sum((channel_divergence(*pair, weights.temperature) for pair in pairs), best.new_zeros(len(best)))
        sums["distill_features"] = (of_images * content).sum() * weights.features
    if weights.classes:
        sums["distill_class"] = class_divergence(own.scores, taught.scores) * weights.classes
    if weights.boxes:
        of_points = objective.box_divergence(own, taught, seen, grid)
        sums["distill_box"] = (of_points * best[seen]).sum() * weights.boxes
    return DetectionLoss(sums, content.sum())


def channel_divergence(own: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """``T^2 / C * sum over channels of KL(p || q)`` for maps (B, C, H, W): shape (B,).

    p and q are the softmax over the H W positions of a channel of ``taught / T`` and ``own / T``: what counts is where
    a channel looks, not how large its values are (Shu et al., "Channel-wise Knowledge Distillation for Dense
    Prediction", 2011.13256, section 3.2).
    """
    log_q, log_p = (maps.flatten(2).div(temperature).log_softmax(-1) for maps in (own, taught))
    divergence = (log_p.exp() * (log_p - log_q)).sum((1, 2))
    return divergence * (temperature**2 / own.shape[1])
