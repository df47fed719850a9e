"""A detector that finds something and a drawn data set. Every test here needs a GPU and is skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_training import QUICK, answering_model, tiny_model

import repq
from repq.data import load_dataset, make_demo_set
from repq.machine.torch_device import without_tf32
from repq.model import save_checkpoint
from repq.recipe import DemoConfig
from repq.train import train

HERE = Path(__file__).parent
SIZE = 64
NAMES = ("ring", "triangle", "cross")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(missing)


@pytest.fixture(autouse=True)
def _true_float32() -> None:
    without_tf32()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_set(tmp_path_factory.mktemp("demo") / "set", DemoConfig(train_images=16, val_images=8, size=SIZE))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "float.safetensors"
    save_checkpoint(path, answering_model(len(NAMES), SIZE), names=NAMES)
    return path


@pytest.fixture(scope="session")
def on_cpu(checkpoint: Path) -> repq.Model:
    return repq.load(checkpoint)


@pytest.fixture(scope="session")
def on_gpu(checkpoint: Path) -> repq.Model:
    return repq.load(checkpoint, device="cuda")


@pytest.fixture(scope="session")
def learned(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained detector: in one that learned nothing, a value that rounds the other way changes all results."""
    train_set, val_set = load_dataset(demo, "train"), load_dataset(demo, "val")
    config = QUICK.model_copy(update={"epochs": 40, "eval_interval": 40, "learning_rate": 0.02})
    outcome = train(tiny_model(classes=3), train_set, val_set, (SIZE, SIZE), config)
    path = tmp_path_factory.mktemp("learned") / "float.safetensors"
    save_checkpoint(path, outcome.model, names=train_set.names)
    return path
