"""Decoding, letterbox and batching by NVIDIA DALI: on a GPU, so that the CPU is left to the rest, or on the CPU.

The pixels are those of ``repq.data.letterbox`` to one grey level on average (``tests/data/test_dali.py``). Decoding is
the same; shrinking is not: OpenCV averages the area that an output pixel covers, and DALI has no such filter. Its
triangular one averages twice that width and blurs. So an image is first resized linearly, without a filter, to twice,
four or eight times its final size, whichever power of two lies next to the factor, and then halved until it fits: a
linear resize to exactly half averages two pixels by two, which is the area.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from repq.data.letterbox import DEFAULT, USUAL, LetterboxTransform, letterbox_transform, rooms
from repq.errors import DataError, EngineError
from repq.preprocessing import Preprocessing
from repq.recipe import LetterboxConfig

INSTALL = "pip install 'repq[dali]' (Linux; it also runs without a GPU)"
_HALVINGS = 3  # factors up to 8 times the square root of two are averaged over all their pixels


class DaliLoader:
    """JPEG and PNG files in memory to batches of letterboxed images.

    Args:
        imgsz: height and width of the network input.
        batch: most files of one call.
        dtype: ``uint8`` in 0..255, or ``float32`` as the preprocessing says.
        preprocessing: of the model.
        device: ``gpu`` decodes with nvJPEG and resizes on the GPU.
        threads: CPU threads.

    Raises:
        EngineError: DALI is not installed, or cannot use the device.
        DataError: border and inner size leave no room in the input.
    """

    def __init__(
        self,
        imgsz: tuple[int, int],
        batch: int,
        *,
        config: LetterboxConfig = DEFAULT,
        dtype: Literal["uint8", "float32"] = "uint8",
        preprocessing: Preprocessing = USUAL,
        device: Literal["cpu", "gpu"] = "cpu",
        threads: int = 1,
    ) -> None:
        rooms(imgsz, config)  # refuses what leaves no room
        self._imgsz, self._config, self._form, self._batch = imgsz, config, preprocessing, batch
        graph = partial(_letterboxed, imgsz, config, preprocessing, dtype, device)
        self._run = DaliRunner(graph, batch, 0 if device == "gpu" else None, threads)

    def __call__(self, files: Sequence[bytes]) -> tuple[NDArray[Any], tuple[LetterboxTransform, ...]]:
        """Decode and place the files: (B, 3, H, W) and how each image was placed.

        Raises:
            DataError: there are more files than the batch holds, or one holds no image.
        """
        if len(files) > self._batch:
            raise DataError(f"the loader is made for batches of {self._batch}", found=f"{len(files)} files")
        outputs = self._run(files=[np.frombuffer(file, np.uint8) for file in files])
        images, sizes = (output.as_cpu() for output in outputs)
        sizes = [np.asarray(sizes[index]) for index in range(len(files))]
        transforms = (letterbox_transform(int(w), int(h), self._imgsz, self._config, self._form) for h, w, *_ in sizes)
        return np.stack([np.asarray(images[index]) for index in range(len(files))]), tuple(transforms)


class DaliRunner:
    """A pipeline of DALI; it is built anew after an error, with which DALI gives it up.

    Args:
        graph: takes no arguments, and gives the outputs made of external sources.
        batch: most samples of one run.
        device_id: the GPU; None: the CPU alone.
        threads: CPU threads.

    Raises:
        EngineError: DALI is not installed, or cannot use the device.
    """

    def __init__(self, graph: Callable[[], Sequence[Any]], batch: int, device_id: int | None, threads: int) -> None:
        self._build = partial(_built, graph, batch, device_id, threads)
        self._pipeline = self._build()

    def __call__(self, **inputs: Sequence[NDArray[Any]]) -> Sequence[Any]:
        """Run once; ``inputs`` are the samples of each external source, by name. The outputs are complete.

        Raises:
            DataError: a file cannot be decoded.
        """
        try:
            outputs: Sequence[Any] = self._pipeline.run(**inputs)
        except RuntimeError as error:
            self._pipeline = self._build()
            reason = _reason(error)
            raise DataError("DALI cannot decode the images", found=reason, fix="read them with OpenCV") from None
        return outputs


def dali_version() -> str:
    """Version of the installed DALI.

    Raises:
        EngineError: it is not installed.
    """
    try:
        import nvidia.dali
    except ImportError as error:
        raise EngineError("NVIDIA DALI is not installed here", found=str(error), fix=INSTALL) from None
    return str(nvidia.dali.__version__)


def _built(graph: Callable[[], Sequence[Any]], batch: int, device_id: int | None, threads: int) -> Any:
    dali_version()
    from nvidia.dali import Pipeline

    try:
        pipeline = Pipeline(batch, threads, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True)
        with pipeline:
            pipeline.set_outputs(*graph())
        pipeline.build()
    except RuntimeError as error:
        raise EngineError(
            f"DALI cannot run on the {'cpu' if device_id is None else 'gpu'}",
            found=_reason(error),
            fix=f"use the device cpu, or see whether {INSTALL} brings what is missing",
        ) from None
    return pipeline


def _letterboxed(
    imgsz: tuple[int, int], config: LetterboxConfig, form: Preprocessing, dtype: str, device: str
) -> tuple[Any, Any]:
    """The letterboxed images of the source ``files``, and the size of each file's image."""
    from nvidia.dali import fn, types

    files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
    sizes = fn.cast(fn.peek_image_shape(files), dtype=types.FLOAT)
    colours = types.BGR if form.bgr else types.RGB
    image = fn.decoders.image(files, device="mixed" if device == "gpu" else "cpu", output_type=colours)
    image = _placed(image, sizes, imgsz, config, form)
    image = fn.transpose(image, perm=[2, 0, 1])
    if dtype == "float32":
        mean, std = (form.divisor * np.array(values, "f4").reshape(3, 1, 1) for values in (form.mean, form.std))
        image = (fn.cast(image, dtype=types.FLOAT) - types.Constant(mean)) / types.Constant(std)
    return image, sizes


def _reason(error: RuntimeError) -> str:
    """The line in which DALI says what it met; where in the pipeline stands before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    start = lines.index("encountered:") + 1 if "encountered:" in lines[:-1] else 0
    return lines[start] if lines else "no reason given"


def _placed(image: Any, sizes: Any, imgsz: tuple[int, int], config: LetterboxConfig, form: Preprocessing) -> Any:
    """Resize and pad; the geometry is that of ``letterbox_transform``, in numbers that float32 holds exactly."""
    from nvidia.dali import fn, math, types

    limit = config.inner_size or max(imgsz)
    room_h, room_w = (float(min(size - 2 * config.border, limit)) for size in imgsz)
    height, width = sizes[0], sizes[1]
    wide = fn.cast(room_w * height <= room_h * width, dtype=types.FLOAT)
    inner_h = wide * math.floor(height * room_w / width) + (1.0 - wide) * room_h
    inner_w = wide * room_w + (1.0 - wide) * math.floor(width * room_h / height)
    if not config.upscale:
        inner_h, inner_w = math.min(inner_h, height), math.min(inner_w, width)
    inner_h, inner_w = math.max(inner_h, 1.0), math.max(inner_w, 1.0)
    if form.stretch:
        inner_h, inner_w = inner_h * 0.0 + room_h, inner_w * 0.0 + room_w
    factor = width / inner_w
    for now in _shrinking((height, width), (inner_h, inner_w), factor, form.resize == "area", _as_float):
        image = fn.resize(
            image, size=fn.stack(*now), dtype=types.FLOAT, interp_type=types.INTERP_LINEAR, antialias=False
        )
    margins = [float(size) - inner for size, inner in zip(imgsz, (inner_h, inner_w), strict=True)]
    if form.placement == "top_left":
        start = fn.stack(*(margin * 0.0 - float(config.border) for margin in margins))
    else:
        start = fn.stack(*(-math.floor(margin / 2.0) for margin in margins))
    whole = fn.cast(image, dtype=types.UINT8)
    return fn.slice(
        whole, start=fn.cast(start, dtype=types.INT32), shape=list(imgsz), axes=[0, 1],
        out_of_bounds_policy="pad", fill_values=float(form.pad),
    )  # fmt: skip


def _as_float(condition: Any) -> Any:
    from nvidia.dali import fn, types

    return fn.cast(condition, dtype=types.FLOAT)


def shrinking_sizes(size: tuple[int, int], final: tuple[int, int]) -> list[tuple[int, int]]:
    """Heights and widths that an image of ``size`` is resized to one after another, the last is ``final``.

    It has none of them yet; so there are none if it is ``final``.
    """
    sizes = [size, *((int(h), int(w)) for h, w in _shrinking(size, final, max(size) / max(final), True, float))]
    return [after for before, after in pairwise(sizes) if after != before]


def _shrinking(
    size: tuple[Any, Any], final: tuple[Any, Any], factor: Any, by_area: bool, number: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any]]:
    """Height and width of an image after each step, in which it may stay as it is; the last step is for all.

    An image is first resized to ``2^halvings`` times its final size if that lies next to its factor, which is compared
    as powers of two are. Any image that shrinks at all goes through twice its size.

    Args:
        size, final: height and width; numbers, or nodes of a pipeline.
        factor: by which it shrinks.
        by_area: whether pixels are averaged; else there is one step.
        number: makes 0 or 1 of a comparison.
    """
    for halvings in range(_HALVINGS if by_area else 0, -1, -1):
        least = {0: 0.0, 1: 1.0}.get(halvings, 2.0 ** (halvings - 0.5))
        takes_part = number(factor > least)
        height, width = (
            takes_part * 2.0**halvings * after + (1.0 - takes_part) * now
            for after, now in zip(final, size, strict=True)
        )
        size = height, width
        yield size
