"""A graph as a detector: its layers are modules, everything else runs by the table of operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from repq.errors import RepqError
from repq.layers import LayerId
from repq.machine.torch_random import seeded
from repq.model.detector import Detector
from repq.model.onnx_graph import GraphSpec
from repq.model.onnx_graph.head import Split, split
from repq.model.onnx_graph.program import Program, Step, trace
from repq.model.onnx_graph.skeleton import layer_nodes, read_skeleton
from repq.onnx_file import given_inputs

_PROBED = 2
"""Images that a graph is traced with: enough to see how it treats several."""


class GraphDetector(Detector):
    """Runs the steps of a graph. Features are what its head reads; see `repq.model.onnx_graph.head`.

    Raises:
        RepqError: the spec holds no graph, or a node cannot be run.
    """

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__(spec, deploy=True)
        self.program, self.parts = program_of(spec.graph, spec.imgsz)
        self.watch: Callable[[Step, Sequence[Any], Any], None] | None = None  # sees what operators read and give
        self._owners: dict[LayerId, tuple[nn.Module, str]] = {}
        for layer, form in self.program.forms.items():
            *path, name = layer.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.add_module(name, form.build())
            self._owners[layer] = owner, name
        for number, value in self.program.constants.items():
            self.register_buffer(f"constant_{number}", value, persistent=False)

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        values = self._start(self.program.inputs, (x,))
        self._run(self.parts.body, values, len(x))
        return tuple(_joined(values[number]) for number in self.parts.crossing)

    def predict(self, features: tuple[Tensor, ...]) -> Tensor:
        return self._decoded(self._headed(features))

    def complete(self, features: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        values = self._headed(features)
        detections = self._decoded(values)
        boxes, scores = self._unranked(values) or self.spec.layout.parts(detections).values()
        return detections, (boxes, scores)

    def _unranked(self, values: list[Any]) -> tuple[Tensor, Tensor] | None:
        """All boxes and scores of a graph that picks the best; None: it does not, or not of these."""
        widths = [self.program.shapes[number][-1:] for number in self.parts.unranked]
        wanted = ((4,), (self.spec.num_classes,))
        if self.spec.layout.ranked is None or any(widths.count(width) != 1 for width in wanted):
            return None
        boxes, scores = (_joined(values[self.parts.unranked[widths.index(width)]]) for width in wanted)
        return boxes, scores

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        """What the graph itself gives, from feature maps."""
        values = self._headed(features)
        return [_joined(values[number]) for number in self.program.outputs]

    def _headed(self, features: tuple[Tensor, ...]) -> list[Any]:
        """The values after the head, from feature maps."""
        images = features[0].shape[0] // self.program.shapes[self.parts.crossing[0]][0]
        values = self._start(self.parts.crossing, features)
        self._run(self.parts.head, values, images)
        return values

    def _decoded(self, values: list[Any]) -> Tensor:
        outputs = [_joined(values[number]) for number in self.program.outputs]
        detections: Tensor = self.spec.layout.decode(outputs, self.spec.imgsz)
        return detections

    def _start(self, numbers: Sequence[int], tensors: Sequence[Tensor]) -> list[Any]:
        values: list[Any] = [None] * self.program.count
        for number in self.program.constants:
            values[number] = self._buffers[f"constant_{number}"]
        for number, tensor in zip(numbers, tensors, strict=True):
            values[number] = tensor
        return values

    def _run(self, steps: Sequence[Step], values: list[Any], images: int) -> None:
        """Run steps one after the other; ``values`` are those by number, and what nobody reads any more is dropped."""
        owners, constants = self._owners, self.program.constants
        for step in steps:
            if images > 1 and step.batching == "each":
                results = [
                    step.run(*[values[n] if n in constants else _image(values[n], i, images) for n in step.reads])
                    for i in range(images)
                ]
                if isinstance(results[0], Tensor):
                    values[step.writes[0]] = results
                else:
                    for number, parts in zip(step.writes, zip(*results, strict=True), strict=False):
                        values[number] = list(parts)
            else:
                tensors = [values[n] for n in step.reads]
                if images > 1:
                    tensors = [_joined(tensor) for tensor in tensors]
                if step.layer is not None:
                    owner, name = owners[step.layer]
                    values[step.writes[0]] = owner._modules[name](tensors[0])  # type: ignore[misc]
                else:
                    result = step.run(*tensors)
                    if self.watch is not None:
                        self.watch(step, tensors, result)
                    if isinstance(result, Tensor):
                        values[step.writes[0]] = result
                    else:
                        for number, tensor in zip(step.writes, result, strict=False):
                            values[number] = tensor
            for number in step.frees:
                values[number] = None


def _image(value: Tensor | list[Tensor], number: int, images: int) -> Tensor:
    """The part of one image."""
    if isinstance(value, list):
        return value[number]
    rows = value.shape[0] // images
    return value[number * rows : (number + 1) * rows]


def _joined(value: Tensor | list[Tensor]) -> Tensor:
    """The parts of all images, one behind the other."""
    if isinstance(value, Tensor):
        return value
    if len({part.shape for part in value}) > 1 or not value[0].ndim:
        raise RepqError(
            "the graph gives something else for every image", found=f"shapes {[tuple(part.shape) for part in value]}",
            fix="use batches of one image (--batch 1)",
        )  # fmt: skip
    return torch.cat(value)


@lru_cache(maxsize=4)
def program_of(skeleton: str, imgsz: tuple[int, int]) -> tuple[Program, Split]:
    """The steps of a skeleton for images of one size."""
    model = read_skeleton(skeleton)
    name = given_inputs(model)[0].name
    layers = {node.output[0]: layer for layer, node in layer_nodes(model).items()}
    with torch.device("cpu"), seeded(0):
        program = trace(model, {name: [torch.rand(1, 3, *imgsz) for _ in range(_PROBED)]}, layers)
    return program, split(program, imgsz)
