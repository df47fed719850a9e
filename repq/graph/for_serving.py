"""All that a service may want inside the graph, in the one order in which the passes fit together."""

from __future__ import annotations

from onnx import ModelProto

from repq.graph.bgr_input import bgr_input
from repq.graph.letterbox_input import letterbox_input
from repq.graph.nms_output import nms_output
from repq.graph.uint8_input import uint8_input
from repq.recipe import NmsConfig, PreprocessConfig


def for_serving(model: ModelProto, preprocess: PreprocessConfig, nms: NmsConfig | None) -> ModelProto:
    """Return a copy of ``model`` with this work inside; ``model`` itself where there is none.

    It comes last of all passes: scale merging, FP16 and Q/DQ insertion work on graphs without it.

    Raises:
        GraphError: some of it is inside already, or the graph is none of a detector.
    """
    if preprocess.bgr:
        model = bgr_input(model)
    if preprocess.uint8:
        model = uint8_input(model)
    if preprocess.letterbox is not None:
        model = letterbox_input(model, preprocess.letterbox, preprocess.source)
    return model if nms is None else nms_output(model, nms)
