"""What engines are and how they agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Literal

from pydantic import Field

from repq.recipe.budget import holds
from repq.results.accuracy import Accuracy
from repq.results.base import Result

Variant = Literal["float32", "float16", "int8"]
"""What a model was built as. What its layers really ran in is in ``EngineDescription.layers``."""


UNKNOWN = "unknown"
"""In place of a layer's precision: the runtime does not tell it."""


class ModelInfo(Result):
    """A model as one runtime runs it: what every row of measurements says of it. None: the runtime does not tell."""

    model: str  # what tables call it
    engine: str
    variant: Variant
    precision: str  # what its layers really ran in
    size_bytes: int | None
    spec: str | None = None  # the architecture, such as yolov6s_v2
    int8_layers: int | None = None
    float_layers: int | None = None


class LayerPrecision(Result):
    """The precision that the runtime really used for one layer."""

    layer: str
    precision: str  # int8, float32, float16, bfloat16 …
    kernel: str = ""


class Expectation(Result):
    """What a look at the graph alone predicts: the precision of every layer, and kernels that convert scales."""

    layers: dict[str, str]
    extra_kernels: int


class EngineDescription(Result):
    """What an engine runs. ``note`` says why layers are ``unknown``, where they are, or what to know of the others.

    ``extra_nodes`` are those that the executed graph keeps beside the layers: quantize, reorder …
    """

    engine: str
    version: str
    device: str
    input_name: str
    input_shape: tuple[int | str, ...]
    output_names: tuple[str, ...]
    size_bytes: int
    layers: tuple[LayerPrecision, ...]
    extra_nodes: dict[str, int] = Field(default_factory=dict)
    expected: Expectation | None = None
    note: str | None = None

    def precision_counts(self) -> dict[str, int]:
        """Number of layers per precision."""
        return dict(Counter(layer.precision for layer in self.layers))

    @property
    def int8_layers(self) -> int | None:
        """How many layers run in INT8; None where the runtime tells of no layer."""
        counts = self.precision_counts()
        return counts.get("int8", 0) if set(counts) - {UNKNOWN} else None

    def surprises(self) -> tuple[tuple[str, str, str], ...]:
        """Layers that run otherwise than expected: the layer, the precision expected and the one that runs."""
        expected = self.expected.layers if self.expected is not None else {}
        same = {"tf32": "float32"}  # the same type, multiplied with fewer digits
        return tuple(
            (row.layer, expected[row.layer], row.precision)
            for row in self.layers
            if row.precision != UNKNOWN
            and expected.get(row.layer, row.precision) not in (row.precision, same.get(row.precision))
        )


class BuiltEngines(Result):
    """The engines of a run, by name: ``openvino-int8`` …"""

    engines: dict[str, EngineDescription]


class Agreement(ModelInfo):
    """One model against the reference on the same images. SNR is 20 log10(|reference| / |difference|)."""

    snr_db: dict[str, float]  # per output: boxes, scores; infinite where they are equal
    max_abs_error: dict[str, float]
    accuracy: Accuracy
    ap_gap: float | None  # AP minus reference AP; None: the reference finds nothing, so AP cannot tell them apart

    @property
    def title(self) -> str:
        """The engine, with the model where its name does not say it."""
        by_engine = self.model in (self.engine, f"{self.engine}-{self.variant}")
        return self.engine if by_engine else f"{self.model} ({self.engine})"


class CheckReport(Result):
    reference: Accuracy
    engines: tuple[Agreement, ...]
    images: int
    max_drop: float
    min_snr_db: float | None
    passed: bool
    typed: Agreement | None = None  # the file with FP16 types that TensorRT gets, against the one without them

    def within(self, row: Agreement, *, by_ap: bool = True) -> bool:
        """Whether a model is within the bounds; without ``by_ap`` within that of the SNR."""
        if self.min_snr_db is not None and not all(snr >= self.min_snr_db for snr in row.snr_db.values()):
            return False
        if not by_ap or (row.ap_gap is None and self.min_snr_db is not None):
            return True  # of the latter AP cannot tell, the outputs can
        return holds(None if row.ap_gap is None else abs(row.ap_gap), self.max_drop)

    def failing(self, proven: Collection[str] = ()) -> list[Agreement]:
        """Models outside the bounds, the widest gap in AP first.

        Args:
            proven: engines whose own AP is known to be near enough to that of the float model. Values on the edge of a
                step fall to either side in any runtime, which moves AP on few images: so their gap counts for nothing.
        """
        found = [row for row in self.engines if not self.within(row, by_ap=row.engine not in proven)]
        return sorted(found, key=lambda row: -abs(row.ap_gap or 0.0))


class Availability(Result):
    """Whether a runtime and one of its devices can be used here, and if not, why and how to get it."""

    runtime: str  # torch, onnxruntime, openvino, tensorrt
    device: str
    usable: bool
    version: str | None
    detail: str  # what was found, or what is missing
    fix: str | None = None
