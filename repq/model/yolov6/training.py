"""What YOLOv6 is trained for: class scores and box sides at points (YOLOv6 report, sections 2.2 and 2.3).

Only ``repq.train`` and what stands on it loads this module.
"""

from __future__ import annotations

from torch import Tensor

from repq.model.detector import Detector, TrainOutput
from repq.model.geometry import boxes_from_distances
from repq.recipe import TrainConfig
from repq.train.assigner import Objects
from repq.train.boxes import AnchorGrid
from repq.train.distill import Imitation, side_divergence
from repq.train.losses import DetectionLoss, LossOptions, detection_loss, iou_loss, side_lengths
from repq.train.objective import Objective


class DistanceObjective(Objective):
    """Boxes are distances from points to four sides, one number each or, with DFL, a distribution."""

    def __init__(self, model: Detector, config: TrainConfig) -> None:
        super().__init__(model, config)
        self.options = LossOptions.from_config(config)
        self.reg_max = model.spec.reg_max if model.spec.use_dfl else 0

    def loss(
        self,
        output: TrainOutput,
        objects: Objects,
        grid: AnchorGrid,
        *,
        warm_up: bool = False,
        progress: float = 0.0,
        imitation: Imitation | None = None,
    ) -> DetectionLoss:
        return detection_loss(
            output.scores,
            output.distances,
            objects,
            grid,
            reg_max=self.reg_max,
            options=self.options,
            warm_up=warm_up,
            imitation=imitation,
        )

    def box_divergence(self, own: TrainOutput, taught: TrainOutput, seen: Tensor, grid: AnchorGrid) -> Tensor:
        points = (grid.points / grid.strides).expand(len(seen), -1, -1)[seen]
        return box_divergence(own.distances[seen], taught.distances[seen], points, self.reg_max)


def box_divergence(own: Tensor, taught: Tensor, points: Tensor, reg_max: int) -> Tensor:
    """How far raw box sides of P points are from the teacher's: shape (P,).

    With DFL the divergence of the distributions (YOLOv6 report, 2209.02976, section 2.4.2); without, where a side is
    one number, ``1 - GIoU`` of the boxes.
    """
    if reg_max > 0:
        return side_divergence(own.unflatten(-1, (4, reg_max + 1)), taught.unflatten(-1, (4, reg_max + 1)))
    boxes, others = (boxes_from_distances(points, side_lengths(sides, reg_max)) for sides in (own, taught))
    return iou_loss(boxes, others, "giou")
