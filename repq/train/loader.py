"""Shuffled, augmented training batches that depend on seed and epoch alone, not on workers or processes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repq.concurrency import prefetch
from repq.data import ImageCache, ImageRecord, plan_sample
from repq.distributed import ALONE, Processes
from repq.machine.cpu import cpu_cores
from repq.preprocessing import Preprocessing
from repq.recipe import LoopConfig
from repq.train.rendering import OpenCvRenderer, Renderer

_MOST_THREADS = 8
_SIZES = 1 << 32  # beyond any position in an epoch: the seeds of sizes must not be those of samples


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """Augmented images (B, H, W, 3) uint8 RGB, and per image the rows of class, x1, y1, x2, y2 in pixels.

    Images are an array, or a tensor on the device that trains.
    A batch that does not ``count`` adds nothing to loss and gradients: a process for which there is no image computes
    with one that is in another's share, so that all processes take part in every sum.
    """

    images: NDArray[np.uint8] | Tensor
    objects: tuple[NDArray[np.float32], ...]
    counts: bool = True


def steps_per_epoch(images: int, batch: int) -> int:
    return -(-images // batch)


def scaled_size(imgsz: tuple[int, int], ratio: float, stride: int) -> tuple[int, int]:
    """The input size (height, width) nearest to ``imgsz * ratio`` that ``stride`` divides."""
    height, width = (max(1, round(side * ratio / stride)) * stride for side in imgsz)
    return height, width


def largest_size(imgsz: tuple[int, int], config: LoopConfig, stride: int) -> tuple[int, int]:
    """The largest input size that multi-scale training draws."""
    return scaled_size(imgsz, config.multi_scale[1], stride)


def smallest_batch(
    images: int, imgsz: tuple[int, int], config: LoopConfig, stride: int, processes: int
) -> tuple[int, tuple[int, int]]:
    """The least number of images in a process's batch, and the smallest input size that multi-scale training draws."""
    share = images // steps_per_epoch(images, config.batch) // processes
    return max(1, share), scaled_size(imgsz, config.multi_scale[0], stride)


def training_batches(
    cache: ImageCache,
    imgsz: tuple[int, int],
    config: LoopConfig,
    *,
    seed: int,
    epoch: int,
    stride: int = 32,
    preprocessing: Preprocessing = Preprocessing(),
    processes: Processes = ALONE,
    device: str = "cpu",
    renderer: Renderer | None = None,
) -> Generator[TrainBatch]:
    """Yield an epoch's images in random order, in batches whose sizes differ by at most one.

    Each sample has a generator of its own, seeded with (seed, epoch, position), so the number of workers changes
    nothing, and processes get the shares of the batches that one process would get.

    Args:
        imgsz: height and width; with ``config.multi_scale`` scaled by what is drawn for some batches.
        stride: the coarsest; divides every drawn size.
        preprocessing: of the model; samples are RGB whatever its order.
        processes: each yields its share of every batch.
        device: what trains meanwhile, ``cpu`` or ``cuda``.
        renderer: makes the images; None: OpenCV.
    """
    making = OpenCvRenderer(cache) if renderer is None else renderer
    if config.mosaic_off_epochs and epoch >= config.epochs - config.mosaic_off_epochs:
        config = config.model_copy(update={"mosaic": 0.0, "mixup": 0.0})
    order = epoch_order(image_weights(cache.records, config.balance), seed, epoch)
    chunks = np.array_split(np.arange(len(order)), steps_per_epoch(len(order), config.batch))
    draws = (number // config.multi_scale_batches for number in range(len(chunks)))
    sizes = [_drawn_size(imgsz, config, stride, (seed, epoch, _SIZES + draw)) for draw in draws]
    shares = [processes.share(chunk.tolist()) for chunk in chunks]
    computed = [share or chunk[:1].tolist() for share, chunk in zip(shares, chunks, strict=True)]

    def draw(item: tuple[int, tuple[int, int]]) -> tuple[Any, NDArray[np.float32]]:
        position, size = item
        rng = np.random.default_rng((seed, epoch, position))
        plan = plan_sample(cache, order[position], size, _fitted(config, imgsz, size), rng, preprocessing)
        return making.prepare(plan), plan.objects

    items = [(position, size) for share, size in zip(computed, sizes, strict=True) for position in share]
    samples = prefetch(draw, items, workers=loading_threads(config, device), ahead=2 * config.batch)
    with closing(samples):
        for share in shares:
            prepared, objects = zip(*islice(samples, len(share) or 1), strict=True)
            yield TrainBatch(making.join(prepared), objects, counts=len(share) > 0)


def loading_threads(config: LoopConfig, device: str) -> int:
    """Threads that draw samples: what ``config`` says, or as many as there are cores that the training leaves free.

    On a CPU whose cores all compute, a thread that loads would hold up torch's, which wait for each other after every
    operation: to load in between is then faster (``benchmarks/train_throughput.py``).
    """
    if config.workers is not None:
        return config.workers
    busy = torch.get_num_threads() if device == "cpu" else 1
    return max(0, min(_MOST_THREADS, cpu_cores() - busy))


def _fitted(config: LoopConfig, imgsz: tuple[int, int], size: tuple[int, int]) -> LoopConfig:
    """The same room for images at another input size: border and inner size grow with the side that grows least.

    Each side is rounded to strides by itself. What has room in ``imgsz`` has it in ``size``.
    """
    old, ratio = config.letterbox, min(size[0] / imgsz[0], size[1] / imgsz[1])
    if ratio == 1 or (not old.border and old.inner_size is None):
        return config
    inner_size = None if old.inner_size is None else max(1, int(old.inner_size * ratio))
    new = old.model_copy(update={"border": int(old.border * ratio), "inner_size": inner_size})
    return config.model_copy(update={"letterbox": new})


def _drawn_size(imgsz: tuple[int, int], config: LoopConfig, stride: int, seed: tuple[int, int, int]) -> tuple[int, int]:
    low, high = config.multi_scale
    if low == high == 1:
        return imgsz
    ratio = np.random.default_rng(seed).uniform(low, high)
    return scaled_size(imgsz, ratio, stride)


def image_weights(records: Sequence[ImageRecord], balance: float) -> NDArray[np.float64]:
    """How often each image is drawn in relation to the others: ``(most / n_c) ^ balance`` of its rarest class c.

    n_c is the number of images with class c, and most the largest of these numbers. Images without objects weigh 1.
    With ``balance`` 1, images of a class come up about as often as those of any other; a half is the usual compromise
    (the repeat factors of Gupta et al., LVIS, 1908.03195, section 4.2, have this root).
    """
    classes = [np.unique(record.labels[:, 0]).astype(np.int64) for record in records]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *classes]))
    if not counts.any():
        return np.ones(len(records))
    factors = (counts.max() / np.maximum(counts, 1)) ** balance
    return np.array([factors[own].max(initial=1.0) for own in classes])


def epoch_order(weights: NDArray[np.float64], seed: int, epoch: int) -> Sequence[int]:
    """As many images as there are, in random order: each once for equal weights, else drawn with replacement.

    Drawing is systematic: an image comes up ``count * weight / sum`` times, rounded down or up by chance.
    """
    rng = np.random.default_rng((seed, epoch))
    count = len(weights)
    if (weights == weights[0]).all():
        return rng.permutation(count).tolist()
    shuffled = rng.permutation(count)
    steps = np.cumsum(weights[shuffled]) / weights.sum() * count
    drawn = np.searchsorted(steps, np.arange(count) + rng.random(), side="right")
    return rng.permutation(shuffled[np.minimum(drawn, count - 1)]).tolist()
