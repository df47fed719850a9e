"""What YOLOv6 is trained for: class scores and box sides at points (YOLOv6 report, sections 2.2 and 2.3).

Only ``repq.train`` and what stands on it loads this module.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from repq.model.detector import Detector, TrainOutput
from repq.model.geometry import boxes_from_distances
from repq.recipe import TrainConfig
from repq.train.assigner import Objects
from repq.train.boxes import AnchorGrid
from repq.train.losses import DetectionLoss, LossOptions, detection_loss, side_lengths
from repq.train.objective import Objective


class DistanceObjective(Objective):
    """Boxes are distances from points to four sides, one number each or, with DFL, a distribution."""

    def __init__(self, model: Detector, config: TrainConfig) -> None:
        super().__init__(model, config)
        self.options = LossOptions.from_config(config)
        self.reg_max = model.spec.reg_max if model.spec.use_dfl else 0
        self.bins = self.reg_max + 1 if self.reg_max else 0
        self.unused = () if self.reg_max else ("dfl_weight",)

    def loss(
        self,
        output: TrainOutput,
        objects: Objects,
        grid: AnchorGrid,
        *,
        warm_up: bool = False,
        progress: float = 0.0,
    ) -> DetectionLoss:
        found = detection_loss(
            output.scores,
            output.distances,
            objects,
            grid,
            reg_max=self.reg_max,
            options=self.options,
            warm_up=warm_up,
        )
        return replace(found, sums=self.with_l1_at_the_end(found.sums, progress))

    def corners(self, distances: Tensor, seen: Tensor, grid: AnchorGrid) -> Tensor:
        points, strides = (values.expand(len(seen), -1, -1)[seen] for values in (grid.points, grid.strides))
        return boxes_from_distances(points / strides, side_lengths(distances[seen], self.reg_max)) * strides
