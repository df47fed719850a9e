"""Whether what a runtime made of a graph computes the same: one random image in it and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from repq.errors import EngineError

if TYPE_CHECKING:
    import onnx

    from repq.engine.source import Source

TOLERANCE = 1e-3


def random_images(source: Source) -> NDArray[np.float32]:
    """One image (1, C, H, W) of a graph that takes images of one size."""
    from repq.graph import parse_metadata

    metadata = parse_metadata(source.metadata)
    largest = 1.0 if metadata is None else 255 / metadata.preprocessing.divisor
    shape = (1, *(size for size in source.input.shape[1:] if isinstance(size, int)))
    return np.random.default_rng(0).uniform(0, largest, shape).astype(np.float32)


def reference(model: onnx.ModelProto, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The outputs of ONNX Runtime."""
    from repq.engine.onnxruntime import open_session

    session = open_session(model.SerializeToString(), None, "cpu")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


def demand_equal(wanted: Mapping[str, NDArray[np.float32]], found: Sequence[NDArray[np.float32]], by: str) -> None:
    """Demand equal outputs: to ``TOLERANCE`` of the range, which each channel of a map and each column has of its own.

    Args:
        by: what converted the graph.

    Raises:
        EngineError: a shape or a value differs.
    """
    if len(wanted) != len(found):
        raise _differs(by, f"{len(found)} outputs in place of {len(wanted)}")
    for (name, values), other in zip(wanted.items(), found, strict=True):
        if other.size != values.size:
            raise _differs(by, f"{name} has the shape {other.shape} in place of {values.shape}")
        axes = tuple(axis for axis in range(values.ndim) if axis != (1 if values.ndim == 4 else values.ndim - 1))
        error = np.abs(other.reshape(values.shape) - values).max(axis=axes)
        # A column of one value has no range: its size takes its place.
        bound = np.maximum(np.ptp(values, axis=axes), np.abs(values).max(axis=axes)) * TOLERANCE
        if not np.all(error <= bound):  # a NaN is wrong, too
            worst = int(np.argmax(np.where(np.isnan(error), np.inf, error - bound)))
            raise _differs(by, f"{name}, channel {worst}: an error of {error[worst]:.3g}, allowed {bound[worst]:.3g}")


def _differs(by: str, found: str) -> EngineError:
    fix = f"use another engine, or another version of {by}; slices in steps, such as YOLOX's Focus, are known to fail"
    return EngineError(f"what {by} made of the graph computes something else", found=found, fix=fix)
