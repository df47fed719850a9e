"""Fixtures: drawn images to train on, and one thread to train with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from repq.data import DetectionDataset, load_dataset, make_demo_set
from repq.recipe import DemoConfig


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in a fixed order, and no waiting for each other on busy machines."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[DetectionDataset, DetectionDataset]:
    """Ten images to train on and four to evaluate on, 64x64, of two classes."""
    folder = tmp_path_factory.mktemp("demo") / "set"
    path = make_demo_set(folder, DemoConfig(train_images=10, val_images=4, size=64, classes=2))
    return load_dataset(path, "train"), load_dataset(path, "val")
