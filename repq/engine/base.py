"""What a runtime is, what an engine of it is, and what every saved engine records."""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from repq.errors import EngineError
from repq.layers import LayerId
from repq.recipe import BuildConfig, EngineName
from repq.results import Availability, EngineDescription, Expectation, NodeTime, Result, Variant

if TYPE_CHECKING:
    from repq.engine.source import Source

CONVERSIONS = {"float32": "(images / 255).astype('float32')", "uint8": "(images * 255).round().astype('uint8')"}
FLOATS = ("float32", "float16", "float64")
"""Types of inputs that take float32 images."""

Shape = tuple[int | str, ...]
"""Dimensions of a tensor; a string names a dynamic one."""


class TensorInfo(Result):
    """A tensor at the edge of the network. Engines take and give float32 and convert to ``dtype`` and back."""

    name: str
    shape: Shape
    dtype: str = "float32"

    @property
    def least_shape(self) -> tuple[int, ...]:
        """The shape with 1 for every dynamic dimension."""
        return tuple(size if isinstance(size, int) else 1 for size in self.shape)


class EngineManifest(Result):
    """Everything about an engine but its payload. It is what ``engine.json`` holds.

    Attributes:
        version: of the runtime that built the engine.
        source_sha256: of the ONNX file that the engine was built from.
        input: the image tensor, (batch, channels, height, width), or (batch, height, width, 3) of a graph that
            letterboxes.
        metadata: the ONNX file's own metadata, such as class names.
        layers: id of every layer, in graph order.
        int8_layers: those whose input and weight both have a scale in the source: what was asked for, not what runs.
        threads: CPU threads; None leaves the choice to the runtime.
        device: what it runs on.
        cpu_features: of the machine that built the engine.
        gpu, compute_capability: of the machine that built a TensorRT engine; None: there was none.
        settings: that it was built with.
        expected: what a look at the graph predicts, where somebody looked.
    """

    engine: EngineName
    version: str
    repq_version: str
    source: str
    source_sha256: str
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    layers: tuple[LayerId, ...]
    int8_layers: tuple[LayerId, ...]
    threads: int | None
    device: str
    cpu: str
    cpu_features: tuple[str, ...]
    gpu: str | None = None
    compute_capability: str | None = None
    settings: BuildConfig = Field(default_factory=BuildConfig)
    expected: Expectation | None = None


class Engine(ABC):
    """A model that is ready to run in one runtime on this machine."""

    def __init__(self, manifest: EngineManifest) -> None:
        self.manifest = manifest

    @property
    def name(self) -> EngineName:
        """The runtime's name."""
        return self.manifest.engine

    @property
    def batch(self) -> int | None:
        """The one batch size that ``infer`` takes; None: any."""
        size = self.manifest.input.shape[0]
        return size if isinstance(size, int) else None

    @abstractmethod
    def infer(self, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run images (B, C, H, W), float32 unless the manifest says otherwise, and return every output by its name.

        Raises:
            EngineError: the type or shape is not the one that the engine was built for; see `check_images`.
        """

    @property
    def runs_at_once(self) -> int:
        """How many threads may call ``infer`` at once."""
        return 1

    def concurrent(self) -> Engine:
        """The same engine for runs that go on at once, with more images a second; itself where one run is the best.

        What it gives is the same.
        """
        return self

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write what the runtime's ``load`` reads into an empty folder."""

    @abstractmethod
    def describe(self) -> EngineDescription:
        """Say what really runs: the precision and kernel of every layer, and the conversions between them."""

    def save(self, folder: Path) -> None:
        """Write the engine as a folder that ``repq.engine.load`` reads; whole or not at all.

        Raises:
            EngineError: the folder exists and is no engine, or cannot be written.
        """
        from repq.engine.storage import write_engine

        write_engine(folder, self.manifest, self.write)

    def profile(self, images: NDArray[Any], runs: int) -> tuple[NodeTime, ...]:
        """The time of everything that is run, in order, as means over ``runs`` runs.

        Raises:
            EngineError: the runtime does not tell.
        """
        raise EngineError(
            f"{self.name} does not tell repq how long each of its layers takes",
            fix="take the times of another engine, such as openvino or onnxruntime",
        )

    def layer_times(self, images: NDArray[np.float32], runs: int) -> dict[LayerId, float]:
        """Milliseconds of every layer with all that is fused into it, as means over ``runs`` runs.

        Raises:
            EngineError: the runtime does not tell.
        """
        found: dict[LayerId, float] = {}
        for node in self.profile(images, runs):
            if node.layer is not None:
                layer = LayerId(node.layer)
                found[layer] = found.get(layer, 0.0) + node.ms
        return found

    def described(self, **found: Any) -> EngineDescription:
        """A description with what the manifest says, and ``layers``, ``size_bytes`` … found."""
        manifest = self.manifest
        return EngineDescription(
            engine=self.name,
            version=manifest.version,
            device=manifest.device,
            input_name=manifest.input.name,
            input_shape=manifest.input.shape,
            output_names=tuple(output.name for output in manifest.outputs),
            expected=manifest.expected,
            **found,
        )


class Runtime(ABC):
    """What builds and runs engines of one kind. Its library is imported inside methods only.

    Attributes:
        name: its choice in settings.
        title: what reports call it.
        on_gpu: whether it runs on the GPU.
        by_default: whether engines are built for it if nobody says which.
        variants: what it can be built as.
        install: what had to be installed for it.
        lints: whether what ``repq lint`` expects of a graph is what it will run.
        settings: what a recipe for it has unless it says otherwise, by section; see ``repq.recipe.for_target``.
        nms: the same of a suppression inside the graph, which serves and is not measured.
    """

    name: ClassVar[EngineName]
    title: ClassVar[str]
    on_gpu: ClassVar[bool] = False
    by_default: ClassVar[bool] = False
    variants: ClassVar[tuple[Variant, ...]] = ("float32", "int8")
    install: ClassVar[str] = ""
    lints: ClassVar[bool] = False
    settings: ClassVar[Mapping[str, Any]] = {"ptq": {"scheme": "asymmetric"}}
    nms: ClassVar[Mapping[str, Any]] = {"confidence": 0.25}

    @abstractmethod
    def version(self) -> str:
        """Version of the installed library.

        Raises:
            EngineError: it is not installed, or does not load.
        """

    @abstractmethod
    def build(self, source: Source, manifest: EngineManifest) -> Engine:
        """Build an engine.

        Raises:
            EngineError: the library refuses the model, or lacks what it needs.
        """

    @abstractmethod
    def load(self, folder: Path, manifest: EngineManifest) -> Engine:
        """Load what `Engine.write` wrote.

        Raises:
            EngineError: it cannot run here.
        """

    def saturation(self) -> str | None:
        """Why INT8 sums of 8-bit weights saturate in it on this machine; None: they do not."""
        return None

    @abstractmethod
    def availability(self) -> list[Availability]:
        """What of it can be used here, and if not, why: rows of ``repq doctor``. It may raise anything."""

    def build_command(self, manifest: EngineManifest, onnx: Path, folder: Path) -> str | None:
        """The command line of the runtime's own tool that builds the same engine, if there is one."""
        return None


def library_version(module: str, title: str, install: str) -> str:
    """Version of an installed library.

    Args:
        title: what messages call it.
        install: the command that installs it.

    Raises:
        EngineError: it is not installed, or does not load.
    """
    try:
        return str(importlib.import_module(module).__version__)
    except (ImportError, OSError) as error:
        raise EngineError(f"{title} cannot be used here", found=str(error), fix=install) from None


def check_images(images: NDArray[Any], wanted: TensorInfo) -> None:
    """Refuse images that the engine cannot take.

    Raises:
        EngineError: wrong type, number of dimensions or size.
    """
    taken = "float32" if wanted.dtype in FLOATS else wanted.dtype
    if images.dtype != taken:
        known = CONVERSIONS.get(taken)
        raise EngineError(
            f"the engine's input {wanted.name!r} takes {taken} images",
            found=f"{images.dtype}",
            fix=f"convert them, for example {known}" if known else "export it for float32 images",
        )
    if fits(images.shape, wanted.shape):
        return
    if fits(images.shape[1:], wanted.shape[1:]):
        raise EngineError(
            f"the engine is built for batches of {wanted.shape[0]}",
            found=f"a batch of {images.shape[0]}",
            fix="pad or split the batch (`Engine.batch` names the size), or export with a dynamic batch",
        )
    raise EngineError(
        f"the engine's input {wanted.name!r} takes images of shape {wanted.shape}",
        found=f"{images.shape}",
        fix="resize the images, or export and build for this size",
    )


def cannot_run(manifest: EngineManifest, images: NDArray[Any], found: str) -> EngineError:
    """What an engine raises where its runtime gives up on images that it takes: mostly, memory does not suffice."""
    count = "one image" if len(images) == 1 else f"{len(images)} images"
    return EngineError(
        f"{manifest.source} cannot be run in {manifest.engine} on {count}", found=found,
        fix="try one image at a time (--batch 1); if that fails too, try another engine or export it again",
    )  # fmt: skip


def names_before(name: str, added: re.Pattern[str]) -> Iterator[str]:
    """A node's name, and what it was before each addition of a runtime to it, the last one first.

    The first of them that is a layer's id tells the layer: the id itself may end like an addition.
    """
    yield name
    while (shorter := added.sub("", name)) != name:
        yield (name := shorter)


def as_input(images: NDArray[Any], wanted: TensorInfo) -> NDArray[Any]:
    """The images in one piece of memory and of the type that the network reads."""
    return np.ascontiguousarray(images, wanted.dtype)


def fits(shape: Sequence[int], wanted: Shape) -> bool:
    """Whether every dimension is the wanted one; a dynamic one takes any size but zero."""
    return len(shape) == len(wanted) and all(
        size > 0 if isinstance(want, str) else size == want for size, want in zip(shape, wanted, strict=True)
    )
