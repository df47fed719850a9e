"""Processes that were started with unequal settings are told so, whatever they were to do together."""

from __future__ import annotations

from pathlib import Path

import pytest
from other_settings_worker import cases
from small_training import tiny_model
from two_processes import all_end_well

from repq.data import make_demo_set
from repq.model import save_checkpoint
from repq.recipe import DemoConfig

WORKER = Path(__file__).with_name("other_settings_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    make_demo_set(folder / "set", DemoConfig(train_images=6, val_images=4, size=64, classes=2))
    for rank in range(2):
        save_checkpoint(folder / f"w{rank}.safetensors", tiny_model(seed=rank).eval())
    all_end_well(WORKER, folder)
    return folder


def test_each_process_says_what_differs(folder: Path) -> None:
    for rank in range(2):
        for name in cases(folder, rank):
            said = folder / str(rank) / f"{name}.txt"
            assert said.exists(), f"{name}: nothing was said"
            text = said.read_text()
            assert "1 of the 2 processes were started with other settings than the first" in text
            assert "rank 1 on" in text and name in text
            assert not list(folder.glob(f"{rank}/*.safetensors"))
