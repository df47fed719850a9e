"""Several processes that train one model: who takes part, and what they have to agree on.

Every process keeps the whole model and takes an equal share of each batch. Gradients, losses and evaluation are sums
over all shares, so the training is that of one process with the joined batch, up to the order of sums and to batch
norm: in training it normalizes with the statistics of each process's share, so give every process 16 images or so.
The running statistics are those of the first process.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from repq.data import DetectionDataset, demand_objects
from repq.errors import RepqError, TrainingError, reason
from repq.evaluate import Detections, Predict, coco_accuracy, detect_all
from repq.identity import Identity, describe, differences
from repq.layout import OutputLayout
from repq.machine.torch_device import without_tf32
from repq.preprocessing import Preprocessing
from repq.printable import first_names
from repq.recipe import EvalConfig
from repq.results import Accuracy
from repq.roll_call import RollCall
from repq.torchrun import place_in_group

Value = TypeVar("Value")
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
PATIENCE = timedelta(minutes=10)  # how long a process waits for the others, which may be decoding images
UNEVEN = timedelta(hours=6)  # the same where shares are dealt out once: one may be done long before another


@dataclass(frozen=True)
class Processes:
    """This process's ``rank`` among ``count`` processes."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's part of ``items``: consecutive, and as large as the others' or one more or less."""
        bounds = np.linspace(0, len(items), self.count + 1).astype(int)
        return items[bounds[self.rank] : bounds[self.rank + 1]]


ALONE = Processes()
_JOINED: list[tuple[Processes, RollCall | None]] = []
"""The blocks that the process is in, with the processes that share their work."""
_STORES: list[Store] = []
"""That of all processes, and its parts, one for each group that was joined."""


def current_processes() -> Processes:
    """The processes that share the work of the block of `joined_processes` that this one is in; one outside of any."""
    return _JOINED[-1][0] if _JOINED else ALONE


@contextmanager
def _among(processes: Processes, roll: RollCall | None = None) -> Iterator[None]:
    _JOINED.append((processes, roll))
    try:
        yield
    finally:
        _JOINED.pop()


@contextmanager
def joined_processes(device: str, patience: timedelta = PATIENCE) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that ``torchrun`` started; alone, when it did not start this one.

    On CUDA each process of a machine takes the GPU of its local rank. A group that exists already is used and left.
    What is called in the block shares its work with the other processes, which have to call the same.

    Args:
        patience: how long a process waits for another that is alive; one that ended is noticed at once.

    Yields:
        The processes, and the device of this one.

    Raises:
        TrainingError: the others cannot be reached.
    """
    without_tf32()
    rank, count = place_in_group()
    if _JOINED or (count == 1 and not dist.is_initialized()):
        yield current_processes(), torch.device(device)
        return
    if dist.is_initialized():
        with _among(Processes(dist.get_rank(), dist.get_world_size())):
            yield current_processes(), torch.device(device)
        return
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(own)
    # Optimizers import this late. Imported while a group exists, it holds the group to the end of the process, which
    # the threads of the group may then abort.
    from torch import _dynamo  # noqa: F401

    roll = None
    try:
        store = _new_store(patience)
        roll = RollCall(store, rank, count, patience)
        dist.init_process_group(
            "nccl" if own.type == "cuda" else "gloo", timeout=patience, store=PrefixStore("group", store), rank=rank,
            world_size=count,
        )  # fmt: skip
        roll.learn_hosts()
    except (RuntimeError, ValueError) as error:
        raise left_alone(error, count, roll) from error
    failed = False
    try:
        with _among(Processes(rank, count), roll):
            yield current_processes(), own
    except Exception as error:
        failed = True
        roll.tell(reason(error))
        raise
    finally:
        dist.destroy_process_group()  # which the others notice where they wait for this one
        if failed:
            roll.linger()


def _new_store(patience: timedelta) -> Store:
    """A part of torch's store for one group more.

    The store stays to the end of the process: one that is closed and opened again may be found before it was closed.
    """
    if not _STORES:
        _STORES.append(next(rendezvous("env://", timeout=patience))[0])
    whole = _STORES[0]
    whole.set_timeout(patience)
    part = PrefixStore(f"repq/{len(_STORES)}", whole)  # not by torchrun's count of starts: each host has its own
    _STORES.append(part)
    return part


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Turn what a collective operation throws when a process is gone into an error that says so.

    Raises:
        TrainingError: as above.
    """
    try:
        yield
    except RuntimeError as error:  # DistBackendError is one; gloo throws the plain kind
        raise left_alone(error, current_processes().count, _JOINED[-1][1] if _JOINED else None) from error


def left_alone(error: Exception, count: int, roll: RollCall | None = None) -> TrainingError:
    """What a process says that has lost the others; with ``roll``, which of them.

    Processes that ``torchrun`` starts anew meet in the store of the first start by default, where the addresses of the
    dead are (torch 2.13, ``torch.distributed.elastic.rendezvous.dynamic_rendezvous``).
    """
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if again and os.environ.get(OWN_STORE) != "1":
        fix = f"set {OWN_STORE}=1 for torchrun, so that processes that it starts again find each other"
    else:
        fix = "look for its own message, then run the same command again: what was saved on the way is used"
    missing = "" if roll is None else f"{roll.who_is_missing()}; "
    return TrainingError(
        f"another of the {count} processes of this command ended or does not answer",
        found=f"{missing}{reason(error)}", fix=fix,
    )  # fmt: skip


@contextmanager
def told_when_stopped() -> Iterator[None]:
    """Say why this process ends when ``torchrun`` stops it, which it does (by SIGTERM) once another one has ended.

    Raises:
        TrainingError: as above.
    """
    if current_processes().count == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise left_alone(InterruptedError("this process was told to stop (SIGTERM)"), current_processes().count)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class PendingSum:
    """The sums of tensors over all processes, computed beside what this process does next.

    All processes have to begin the same sums in the same order. The tensors must not change before `finish`.

    Args:
        tensors: on one device; `finish` leaves the sums in them. Without any, nothing is done.

    Raises:
        TrainingError: another process is gone.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        if tensors:
            with waiting_for_others():
                self.joined = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
                self.work = dist.all_reduce(self.joined, async_op=True)

    def finish(self) -> None:
        """Wait for the sums and put them in place.

        Raises:
            TrainingError: another process is gone.
        """
        if not self.tensors:
            return
        with waiting_for_others():
            self.work.wait()
        parts = self.joined.split([tensor.numel() for tensor in self.tensors])
        for tensor, part in zip(self.tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Add up each tensor over all processes, in place, in one operation."""
    if current_processes().count > 1:
        PendingSum(tensors).finish()


def told_by_first(function: Callable[[], Value]) -> Value:
    """Call ``function`` in the first process, such as to read a file that only its machine has; all get the result."""
    processes = current_processes()
    if processes.count == 1:
        return function()
    with _among(ALONE, _JOINED[-1][1]):  # the others wait, and share no work
        told = [function() if processes.is_first else None]
    with waiting_for_others():
        dist.broadcast_object_list(told, 0)
    return told[0]  # type: ignore[return-value]


def gathered(value: Value) -> list[Value]:
    """What every process gave, in the order of their ranks; all of them get it."""
    processes = current_processes()
    if processes.count == 1:
        return [value]
    parts: list[Any] = [None] * processes.count
    with waiting_for_others():
        dist.all_gather_object(parts, value)
    return parts


@contextmanager
def failing_together() -> Iterator[None]:
    """A block that fails in all processes where it fails in one: the others would wait for that one's share.

    Raises:
        RepqError: what the first process that failed raised.
    """
    if current_processes().count == 1:
        yield
        return
    own: RepqError | None = None
    try:
        yield
    except RepqError as error:
        own = error
    failed = [error for error in gathered(own) if error is not None]
    if failed:
        raise own or failed[0]


def demand_same_data(datasets: Sequence[DetectionDataset]) -> None:
    """Check that every process reads the same data, whatever disk it has them on.

    Raises:
        TrainingError: names the hosts and ranks whose images or labels are not those of the first process.
    """
    if current_processes().count == 1:
        return
    own = [dataset.identity() for dataset in datasets]
    hosts = gathered((socket.gethostname(), [len(dataset) for dataset in datasets], own))
    others = [rank for rank, (_, _, found) in enumerate(hosts) if found != hosts[0][2]]
    if others:
        said = [f"rank {rank} on {hosts[rank][0]} has {hosts[rank][1]} images" for rank in (0, *others[:5])]
        raise TrainingError(
            f"{len(others)} of the {len(hosts)} processes have other data than the first",
            found=f"{'; '.join(said)}; names, labels or pixels differ",
            fix="copy the data set from the first host to these, or put it where all hosts read it",
        )


def demand_same_settings(settings: Mapping[str, Any]) -> None:
    """Check that every process was started with the same settings; see `repq.identity.describe`.

    Raises:
        TrainingError: names the ranks that have others: the shares of one result would not fit each other.
    """
    if current_processes().count == 1:
        return
    hosts = gathered((socket.gethostname(), describe(settings)))
    said = []
    for rank, (host, found) in enumerate(hosts):
        if names := differences(hosts[0][1], found):
            said.append(f"rank {rank} on {host} in {first_names(names)}")
    if said:
        raise TrainingError(
            f"{len(said)} of the {len(hosts)} processes were started with other settings than the first",
            found="; ".join(said[:5]), fix="start all processes by the same command, with the same files",
        )  # fmt: skip


def agreed(identity: Identity) -> Identity:
    """What the first process computes, if all were started with the same settings and seed.

    Raises:
        TrainingError: they were not.
    """
    demand_same_settings({**identity.settings, "seed": identity.seed})
    return told_by_first(lambda: identity)


def saved_by_first(path: Path, save: Callable[[Path], None]) -> None:
    """Let the first process write a file; the others, whose disks may be others, get the same at their own ``path``."""
    if current_processes().count == 1:
        save(path)
        return

    def saved() -> bytes:
        save(path)
        return path.read_bytes()

    content = told_by_first(saved)
    if not current_processes().is_first:
        path.write_bytes(content)


def wait_for_all() -> None:
    """Return once every process is here."""
    gathered(None)


@torch.no_grad()
def copy_from_first(model: torch.nn.Module) -> None:
    """Give every process the parameters and buffers of the first."""
    if current_processes().count == 1:
        return
    with waiting_for_others():
        for value in model.state_dict().values():
            whole = value.contiguous()  # channels_last tensors cannot be sent as they are
            dist.broadcast(whole, 0)
            value.copy_(whole)


def evaluate_together(
    predict: Predict,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    layout: OutputLayout = OutputLayout(),
    preprocessing: Preprocessing = Preprocessing(),
) -> Accuracy:
    """`repq.evaluate.evaluate` by `detect_together`; every process gets the result."""
    demand_objects(dataset)
    return coco_accuracy(detect_together(predict, dataset, imgsz, config, layout, preprocessing), dataset)


def detect_together(
    predict: Predict,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    layout: OutputLayout = OutputLayout(),
    preprocessing: Preprocessing = Preprocessing(),
) -> Detections:
    """`repq.evaluate.detect_all`, each process looking at its share of the images; every one gets all detections."""

    def detect(share: DetectionDataset) -> Detections:
        return detect_all(predict, share, imgsz, config, layout=layout, preprocessing=preprocessing)

    return found_in_shares(detect, dataset, config.batch)


def found_in_shares(
    detect: Callable[[DetectionDataset], Detections], dataset: DetectionDataset, batch: int
) -> Detections:
    """What ``detect`` finds, each process in its share of the images; every one gets all detections.

    They are those of one process to the bit: shares are whole batches, as it would have them.
    """
    if current_processes().count == 1:
        return detect(dataset)
    with failing_together():
        found = detect(dataset.subset(own_batches(dataset.records, batch)))
    return _joined(gathered(found))


def own_batches(items: Sequence[Value], batch: int) -> Sequence[Value]:
    """This process's share of items that are looked at in batches: whole ones, and consecutive."""
    starts = current_processes().share(range(0, len(items), batch))
    return items[starts[0] : starts[-1] + batch] if starts else items[:0]


def _joined(parts: Sequence[Detections]) -> Detections:
    """The detections of consecutive shares of a data set as those of the whole."""
    names = tuple(name for part in parts for name in part.images)
    tta = next((part.tta for part in parts if part.tta is not None), None)
    return Detections(names, tuple(boxes for part in parts for boxes in part.boxes), tta)
