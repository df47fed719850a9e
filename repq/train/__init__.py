"""Training: assignment, losses, updates, and the loop over them."""

from repq.distributed import Processes, joined_processes
from repq.train.assigner import Assignment, Objects, pad_objects
from repq.train.board import Board, open_board
from repq.train.boxes import AnchorGrid, anchor_grid
from repq.train.distill import Teacher
from repq.train.epochs import epoch_line, epochs_csv
from repq.train.loop import TrainOutcome, doubtful_settings, fine_tuned, settings_for, short_training, train
from repq.train.objective import Objective, objective_of
from repq.train.optimizer import MovingAverage, Rates
from repq.train.trainer import Trainer
from repq.train.update import Updater

__all__ = [
    "AnchorGrid",
    "Assignment",
    "Board",
    "MovingAverage",
    "Objective",
    "Objects",
    "Processes",
    "Rates",
    "Teacher",
    "TrainOutcome",
    "Trainer",
    "Updater",
    "anchor_grid",
    "doubtful_settings",
    "epoch_line",
    "epochs_csv",
    "fine_tuned",
    "joined_processes",
    "objective_of",
    "open_board",
    "pad_objects",
    "settings_for",
    "short_training",
    "train",
]
