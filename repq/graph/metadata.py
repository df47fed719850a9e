"""What an exported file says about itself, so that it can be evaluated without the checkpoint it came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import onnx_graphsurgeon as gs
from onnx import ModelProto, helper

from repq.errors import GraphError
from repq.layers import LayerId
from repq.layout import OutputLayout
from repq.onnx_file import metadata_of
from repq.preprocessing import Preprocessing
from repq.recipe import NmsConfig, PreprocessConfig
from repq.thresholds import Thresholds

Precision = Literal["float32", "float16", "int8", "int8_float16"]
_PREFIX = "repq."


@dataclass(frozen=True)
class GraphMetadata:
    """The entries ``repq.*`` of a model's metadata.

    Attributes:
        version: the repq version that wrote the file.
        spec: the model's spec as JSON.
        num_classes: number of object classes.
        names: class names, or None where they are unknown.
        imgsz: height and width in pixels.
        precision: type of the float tensors, ``float32`` or ``float16``; ``int8`` or ``int8_float16`` for a Q/DQ graph.
        int8_layers: the quantized layers, in graph order.
        layout: what the columns of the detections mean.
        preprocessing: how images become its input.
        thresholds: what counts as found where it is used.
        preprocess: what the graph does of that before its first layer.
        nms: the suppression at its end; None: it ends with all detections.
        target: the runtime that the graph is for; empty: nobody said.
        form: the runtime whose form it has (``repq.graph.forms``); empty: the one that all passes know.
        maxima: largest magnitude of each tensor on the calibration images, where they were measured.
    """

    version: str
    spec: str
    num_classes: int
    names: tuple[str, ...] | None
    imgsz: tuple[int, int]
    precision: Precision = "float32"
    int8_layers: tuple[LayerId, ...] = ()
    layout: OutputLayout = OutputLayout()
    preprocessing: Preprocessing = Preprocessing()
    thresholds: Thresholds = Thresholds()
    preprocess: PreprocessConfig = PreprocessConfig()
    nms: NmsConfig | None = None
    target: str = ""
    form: str = ""
    maxima: Mapping[str, float] = field(default_factory=dict)


def write_metadata(model: ModelProto, metadata: GraphMetadata) -> None:
    """Set the metadata of ``model``, in place; entries of other tools stay."""
    others = {entry.key: entry.value for entry in model.metadata_props if not entry.key.startswith(_PREFIX)}
    helper.set_model_props(model, others | _entries(metadata))


def update_metadata(graph: gs.Graph, changes: Callable[[GraphMetadata], dict[str, Any]]) -> None:
    """Set fields of the metadata of an imported graph, if it has any, to what ``changes`` makes of it."""
    metadata = parse_metadata(graph.properties)
    if metadata is not None:
        others = {key: value for key, value in graph.properties.items() if not key.startswith(_PREFIX)}
        graph.properties = others | _entries(replace(metadata, **changes(metadata)))


def preprocessing_of(graph: gs.Graph) -> Preprocessing:
    """How images become the input of an imported graph; as usual where it does not tell."""
    metadata = parse_metadata(graph.properties)
    return Preprocessing() if metadata is None else metadata.preprocessing


def network_size(graph: gs.Graph) -> tuple[int, int] | None:
    """Height and width of the network's input in an imported graph, whatever images the graph itself takes.

    None: it does not tell, and its input is no (batch, 3, height, width) of one size.
    """
    metadata = parse_metadata(graph.properties)
    if metadata is not None:
        return metadata.imgsz
    sides = list(graph.inputs[0].shape or ())[2:] if graph.inputs else []
    return (sides[0], sides[1]) if len(sides) == 2 and all(isinstance(side, int) for side in sides) else None


def _entries(metadata: GraphMetadata) -> dict[str, str]:
    entries = {
        "version": metadata.version,
        "spec": metadata.spec,
        "num_classes": json.dumps(metadata.num_classes),
        "names": json.dumps(metadata.names, ensure_ascii=False),
        "imgsz": json.dumps(metadata.imgsz),
        "precision": metadata.precision,
        "int8_layers": json.dumps(metadata.int8_layers),
        "layout": metadata.layout.to_json(),
        "preprocessing": metadata.preprocessing.to_json(),
        "thresholds": metadata.thresholds.to_json(),
        "maxima": json.dumps(dict(metadata.maxima)),
    }
    if metadata.preprocess != PreprocessConfig():
        entries["preprocess"] = metadata.preprocess.model_dump_json()
    entries |= {key: value for key in ("target", "form") if (value := getattr(metadata, key))}
    if metadata.nms is not None:
        entries["nms"] = metadata.nms.model_dump_json()
    return {_PREFIX + key: value for key, value in entries.items()}


def read_metadata(model: ModelProto) -> GraphMetadata | None:
    """The metadata of ``model``; None for a file that repq did not write.

    Raises:
        GraphError: entries are missing or damaged.
    """
    return parse_metadata(metadata_of(model))


def parse_metadata(properties: Mapping[str, str]) -> GraphMetadata | None:
    """The metadata among a model's properties, as an engine keeps them too.

    Raises:
        GraphError: entries are missing or damaged.
    """
    entries = {key.removeprefix(_PREFIX): value for key, value in properties.items() if key.startswith(_PREFIX)}
    if not entries:
        return None
    try:
        return _parse(entries)
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise GraphError(
            "the metadata of the ONNX model is damaged", found=repr(error), fix="export the model again"
        ) from None


def _parse(entries: dict[str, str]) -> GraphMetadata:
    def value(key: str) -> Any:
        return json.loads(entries[key])

    names, (height, width) = value("names"), value("imgsz")
    precisions: dict[str, Precision] = {name: name for name in get_args(Precision)}
    if entries["precision"] not in precisions:
        raise ValueError(f"precision {entries['precision']}")
    preprocess = PreprocessConfig.model_validate_json(entries.get("preprocess", "{}"))
    before = Preprocessing(colours="bgr" if preprocess.bgr else "rgb")  # of files that do not tell yet
    return GraphMetadata(
        version=entries["version"],
        spec=entries["spec"],
        num_classes=int(value("num_classes")),
        names=None if names is None else tuple(map(str, names)),
        imgsz=(int(height), int(width)),
        precision=precisions[entries["precision"]],
        int8_layers=tuple(LayerId(layer) for layer in value("int8_layers")),
        layout=OutputLayout.from_json(entries.get("layout", "{}")),
        preprocessing=Preprocessing.from_json(entries.get("preprocessing", before.to_json())),
        thresholds=Thresholds.from_json(entries.get("thresholds", "{}")),
        preprocess=preprocess,
        nms=NmsConfig.model_validate_json(entries["nms"]) if "nms" in entries else None,
        target=entries.get("target", ""),
        form=entries.get("form", ""),
        maxima={str(name): float(largest) for name, largest in json.loads(entries.get("maxima", "{}")).items()},
    )
