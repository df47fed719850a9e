"""A TensorBoard to look at while a training runs. Needs the package ``tensorboard`` (extra ``train``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from repq.errors import TrainingError
from repq.results import EpochRow
from repq.train.loader import TrainBatch

IMAGES_SHOWN = 16
COLOUR = (0, 255, 0)


class Board:
    """Writes event files into ``folder``; to be closed.

    Raises:
        TrainingError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError("cannot write a TensorBoard", found=str(error), fix="pip install repq[train]") from None
        self._writer = SummaryWriter(str(folder))

    def show_row(self, row: EpochRow) -> None:
        """Add the scalars of an epoch: losses, learning rate, seconds, and AP where it was measured."""
        values = {f"loss/{name}": value for name, value in row.losses.items()}
        values |= {"learning_rate": row.learning_rate, "seconds": row.seconds}
        values |= {f"accuracy/{name}": value for name in ("ap", "ap50") if (value := getattr(row, name)) is not None}
        for name, value in values.items():
            self._writer.add_scalar(name, value, row.epoch)
        self._writer.flush()

    def show_batch(self, batch: TrainBatch, epoch: int) -> None:
        """Add one picture of a batch as it goes into the model."""
        self._writer.add_image("batch", draw_batch(batch), epoch, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


@contextmanager
def open_board(folder: Path, wanted: bool) -> Iterator[Board | None]:
    """A board while a training runs; None if none is wanted. Errors: as of `Board`."""
    board = Board(folder) if wanted else None
    try:
        yield board
    finally:
        if board is not None:
            board.close()


def draw_batch(batch: TrainBatch) -> NDArray[np.uint8]:
    """The first images of a batch with their boxes and class numbers, side by side: (H, W, 3) uint8 RGB."""
    tiles = []
    shown = torch.as_tensor(batch.images[:IMAGES_SHOWN]).cpu().numpy()
    for image, objects in zip(shown, batch.objects, strict=False):
        tile = image.copy()
        for class_id, *box in objects.tolist():
            x1, y1, x2, y2 = (round(side) for side in box)
            cv2.rectangle(tile, (x1, y1), (x2 - 1, y2 - 1), COLOUR)
            cv2.putText(tile, str(int(class_id)), (x1 + 2, y1 + 10), cv2.FONT_HERSHEY_PLAIN, 0.8, COLOUR)
        tiles.append(tile)
    columns = int(np.ceil(np.sqrt(len(tiles))))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    return np.concatenate(rows)
