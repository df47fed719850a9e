"""TensorRT 10.16 and 11 on an NVIDIA GPU.

A plan runs on the GPU and with the TensorRT that it was built for, so an engine remembers both and says so where they
differ. Building works wherever TensorRT has a builder; running, and asking which kernels were chosen, need the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from repq.engine.availability import GPU_FIX, installed, no_gpu, row
from repq.engine.base import Engine, EngineManifest, Runtime, check_images, library_version
from repq.engine.tensorrt_building import INSTALL, build_plan, profile_shapes, trtexec_line
from repq.engine.tensorrt_inspection import Kernel, conversions, executed_layers, node_times, read_kernels
from repq.engine.tensorrt_running import PlanRunner, open_plan
from repq.errors import EngineError
from repq.machine.cuda import find_gpu, gpu_or_none
from repq.results import UNKNOWN, Availability, EngineDescription, LayerPrecision, NodeTime

if TYPE_CHECKING:
    from repq.engine.source import Source

OLDEST = (10, 16)
_PLAN = "model.plan"


class TensorRt(Runtime):
    name, title, on_gpu, lints = "tensorrt", "TensorRT", True, True
    variants, install = ("float32", "float16", "int8"), INSTALL
    settings: ClassVar[Mapping[str, Any]] = {
        "ptq": {"scheme": "symmetric", "share_scales": "largest"},
        "export": {"merge_scales": True, "float16": True},
    }

    def version(self) -> str:
        library_version("polygraphy", "TensorRT", INSTALL)
        return library_version("tensorrt", "TensorRT", INSTALL)

    def build(self, source: Source, manifest: EngineManifest) -> TensorRtEngine:
        """Build a plan for this machine's GPU."""
        plan = build_plan(source.model.SerializeToString(), source.input, manifest.settings.tensorrt)
        gpu = gpu_or_none()
        place = {
            "device": "no GPU" if gpu is None else gpu.name,
            "gpu": None if gpu is None else gpu.name,
            "compute_capability": None if gpu is None else gpu.compute_capability,
        }
        return TensorRtEngine(manifest.model_copy(update=place), plan)

    def load(self, folder: Path, manifest: EngineManifest) -> TensorRtEngine:
        """Open a saved plan; one of another TensorRT or for another GPU is refused."""
        self._demand_same_place(folder, manifest)
        return TensorRtEngine(manifest, (folder / _PLAN).read_bytes())

    def build_command(self, manifest: EngineManifest, onnx: Path, folder: Path) -> str:
        """The ``trtexec`` line that builds the same plan."""
        settings = manifest.settings.tensorrt
        return trtexec_line(str(onnx), str(folder / _PLAN), manifest.input, settings, manifest.version)

    def availability(self) -> list[Availability]:
        gpu = gpu_or_none()
        missing = [name for name in ("tensorrt", "polygraphy") if not installed(name)]
        if missing:
            detail = f"not installed: {', '.join(missing)}" + ("" if gpu else f", and {no_gpu()}")
            fix = "pip install 'repq[tensorrt]'" if gpu else f"{GPU_FIX}, then pip install 'repq[tensorrt]'"
            return [row("tensorrt", "cuda", False, detail, fix)]
        import tensorrt

        version = str(tensorrt.__version__)
        if tuple(map(int, version.split(".")[:2])) < OLDEST:
            detail = f"TensorRT {version} is older than repq knows: it needs 10.16 or 11"
            return [row("tensorrt", "cuda", False, detail, "pip install --upgrade 'repq[tensorrt]'")]
        if gpu is None:
            detail = f"TensorRT {version} is here, but {no_gpu()}: it cannot run engines"
            return [row("tensorrt", "cuda", False, detail, GPU_FIX, version=version)]
        return [row("tensorrt", "cuda", True, f"{gpu}", version=version)]

    def _demand_same_place(self, folder: Path, manifest: EngineManifest) -> None:
        installed, gpu = self.version(), gpu_or_none()
        fix = "build it again here, from the ONNX file with the hash that its manifest holds"
        if installed != manifest.version and not manifest.settings.tensorrt.version_compatible:
            raise EngineError(
                f"{folder} was built with TensorRT {manifest.version}", found=f"TensorRT {installed} here", fix=fix
            )
        if gpu is None:  # it can be described; running it says that there is no GPU
            return
        if manifest.gpu is None:
            raise EngineError(
                f"{folder} was built without a GPU, to check the model only", found=f"{gpu} here", fix=fix
            )
        if (manifest.gpu, manifest.compute_capability) != (gpu.name, gpu.compute_capability):
            built = f"{manifest.gpu} (compute capability {manifest.compute_capability})"
            raise EngineError(f"{folder} was built on {built}", found=f"{gpu} here", fix=fix)


class TensorRtEngine(Engine):
    """One serialized engine; it is put on the GPU when it first runs or is described."""

    def __init__(self, manifest: EngineManifest, plan: bytes) -> None:
        super().__init__(manifest)
        self._plan = plan
        self._opened: Any = None
        self._runner: PlanRunner | None = None

    def infer(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        check_images(images, self.manifest.input)
        self._check_shape(images.shape)
        return self._ready()(images)

    def on_device(self, shape: tuple[int, ...]) -> tuple[Callable[[], object], int]:
        """One run on images of this shape that the GPU has already, and the handle of the stream that it goes to."""
        self._check_shape(shape)
        return self._ready().launcher(shape)

    def profile(self, images: NDArray[Any], runs: int) -> tuple[NodeTime, ...]:
        """By TensorRT's profiler, which waits after every kernel."""
        self.infer(images)
        runner = PlanRunner(self._engine(), self.manifest.input, self.manifest.outputs)
        kernels = {kernel.name: kernel for kernel in self._kernels()}
        return node_times(runner.kernel_times(images, runs), kernels, self.manifest.layers)

    def _ready(self) -> PlanRunner:
        if self._runner is None:
            self._runner = PlanRunner(self._engine(), self.manifest.input, self.manifest.outputs)
        return self._runner

    def write(self, folder: Path) -> None:
        (folder / _PLAN).write_bytes(self._plan)

    def describe(self) -> EngineDescription:
        """Say what really runs; without a GPU ``note`` says why that is not known, and every layer is ``unknown``."""
        note: str | None = None
        kernels: tuple[Kernel, ...] = ()
        try:
            find_gpu()
        except EngineError as error:
            note = f"{error.what}; which kernels were chosen can be asked on the GPU only"
        else:
            kernels = self._kernels()
        layers = executed_layers(kernels, self.manifest.layers)
        unknown = tuple(LayerPrecision(layer=layer, precision=UNKNOWN) for layer in self.manifest.layers)
        return self.described(
            layers=layers or unknown, extra_nodes=conversions(kernels), note=note, size_bytes=len(self._plan)
        )

    def _kernels(self) -> tuple[Kernel, ...]:
        import tensorrt as trt

        inspector = self._engine().create_engine_inspector()
        return read_kernels(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def _engine(self) -> Any:
        if self._opened is None:
            self._opened = open_plan(self._plan)
        return self._opened

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        smallest, _, largest = profile_shapes(self.manifest.input, self.manifest.settings.tensorrt)
        if not smallest[0] <= shape[0] <= largest[0]:
            raise EngineError(
                f"the engine is built for batches of {smallest[0]} to {largest[0]}",
                found=f"a batch of {shape[0]}",
                fix="split the batch, or build with another --profile",
            )
        if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            raise EngineError(
                f"the engine is built for images of {smallest[1]}x{smallest[2]} to {largest[1]}x{largest[2]}",
                found=f"images of {shape[1]}x{shape[2]}",
                fix="shrink them, or build with another --source-profile",
            )
