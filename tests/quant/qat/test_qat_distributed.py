"""Two real processes over gloo learn what one learns from the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_qat import QUICK, gradients_of_first_batch
from two_processes import all_end_well

from repq.data import load_dataset, make_demo_set
from repq.recipe import DemoConfig

WORKER = Path(__file__).with_name("qat_worker.py")


def test_two_processes_are_one_with_the_joined_batch(tmp_path: Path) -> None:
    make_demo_set(tmp_path / "set", DemoConfig(train_images=10, val_images=2, size=64, classes=2))
    all_end_well(WORKER, tmp_path)

    _, parts, gradients = gradients_of_first_batch(load_dataset(tmp_path / "set" / "data.yaml", "train"))
    assert {name.rpartition(".")[2] for name in gradients} == {"weight", "bias", "log_ratio"}
    images = 0
    for rank in range(2):
        count, own_parts, own_gradients = torch.load(tmp_path / f"gradients{rank}.pt", weights_only=True)
        images += count
        for name, value in parts.items():
            assert own_parts[name].item() == pytest.approx(value.item(), rel=1e-5)
        for name, gradient in gradients.items():
            largest = gradient.abs().max().item()
            # The order of sums: the gradient of one scale for a whole map is one sum, whose large terms cancel.
            rtol = 5e-3 if gradient.numel() == 1 else 1e-3
            torch.testing.assert_close(own_gradients[name], gradient, rtol=rtol, atol=1e-4 * largest)
    assert images == QUICK.batch
    assert (tmp_path / "weights0.txt").read_text() == (tmp_path / "weights1.txt").read_text()
