"""The family of graphs: a detector from any ONNX file, with the file itself as its architecture.

Importing this module loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from repq.errors import RepqError
from repq.layout import OutputLayout
from repq.model.family import Family, Spec

if TYPE_CHECKING:
    from onnx import ModelProto

    from repq.model.detector import Detector


@dataclass(frozen=True, kw_only=True)
class GraphSpec(Spec):
    """A detector that an ONNX file describes.

    Attributes:
        imgsz: height and width of its input.
        layout: what its outputs mean.
        graph: the file without its layers' weights, see `repq.model.onnx_graph.skeleton`; empty in a description.
    """

    family: str = "onnx"
    imgsz: tuple[int, int]
    layout: OutputLayout = OutputLayout()
    graph: str = ""

    @property
    def only_size(self) -> tuple[int, int]:
        return self.imgsz

    def description(self) -> str:
        return replace(self, graph="").to_json()

    def check_size(self, height: int, width: int) -> None:
        if (height, width) != self.imgsz:
            raise RepqError(
                f"{self.name} takes images of {self.imgsz[0]}x{self.imgsz[1]} (height x width)",
                found=f"{height}x{width}", fix=f"give --imgsz {self.imgsz[0]}x{self.imgsz[1]}",
            )  # fmt: skip


class OnnxGraph(Family):
    name = "onnx"
    spec_type = GraphSpec

    def model_names(self) -> tuple[str, ...]:
        return ()

    def spec(self, name: str, num_classes: int) -> None:
        return None

    def build(self, spec: Any, *, deploy: bool) -> Detector:
        from repq.model.onnx_graph.detector import GraphDetector

        return GraphDetector(spec)

    def graph_of(self, model: Detector) -> ModelProto:
        from repq.model.onnx_graph.skeleton import with_weights

        return with_weights(model.spec.graph, model.state_dict())
