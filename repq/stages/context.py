"""What the work of every stage happens with: images, their size, how AP is measured, where, and who hears of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.images import is_unlabelled, open_data
from repq.api.quantizing import open_float
from repq.log import Log, quiet
from repq.printable import printable
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, GraphConfig
from repq.torchrun import is_alone

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.quant import Weights


@dataclass(frozen=True)
class Context:
    """What the work of a stage happens with, whatever the stage does.

    Attributes:
        imgsz: height and width of network inputs.
        data: a data set, or a folder or list file of images alone, by which nothing is evaluated; None: there is none,
            which few stages can do without.
        eval_config: how images become inputs, and how AP is measured.
        train_split: what is learned from, calibrated with and decided on.
        val_split: what AP is reported on.
        graph: what an ONNX file of weights does not say of itself.
        device: where torch runs.
    """

    imgsz: tuple[int, int]
    data: Path | None = None
    eval_config: EvalConfig = EvalConfig()
    train_split: str = "train"
    val_split: str = "val"
    graph: GraphConfig = GraphConfig()
    device: str = "cpu"
    seed: int = 0
    progress: Progress = silent
    log: Log = quiet

    @property
    def data_path(self) -> Path:
        """``data``, where there must be some."""
        assert self.data is not None
        return self.data

    def train_set(self) -> DetectionDataset:
        """The split to learn from. What had to be skipped, or is taken in another way than it is written, is said.

        Raises:
            DataError: it cannot be used.
        """
        return open_data(self.data_path, self.train_split, self.log, self.progress)

    def val_set(self) -> DetectionDataset:
        """The split to report on, as `train_set`."""
        return open_data(self.data_path, self.val_split, self.log, self.progress)

    def labelled_val_set(self) -> DetectionDataset | None:
        """The split to report on; None, which is said, where there are images alone."""
        if is_unlabelled(self.data_path):
            self.log(f"{printable(self.data_path)} has no labels: AP is not measured")
            return None
        return self.val_set()

    def open_float(self, weights: Path) -> Weights:
        """Read float weights to work with at this size, as `repq.api.quantizing.open_float`."""
        return open_float(weights, self.log, self.imgsz, self.graph)

    @contextmanager
    def shared(self) -> Iterator[tuple[Context, bool]]:
        """The same for the work of the block, which torchrun's processes share, and whether this is the first of them.

        Raises:
            EngineError: torch cannot use the device.
            TrainingError: the other processes cannot be reached.
        """
        if is_alone():
            yield self, True
            return
        from repq.distributed import UNEVEN, joined_processes, told_when_stopped
        from repq.machine.torch_device import resolve_device

        resolve_device(self.device)
        with joined_processes(self.device, UNEVEN) as (processes, device), told_when_stopped():
            yield self.of_process(str(device), is_first=processes.is_first), processes.is_first

    def of_process(self, device: str, *, is_first: bool) -> Context:
        """The same for one of torchrun's processes, of which the first alone is heard."""
        own = replace(self, device=device)
        return own if is_first else replace(own, progress=silent, log=quiet)
