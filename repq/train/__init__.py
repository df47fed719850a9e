"""Training: assignment, losses, schedule, and the loop over them."""

from repq.distributed import Processes, current_processes, joined_processes
from repq.train.accumulation import batches_per_update
from repq.train.assigner import Assignment, Objects, assign_atss, assign_task_aligned, pad_objects
from repq.train.board import Board
from repq.train.boxes import AnchorGrid, anchor_grid
from repq.train.class_losses import class_loss
from repq.train.distill import Teacher
from repq.train.ema import MovingAverage
from repq.train.finetune import FineTuned, fine_tuned
from repq.train.iou_losses import iou_loss
from repq.train.loop import TrainOutcome, train
from repq.train.losses import DetectionLoss, LossOptions, detection_loss
from repq.train.objective import Objective, objective_of
from repq.train.optimizer import build_optimizer, parameter_groups
from repq.train.sampler import image_weights
from repq.train.schedule import Rates, rates_at
from repq.train.simota import assign_simota
from repq.train.update import Updater

__all__ = [
    "AnchorGrid",
    "Assignment",
    "Board",
    "DetectionLoss",
    "FineTuned",
    "LossOptions",
    "MovingAverage",
    "Objective",
    "Objects",
    "Processes",
    "Rates",
    "Teacher",
    "TrainOutcome",
    "Updater",
    "anchor_grid",
    "assign_atss",
    "assign_simota",
    "assign_task_aligned",
    "batches_per_update",
    "build_optimizer",
    "class_loss",
    "current_processes",
    "detection_loss",
    "fine_tuned",
    "image_weights",
    "iou_loss",
    "joined_processes",
    "objective_of",
    "pad_objects",
    "parameter_groups",
    "rates_at",
    "train",
]
