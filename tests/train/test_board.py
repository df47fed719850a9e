"""The drawn batch, and event files that TensorBoard reads back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from small_training import QUICK, SIZE, tiny_model

from repq.errors import TrainingError
from repq.train import Board, train
from repq.train.board import COLOUR, IMAGES_SHOWN, draw_batch
from repq.train.loader import TrainBatch


@pytest.mark.parametrize("count", [1, 3, 30])
def test_draws_boxes_on_tiles(count: int) -> None:
    images = np.full((count, 32, 48, 3), 7, np.uint8)
    drawn = draw_batch(TrainBatch(images, tuple(np.array([[1, 10, 5, 40, 30]], np.float32) for _ in range(count))))
    shown = min(count, IMAGES_SHOWN)
    assert drawn.shape[0] * drawn.shape[1] >= shown * 32 * 48
    assert drawn[5, 10].tolist() == list(COLOUR) == drawn[29, 39].tolist()
    assert (images == 7).all()


def test_says_how_to_get_tensorboard(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"pip install repq\[train\]"):
        Board(tmp_path)


def test_shows_scalars_and_a_batch_of_a_training(data, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = Board(tmp_path)
    report = train(tiny_model(), *data, SIZE, QUICK.model_copy(update={"epochs": 2}), board=board).report
    board.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("loss/total")] == pytest.approx(
        [row.losses["total"] for row in report.epochs]
    )
    assert len(events.Scalars("accuracy/ap50")) == 1
    assert events.Images("batch")[0].width == 2 * SIZE[1]
