"""Images of training batches by NVIDIA DALI and torch, on the GPU that trains, or on the CPU.

DALI decodes JPEG files, shrinks them as `repq.data.ImageCache` does and warps each onto its region; torch joins
regions, blends, recolours and flips. The pixels are those of `repq.data.render` to about one grey level on average
(``tests/train/test_dali_training.py``). Files of other formats are decoded, kept and warped by OpenCV, since no GPU
decodes them faster.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repq.data import ImageCache, Placement, SamplePlan, warp
from repq.data.dali import DaliRunner, shrinking_sizes
from repq.data.images import is_jpeg, read_file
from repq.machine.torch_device import on_device

_MOST_FILES = 64  # of one run of a pipeline
_BITS = 12  # behind the point, of OpenCV's factors


@dataclass(frozen=True, eq=False)
class File:
    """A JPEG file, the sizes (height, width) that its image is resized to, and where it goes."""

    data: NDArray[np.uint8]
    sizes: list[tuple[int, int]]
    placement: Placement


@dataclass(frozen=True, eq=False)
class Tile:
    """What is seen of an image: (h, w, 3) uint8."""

    pixels: NDArray[np.uint8]
    placement: Placement


@dataclass(frozen=True, eq=False)
class Part:
    """A plan, without the one that it is blended with, and what is to be seen on its canvas."""

    plan: SamplePlan
    pieces: tuple[File | Tile, ...]


class DaliRenderer:
    """Renders on the device that trains; see `repq.train.rendering.Renderer`.

    Images are made on a stream of their own, so a GPU makes them while it still trains on those before.

    Args:
        grey: level of what no image covers, of all plans.
        threads: CPU threads of DALI.

    Raises:
        EngineError: DALI is not installed, or cannot use the device.
    """

    def __init__(self, cache: ImageCache, grey: int, device: torch.device, threads: int) -> None:
        self._cache, self._grey, self._device, self._threads = cache, grey, device, max(1, threads)
        self._others: set[int] = set()  # files that are no JPEG
        self._runners: dict[int, DaliRunner] = {}
        self._runner(0)  # shows whether DALI runs
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def prepare(self, plan: SamplePlan) -> tuple[Part, ...]:
        """Read files, and warp what is no JPEG.

        Raises:
            DataError: an image can no longer be read.
        """
        plans = [plan] if plan.second is None else [plan, plan.second]
        return tuple(Part(one, tuple(self._pieces(one))) for one in plans)

    def join(self, prepared: Sequence[tuple[Part, ...]]) -> Tensor:
        """The images (B, H, W, 3) uint8 RGB, on the device.

        Raises:
            DataError: DALI cannot decode a file.
        """
        if self._stream is None:
            return self._joined(prepared)
        with torch.cuda.stream(self._stream):
            images = self._joined(prepared)
        training = torch.cuda.current_stream(self._device)
        training.wait_stream(self._stream)
        images.record_stream(training)
        return images

    def _pieces(self, plan: SamplePlan) -> list[File | Tile]:
        return [self._piece(index, placement) for index, placement in plan.sources if not placement.is_empty]

    def _piece(self, index: int, placement: Placement) -> File | Tile:
        record = self._cache.records[index]
        if index not in self._others:
            data = read_file(record.path)
            if is_jpeg(data):
                sizes = shrinking_sizes((record.height, record.width), self._cache.size(index))
                return File(np.frombuffer(data, np.uint8), sizes, placement)
            self._others.add(index)
        return Tile(warp(self._cache.image(index), placement, self._grey), placement)

    def _joined(self, prepared: Sequence[tuple[Part, ...]]) -> Tensor:
        parts = [*(first for first, *_ in prepared), *(second for _, *rest in prepared for second in rest)]
        plans = [part.plan for part in parts]
        size = (len(parts), *plans[0].imgsz, 3)
        canvases = torch.full(size, self._grey, dtype=torch.uint8, device=self._device)
        files: dict[int, list[tuple[Tensor, File]]] = defaultdict(list)
        for canvas, part in zip(canvases, parts, strict=True):
            for piece in part.pieces:
                left, top, right, bottom = piece.placement.region
                region = canvas[top:bottom, left:right]
                if isinstance(piece, File):
                    files[len(piece.sizes)].append((region, piece))
                else:
                    region.copy_(on_device(torch.from_numpy(piece.pixels), self._device))
        for steps, group in files.items():
            for start in range(0, len(group), _MOST_FILES):
                self._draw(steps, group[start : start + _MOST_FILES])
        return finished(plans[: len(prepared)], canvases[: len(prepared)], canvases[len(prepared) :])

    def _draw(self, steps: int, group: Sequence[tuple[Tensor, File]]) -> None:
        """Draw files, whose images are resized in so many steps, into regions of canvases."""
        inputs: dict[str, list[NDArray[Any]]] = {
            "files": [file.data for _, file in group],
            "matrices": [_from_region(file.placement) for _, file in group],
            "shapes": [np.array(region.shape[:2], np.float32) for region, _ in group],
        }
        if steps:
            inputs["sizes"] = [np.array(file.sizes, np.float32) for _, file in group]
        (tiles,) = self._runner(steps)(**inputs)
        for number, (region, _) in enumerate(group):
            region.copy_(torch.from_dlpack(tiles[number]))
        if self._stream is not None:
            self._stream.synchronize()  # DALI may use the memory of tiles again as soon as nothing refers to them

    def _runner(self, steps: int) -> DaliRunner:
        if steps not in self._runners:
            device_id = None
            if self._device.type == "cuda":
                device_id = torch.cuda.current_device() if self._device.index is None else self._device.index
            graph = partial(_warped, steps, self._grey, device_id is not None)
            self._runners[steps] = DaliRunner(graph, _MOST_FILES, device_id, self._threads)
        return self._runners[steps]


def _warped(steps: int, grey: int, on_gpu: bool) -> tuple[Any]:
    """The tiles (h, w, 3) uint8 of ``files``, resized to ``sizes`` one after another, and warped."""
    from nvidia.dali import fn, types

    files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
    matrices = fn.external_source(name="matrices", dtype=types.FLOAT, ndim=2)
    shapes = fn.external_source(name="shapes", dtype=types.FLOAT, ndim=1)
    image = fn.decoders.image(files, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    if steps:
        sizes = fn.external_source(name="sizes", dtype=types.FLOAT, ndim=2)
        for step in range(steps):
            image = fn.resize(
                image, size=sizes[step], dtype=types.FLOAT, interp_type=types.INTERP_LINEAR, antialias=False
            )
        image = fn.cast(image, dtype=types.UINT8)
    return (fn.warp_affine(image, matrix=matrices, size=shapes, fill_value=float(grey), dtype=types.UINT8),)


def _from_region(placement: Placement) -> NDArray[np.float32]:
    """The map (2, 3) from points of the region, continuous and counted from its corner, to points of the source."""
    back = np.linalg.inv(placement.linear)
    corner = np.array(placement.region[:2])
    return np.column_stack((back, back @ (corner - placement.offset))).astype(np.float32)


def finished(plans: Sequence[SamplePlan], canvases: Tensor, seconds: Tensor) -> Tensor:
    """Do what plans say of canvases that are drawn: blend, recolour, flip; as `repq.data.render`.

    Args:
        canvases: (B, H, W, 3) uint8, one for each plan; overwritten.
        seconds: (M, H, W, 3) uint8, one for each plan that is blended with another.
    """
    others = iter(seconds)
    for canvas, plan in zip(canvases, plans, strict=True):
        if plan.second is not None:
            other = _flipped(next(others), plan.second)
            canvas.copy_((plan.share * canvas.float() + (1 - plan.share) * other.float()).round())
    for tables in zip(*(plan.tables for plan in plans), strict=True):
        canvases = recoloured(canvases, on_device(torch.from_numpy(np.stack(tables)), canvases.device))
    for canvas, plan in zip(canvases, plans, strict=True):
        if plan.mirrored or plan.turned_over:
            canvas.copy_(_flipped(canvas, plan))
    return canvases


def _flipped(image: Tensor, plan: SamplePlan) -> Tensor:
    sides = [side for side, is_swapped in enumerate((plan.turned_over, plan.mirrored)) if is_swapped]
    return image.flip(sides) if sides else image


def recoloured(images: Tensor, tables: Tensor) -> Tensor:
    """Replace hue (0..179), saturation and value (0..255) as the table (256, 3) of each image says.

    The three are those of OpenCV, which divides by a factor of 12 bits behind the point, and back cuts fractions off.

    Args:
        images: (B, H, W, 3) uint8 RGB.
        tables: (B, 256, 3) uint8.
    """
    red, green, blue = images.int().unbind(-1)
    value = images.amax(-1).int()
    spread = value - images.amin(-1).int()
    sixth = torch.where(  # of the circle of hues, times the spread
        value == red, green - blue, torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    )
    hue = _over(sixth, 30, spread)
    planes = (hue + 180 * (hue < 0), _over(spread, 255, value), value)
    hue, saturation, value = (
        tables[..., number].gather(1, plane.flatten(1).long()).view(plane.shape).float()
        for number, plane in enumerate(planes)
    )
    chroma, channels = value * saturation / 255, []
    for start in (5, 3, 1):  # red, green, blue
        place = (start + hue / 30) % 6
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, -1).to(torch.uint8)


def _over(values: Tensor, scale: int, divisors: Tensor) -> Tensor:
    """``scale * values / divisors`` in whole numbers, rounded; a divisor of 0 is 1."""
    factors = ((scale << _BITS) / divisors.clamp(min=1)).round().int()
    return (values * factors + (1 << _BITS - 1)) >> _BITS
