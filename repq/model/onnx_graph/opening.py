"""From an ONNX file to a detector of this family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from repq.errors import GraphError
from repq.layout import demand_finite
from repq.model.checkpoint import Checkpoint
from repq.model.onnx_graph import GraphSpec
from repq.model.onnx_graph.detector import GraphDetector
from repq.model.onnx_graph.head import strides
from repq.model.onnx_graph.reading import read_graph
from repq.model.onnx_graph.skeleton import to_skeleton
from repq.output_layouts import Outputs, class_names, form_of
from repq.recipe import GraphConfig


def load_graph(path: Path, imgsz: tuple[int, int] | None = None, config: GraphConfig | None = None) -> Checkpoint:
    """Read a float ONNX file as a detector.

    Args:
        imgsz: height and width, for a graph of any size.
        config: what the file does not say of itself.

    Raises:
        GraphError: the file cannot be used; the message says why.
        RepqError: it is not clear what the outputs mean.
    """
    file = read_graph(path, imgsz)
    skeleton, weights = to_skeleton(file.model)
    spec = GraphSpec(name=path.stem, num_classes=1, strides=(1,), imgsz=file.imgsz, graph=skeleton)
    model = GraphDetector(spec)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if name.endswith(".bias")}
    state |= {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    if broken := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise GraphError(f"{path.name} holds weights that are not finite", found=broken[0], fix="export it again")
    model.load_state_dict(state, assign=True)
    model.eval()
    outputs = _outputs(model, [output.name for output in file.model.graph.output], file.metadata)
    demand_finite(outputs.arrays, path.name)
    form = form_of(outputs, file.metadata, config or GraphConfig())
    levels = strides(model.program, model.parts.crossing, file.imgsz)
    model.spec = replace(
        spec, num_classes=form.classes, strides=levels, layout=form.layout, preprocessing=form.preprocessing
    )
    return Checkpoint(model, class_names(file.metadata), (*file.notes, *form.notes))


@torch.no_grad()
def _outputs(model: GraphDetector, names: list[str], metadata: Mapping[str, str]) -> Outputs:
    """What the graph gives for a grey image with noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, *model.spec.imgsz, generator=generator)
    arrays = [value.numpy() for value in model.outputs(model.features(image))]
    known = class_names(metadata)
    return Outputs(dict(zip(names, arrays, strict=True)), model.spec.imgsz, None if known is None else len(known))
