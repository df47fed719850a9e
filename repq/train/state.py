"""The state of a training between two epochs, as one safetensors file: tensors, and JSON in the header."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from repq.errors import TrainingError
from repq.identity import differences
from repq.model.tensorfile import read_tensors, write_tensors
from repq.results import Accuracy, EpochRow, Result

FORMAT = "repq-train-state-2"


class Best(Result):
    epoch: int
    accuracy: Accuracy


class Position(Result):
    """How far a training is. ``identity`` is what its result depends on (`repq.identity.Identity`)."""

    identity: dict[str, Any]
    epochs: tuple[EpochRow, ...] = ()
    average_updates: int = 0
    loss_scale: dict[str, float] = Field(default_factory=dict)
    best: Best | None = None

    @property
    def epochs_done(self) -> int:
        return len(self.epochs)


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keep other trainings from the state at ``path`` while the block runs; what it leaves behind is the state alone.

    Raises:
        TrainingError: another training writes it, it is a folder, or its folder cannot be written to.
    """
    if path.is_dir():
        raise TrainingError(f"the training state {path} is to be a file", found="a folder", fix="name a file in it")
    guard = path.with_name(f".{path.name}.lock")
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    lock = FileLock(guard)
    try:
        guard.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        guard.write_text(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
    except Timeout:
        holder = ""
        with suppress(OSError):  # its training may have ended meanwhile
            holder = guard.read_text()
        raise TrainingError(
            f"another training writes to {path}",
            found=holder or "a process that has just begun",
            fix="wait until it ends, or give another output folder",
        ) from None
    except OSError as error:
        raise TrainingError(f"cannot write the training state {path}", found=str(error)) from None
    try:
        yield
    finally:
        with suppress(OSError):
            guard.unlink()
        lock.release()
        with suppress(OSError):  # nothing was saved
            for folder in made:
                folder.rmdir()


def save_state(path: Path, position: Position, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the state, atomically. ``tensors`` are named groups of named tensors.

    Raises:
        TrainingError: the file cannot be written.
    """
    flat: dict[str, Tensor] = {}
    written: set[int] = set()
    for group, values in tensors.items():
        for name, value in values.items():
            plain = value.detach().cpu().contiguous()
            # The format has no shared tensors, such as a scale that two layers learn together.
            flat[f"{group}/{name}"] = plain.clone() if plain.data_ptr() in written else plain
            written.add(plain.data_ptr())
    try:
        write_tensors(path, flat, {"format": FORMAT, "position": position.model_dump_json()})
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write the training state {path}", found=str(error)) from None


def load_state(path: Path) -> tuple[Position, dict[str, dict[str, Tensor]]]:
    """Read what `save_state` wrote.

    Raises:
        TrainingError: the file is damaged or of another kind.
    """
    try:
        metadata, tensors = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"the format {metadata.get('format')!r}, not {FORMAT!r}")
        position = Position.model_validate_json(metadata["position"])
    except (OSError, SafetensorError, ValidationError, ValueError, KeyError) as error:
        raise TrainingError(
            f"cannot resume from {path}", found=str(error), fix="remove the file to train from the start"
        ) from None
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    return position, groups


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's buffers, named by parameter number and key."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    whole = optimizer.state_dict()
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        whole["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(whole)
    for parameter, buffers in optimizer.state.items():
        for key, value in buffers.items():
            if value.shape == parameter.shape:  # in the layout of the parameter: steps over two layouts are slow
                buffers[key] = torch.empty_like(parameter).copy_(value)


def require_same_identity(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that a state belongs to this training.

    Raises:
        TrainingError: names the settings and inputs that differ.
    """
    names = (name.removeprefix("settings.").removeprefix("inputs.") for name in differences(wanted, found))
    different = sorted(names)
    if different:
        raise TrainingError(
            f"cannot resume from {path}: it belongs to another training",
            found=f"different {', '.join(different)}",
            fix="give another output folder, or remove the file to train from the start",
        )
