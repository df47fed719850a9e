"""The graph passes of an export, in the one order in which they fit together.

A pass is one entry of ``PASSES``: anything with a ``name``, a ``title``, whether an export wants it, and a function
that edits an onnx-graphsurgeon graph in place and says what it did. Adding one means appending an entry.

Scale merging, FP16 and Q/DQ placement work on graphs without the service's pre- and postprocessing, so that comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from repq.recipe import ExportConfig
from repq.results import PassReport

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from onnx import ModelProto


@dataclass(frozen=True)
class PassContext:
    """What the passes of one export know.

    Attributes:
        config: the settings of the export.
        quantized: whether the graph has Q/DQ.
        maxima: largest magnitude of each tensor on the calibration images, by anchor (``repq.graph.anchors``).
    """

    config: ExportConfig = field(default_factory=ExportConfig)
    quantized: bool = False
    maxima: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a pass did: whether the graph changed, why it left something as it was, and names of what it touched."""

    changed: bool = True
    reasons: tuple[str, ...] = ()
    touched: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphPass:
    """One pass: ``run`` edits the graph in place, if ``wanted``.

    ``shared``: it is part of what the FP32 and the FP16 file of a model have in common, and runs once for both.
    """

    name: str
    title: str
    wanted: Callable[[PassContext], bool]
    run: Callable[[gs.Graph, PassContext], Outcome]
    shared: bool = False


def run_passes(
    model: ModelProto, context: PassContext, passes: Sequence[GraphPass] | None = None
) -> tuple[ModelProto, dict[str, Outcome], tuple[PassReport, ...]]:
    """Run the passes that ``context`` wants; return the model, and of each pass that ran what it did.

    Raises:
        GraphError: a pass does not fit the graph, or leaves it invalid.
    """
    import onnx

    from repq.errors import GraphError, reason
    from repq.graph.surgeon import export_graph, import_graph

    outcomes: dict[str, Outcome] = {}
    reports = []
    for entry in PASSES if passes is None else passes:
        if not entry.wanted(context):
            continue
        graph = import_graph(model, shapes=True)
        outcome = outcomes[entry.name] = entry.run(graph, context)
        if outcome.changed:
            model = export_graph(graph)
            try:
                onnx.checker.check_model(model, full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
                raise GraphError(f"the pass {entry.name} leaves an invalid graph", found=reason(error)) from None
        reports.append(PassReport(name=entry.name, title=entry.title, changed=outcome.changed, reasons=outcome.reasons))
    return model, outcomes, tuple(reports)


def _quantize_residuals(graph: gs.Graph, _: PassContext) -> Outcome:
    from repq.graph.residuals import place

    report = place(graph)
    reasons = tuple(f"{tensor}: {reason}" for tensor, reason in report.left_float)
    return Outcome(bool(report.quantized), reasons, {"quantized": report.quantized})


def _merge_scales(graph: gs.Graph, _: PassContext) -> Outcome:
    from repq.graph.propagation import propagate
    from repq.graph.scale_merging import merge

    groups = merge(graph)
    moved = propagate(graph)
    return Outcome(bool(groups) or moved, touched={"groups": tuple(group.tensors[0] for group in groups)})


def _to_fp16(graph: gs.Graph, context: PassContext) -> Outcome:
    from repq.graph.fp16 import nodes_beyond, type_as_fp16

    beyond = nodes_beyond(graph, context.maxima)
    report = type_as_fp16(graph, keep_fp32=beyond, float32_io=not context.config.float16_io)
    return Outcome(touched={"fp32_nodes": beyond, "raised_scales": report.raised_scales})


def _concat_integers(graph: gs.Graph, _: PassContext) -> Outcome:
    from repq.graph.integer_concat import concatenate

    return Outcome(concatenate(graph))


def _bgr_input(graph: gs.Graph, _: PassContext) -> Outcome:
    from repq.graph.first_layers import swap_colours
    from repq.graph.metadata import preprocessing_of

    if preprocessing_of(graph).bgr:
        return Outcome(False, ("the network takes BGR",))
    swap_colours(graph)
    return Outcome()


def _uint8_input(graph: gs.Graph, _: PassContext) -> Outcome:
    from repq.graph.first_layers import take_bytes

    take_bytes(graph)
    return Outcome()


def _letterbox_input(graph: gs.Graph, context: PassContext) -> Outcome:
    from repq.graph.letterbox import letterbox

    assert context.config.preprocess.letterbox is not None
    letterbox(graph, context.config.preprocess.letterbox, context.config.preprocess.source)
    return Outcome()


def _nms_output(graph: gs.Graph, context: PassContext) -> Outcome:
    from repq.graph.suppression import suppress

    assert context.config.nms is not None
    suppress(graph, context.config.nms)
    return Outcome()


def _meets_as_integers(context: PassContext) -> bool:
    return context.quantized and not context.config.merge_scales


def _merges(context: PassContext) -> bool:
    return context.quantized and context.config.merge_scales


PASSES: list[GraphPass] = [
    GraphPass("quantize_residuals", "Both sides of residual additions in INT8", _merges, _quantize_residuals, True),
    GraphPass("merge_scales", "One scale for tensors that meet", _merges, _merge_scales, True),
    GraphPass("concat_integers", "Integers into a Concat", _meets_as_integers, _concat_integers, True),
    GraphPass("to_fp16", "What is not INT8 in FP16", lambda c: c.config.float16, _to_fp16),
    GraphPass("bgr_input", "Images in BGR", lambda c: c.config.preprocess.bgr, _bgr_input),
    GraphPass("uint8_input", "Pixels as bytes", lambda c: c.config.preprocess.uint8, _uint8_input),
    GraphPass("letterbox_input", "Letterbox inside", lambda c: bool(c.config.preprocess.letterbox), _letterbox_input),
    GraphPass("nms_output", "Suppression inside", lambda c: c.config.nms is not None, _nms_output),
]
"""In the order in which they are applied."""
