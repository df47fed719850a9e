"""What a family of detectors says about itself.

A family is one folder, or one file: an object in ``repq.model.families.FAMILIES``, a ``Spec`` that describes its
models, and a subclass of ``repq.model.Detector`` that runs them. Importing this module loads no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import ConfigDict, ValidationError

from repq.errors import RepqError
from repq.json_value import adapter
from repq.layout import OutputLayout
from repq.preprocessing import Preprocessing
from repq.results import Variant
from repq.thresholds import Thresholds

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor

    from repq.model.detector import Detector
    from repq.recipe import TrainConfig

Shapes = Mapping[str, tuple[int, ...]]
S = TypeVar("S", bound="Spec")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One detector, ready to build. Families add what else they need.

    Attributes:
        family: name of the family.
        name: the name it is built by, such as ``yolov6s_v2_opt``.
        num_classes: number of object classes.
        strides: input pixels per cell of each output level, finest first.
        preprocessing: how images become its input.
        thresholds: what counts as found where it is used.
        widths: of a pruned model, layers whose input channels, output channels and groups are not the usual ones.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    family: str
    name: str
    num_classes: int
    strides: tuple[int, ...]
    preprocessing: Preprocessing = Preprocessing()
    thresholds: Thresholds = Thresholds()
    widths: tuple[tuple[str, int, int, int], ...] = ()

    @property
    def layout(self) -> OutputLayout:
        """What the columns of the detections mean."""
        return OutputLayout()

    @property
    def least_entries(self) -> int:
        """So many state-dict entries has any such model: a file that declares more than it holds is never built."""
        return 0

    @property
    def only_size(self) -> tuple[int, int] | None:
        """Height and width of the only images that the network takes; None: any that its levels divide."""
        return None

    def description(self) -> str:
        """What a file that holds the network itself says of it, as JSON."""
        return self.to_json()

    def check_size(self, height: int, width: int) -> None:
        """Check that every level divides the input size.

        Raises:
            RepqError: a side is no positive multiple of the coarsest stride.
        """
        step = max(self.strides)
        if height <= 0 or width <= 0 or height % step or width % step:
            near = "x".join(str(max(1, round(side / step)) * step) for side in (height, width))
            raise RepqError(
                f"{self.name} cannot take images of {height}x{width} (height x width)",
                found=f"a coarsest stride of {step}",
                fix=f"choose multiples of {step}, such as {near}",
            )

    def to_json(self) -> str:
        """The spec as one JSON object."""
        kind: Any = type(self)
        return adapter(kind).dump_json(self).decode()

    @classmethod
    def from_json(cls: type[S], text: str) -> S:
        """Read what ``to_json`` wrote.

        Raises:
            RepqError: the text is no JSON object or its keys or values are no model description.
        """
        try:
            kind: Any = cls
            spec: S = adapter(kind).validate_json(text)
            return spec
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise RepqError(
                "cannot read the model description",
                found=f"{where or 'text'}: {problem['msg']}",
                fix="use a file that this version of repq wrote",
            ) from None


@dataclass(frozen=True)
class PublishedSpeed:
    """Images per second of one model that its authors published.

    Attributes:
        spec: the architecture, see `Family.architecture`.
        table: of the source.
        setting: the device and the runtime.
    """

    spec: str
    variant: Variant
    batch: int
    images_per_s: int
    table: int
    setting: str
    source: str
    imgsz: tuple[int, int] = (640, 640)


@dataclass(frozen=True)
class Recovery:
    """What a state dict was recognised as.

    Attributes:
        spec: the architecture, with the class count of the file.
        deploy: whether the entries are those of the fused form.
        entries: the file's name of each entry of the model.
        notes: what was dropped, renamed or chosen.
        constants: entries of the model that the file leaves out and every model has; counts of batches need no mention.
    """

    spec: Spec
    deploy: bool
    entries: Mapping[str, str]
    notes: tuple[str, ...] = ()
    constants: Mapping[str, Tensor] = field(default_factory=dict)


class Family(ABC):
    """A kind of detectors: their names, how to build them, how to know their weights, how to train them.

    Attributes:
        name: of the family; specs carry it, and so do the files that repq writes.
        spec_type: class of its specs.
        packages: Python packages whose classes official checkpoints of the family pickle. They are never imported.
        published: speeds to set one's own beside.
    """

    name: str
    spec_type: type[Spec] = Spec
    packages: tuple[str, ...] = ()
    published: tuple[PublishedSpeed, ...] = ()

    @abstractmethod
    def model_names(self) -> tuple[str, ...]:
        """Every name that ``spec`` takes."""

    @abstractmethod
    def spec(self, name: str, num_classes: int) -> Spec | None:
        """The spec of a named model; None: the family has no such model."""

    @abstractmethod
    def build(self, spec: Any, *, deploy: bool) -> Detector:
        """The detector of a spec with fresh weights, as trained or in its fused form.

        Blocks that fusing changes have a method ``folds`` (`repq.model.Foldable`). In the fused form every convolution
        has a bias and no batch norm follows it.
        """

    def recover(self, shapes: Shapes, name: str | None, modules: Mapping[str, str]) -> Recovery | None:
        """Recognise a state dict; None: it is of another family.

        Args:
            shapes: the shape of every entry by name.
            name: the architecture to take, instead of looking for it.
            modules: class names by module path where the file holds them.

        Raises:
            CheckpointError: it is of this family, but of no known architecture.
        """
        return None

    def graph_of(self, model: Detector) -> ModelProto | None:
        """The graph that a model came from, with its weights as they are now; None: torch exports it."""
        return None

    def training(self, name: str) -> dict[str, Any]:
        """The fields of ``repq.TrainConfig`` in which a model's published training differs from the usual one."""
        return {}

    def objective(self, model: Detector, config: TrainConfig) -> Any:
        """The loss and the assignment of a training, a ``repq.train.Objective``; None: no training on labels."""
        return None

    def architecture(self, name: str) -> str:
        """A model's name without what vanishes when it is fused."""
        return name

    def rep_optimizer_names(self, name: str) -> tuple[str, str] | None:
        """The hyper-search model and the plain model of RepOptimizer with a model's layout; None: there are none."""
        return None
