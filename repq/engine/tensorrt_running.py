"""Running a plan on the GPU: one execution context and one set of buffers, made for the largest batch and kept."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repq.engine.base import TensorInfo
from repq.errors import EngineError
from repq.machine.cuda import find_gpu


def open_plan(plan: bytes) -> Any:
    """Deserialize a plan.

    Raises:
        EngineError: there is no GPU, or this TensorRT does not take the plan.
    """
    import tensorrt as trt

    gpu = find_gpu()
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    runtime.engine_host_code_allowed = True  # a version-compatible plan brings its runtime along
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            "TensorRT does not load the engine",
            found=f"TensorRT {trt.__version__} on {gpu}; the reason is in its log above",
            fix="build it again on this machine",
        )
    return engine


class PlanRunner:
    """Copies images to the GPU, runs the plan and copies its outputs back, in buffers that are made once.

    The buffers hold the largest shape of the profile; a smaller one uses their first part.
    """

    def __init__(self, engine: Any, images: TensorInfo, outputs: tuple[TensorInfo, ...]) -> None:
        from polygraphy import cuda

        self._turn = Lock()
        self._engine = engine  # the context does not keep it alive
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError("TensorRT cannot make an execution context", fix="free memory of the GPU")
        self._stream = cuda.Stream()
        self._input = images.name
        largest = tuple(engine.get_tensor_profile_shape(images.name, 0)[2])
        self._set_shape(largest)
        self._host: dict[str, NDArray[Any]] = {}
        self._device: dict[str, Any] = {}
        for name in (images.name, *(output.name for output in outputs)):
            self._host[name] = self._buffer(name)
            self._device[name] = cuda.DeviceArray.raw((self._host[name].nbytes,))
            self._context.set_tensor_address(name, self._device[name].ptr)
        self._outputs = tuple(output.name for output in outputs)
        weakref.finalize(self, _free, (*self._device.values(), self._stream))

    def __call__(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Run images (B, C, H, W) that fit the profile; outputs come back as new float32 arrays.

        Threads take turns: the buffers are those of one run.
        """
        with self._turn:
            return self._run(images)

    def _run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        if images.shape != self._shape:
            self._set_shape(images.shape)
        staged = self._staged(self._input)
        np.copyto(staged, images, casting="same_kind")
        self._device[self._input].copy_from(_flat(staged), self._stream)
        if not self._context.execute_async_v3(self._stream.ptr):
            raise EngineError("TensorRT could not run the engine", found="the reason is in its log above")
        results = {name: self._staged(name) for name in self._outputs}
        for name, host in results.items():
            self._device[name].view((host.nbytes,)).copy_to(_flat(host), self._stream)
        self._stream.synchronize()
        return {name: host.astype(np.float32) for name, host in results.items()}

    def kernel_times(self, images: NDArray[np.float32], runs: int) -> dict[str, float]:
        """Milliseconds of every kernel by its name, in order, as means over the runs; every later run is slower."""
        import tensorrt as trt

        found: dict[str, float] = {}

        class Times(trt.IProfiler):
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, name: str, ms: float) -> None:
                found[name] = found.get(name, 0.0) + ms / runs

        times = Times()
        self._context.profiler = times
        for _ in range(runs):
            self(images)
        return found

    def launcher(self, shape: tuple[int, ...]) -> tuple[Callable[[], object], int]:
        """What starts one run on the images that lie on the GPU, and the stream's handle; it copies nothing."""
        if shape != self._shape:
            self._set_shape(shape)
        return lambda: self._context.execute_async_v3(self._stream.ptr), int(self._stream.ptr)

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(self._input, shape):
            raise EngineError("the engine does not take images of this shape", found=str(shape))
        self._shape = shape

    def _buffer(self, name: str) -> NDArray[Any]:
        """Room on the host for a tensor of the shape that is set, in one row."""
        import tensorrt as trt

        return np.empty(math.prod(self._shape_of(name)), trt.nptype(self._engine.get_tensor_dtype(name)))

    def _staged(self, name: str) -> NDArray[Any]:
        """The part of the room that a tensor takes with the shape that is set now."""
        shape = self._shape_of(name)
        return self._host[name][: math.prod(shape)].reshape(shape)

    def _shape_of(self, name: str) -> tuple[int, ...]:
        return tuple(self._context.get_tensor_shape(name))


def _free(held: Iterable[Any]) -> None:
    """Give GPU memory back; Polygraphy's buffers do not by themselves."""
    for item in held:
        item.free()


def _flat(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8)
