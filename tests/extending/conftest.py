"""A checkpoint and a data set so small that toys can be tried on them through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_training import answering_model, tiny_model

from repq.cli import main
from repq.data import make_demo_set
from repq.model import save_checkpoint
from repq.recipe import DemoConfig

Command = Callable[..., dict]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``weights.safetensors`` and ``set/data.yaml``, of three classes, for images of 64x64."""
    folder = tmp_path_factory.mktemp("tiny")
    make_demo_set(folder / "set", DemoConfig(train_images=4, val_images=2, size=64, classes=3))
    save_checkpoint(folder / "weights.safetensors", answering_model(3, 64, tiny_model(classes=3).spec))
    return folder


@pytest.fixture(scope="session")
def repq() -> Command:
    """Run a command and return the values that it prints, or the error if it ends with another code than ``exit``."""

    def run(*arguments: object, exit: int = 0) -> dict:
        result = CliRunner().invoke(main, [*map(str, arguments), *(["--json"] if exit == 0 else [])])
        assert result.exit_code == exit, result.output
        return json.loads(result.stdout) if exit == 0 else {"error": result.output}

    return run
