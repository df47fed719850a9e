"""What an exported graph is, and what TensorRT is expected to make of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from repq.results.base import Result


class QdqCount(Result):
    """Q and DQ of activations, and the kernels that they are predicted to cost; ``avoidable`` by better scales."""

    quantize: int
    dequantize: int
    extra_kernels: int
    avoidable: int


class GraphFinding(Result):
    """One thing that lint found; ``bytes_moved`` is the memory traffic that it costs per run."""

    rule: str
    severity: Literal["error", "warning", "info"]
    where: str
    message: str
    source: str
    extra_kernels: int = 0
    bytes_moved: int = 0


_SEVERITIES = ("info", "warning", "error")


class LintedLayer(Result):
    """How a layer will run, and why."""

    layer: str
    precision: Literal["int8", "float16", "float32"]
    reason: str


class LintReport(Result):
    """Everything that lint says about a graph: layers in graph order, findings with the gravest first."""

    layers: tuple[LintedLayer, ...]
    findings: tuple[GraphFinding, ...]
    counts: QdqCount

    def at_least(self, severity: Literal["error", "warning", "info"]) -> tuple[GraphFinding, ...]:
        """The findings of this severity or a graver one."""
        least = _SEVERITIES.index(severity)
        return tuple(finding for finding in self.findings if _SEVERITIES.index(finding.severity) >= least)

    def exit_code(self, severity: Literal["error", "warning", "info"] = "warning") -> int:
        """1 if there are findings of ``severity`` or graver, else 0."""
        return int(bool(self.at_least(severity)))


class PassReport(Result):
    """What one graph pass did; ``reasons`` say why it left something as it was."""

    name: str
    title: str
    changed: bool
    reasons: tuple[str, ...] = ()


class ExportReport(Result):
    """One ONNX file.

    Attributes:
        qdq_before_merging, qdq: before and after scales were merged; equal where they were not.
        merged_groups: groups of tensors whose scales were unequal and are one now.
        fp32_nodes: in an FP16 file, nodes beside the decoding of boxes that stay FP32 because FP16 would overflow.
        raised_scales: in an FP16 file, scales that were raised to the smallest normal FP16 number.
        findings: what lint says of the file, the gravest first.
        passes: the graph passes that ran, in order.
        preprocess, nms: what of the service is inside (`repq.recipe.PreprocessConfig`, `repq.recipe.NmsConfig`).
    """

    out: str
    imgsz: tuple[int, int]
    batch: int | None
    opset: int
    precision: str
    qdq_before_merging: QdqCount
    qdq: QdqCount
    merged_groups: int
    fp32_nodes: tuple[str, ...]
    layers_int8: int
    layers_float: int
    size_bytes: int
    findings: tuple[GraphFinding, ...]
    passes: tuple[PassReport, ...] = ()
    preprocess: dict[str, Any] = Field(default_factory=dict)
    nms: dict[str, Any] | None = None
    raised_scales: tuple[str, ...] = ()


class ExportedGraphs(Result):
    """The graphs of a run, by name: ``float32``, ``int8`` and, for TensorRT, ``float16`` and ``int8_float16``."""

    graphs: dict[str, ExportReport]
