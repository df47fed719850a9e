"""From torch to ONNX: the only module that knows both.

``images (B, 3, H, W) float32 -> detections``; the metadata describes both (``Preprocessing``, ``OutputLayout``).
Every convolution's weight is the initializer ``<LayerId>.weight``, which the graph passes join on, and its node is
named ``<LayerId>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as with_changes

import onnx
import torch
from onnx import ModelProto
from torch import nn

import repq
from repq.errors import GraphError
from repq.files import cached
from repq.graph.conversion import as_asked
from repq.graph.files import load_onnx, save_onnx
from repq.graph.insertion import insert_qdq
from repq.graph.layer_join import layer_nodes
from repq.graph.metadata import GraphMetadata, read_metadata, write_metadata
from repq.graph.propagation import propagate_qdq
from repq.graph.surgeon import export_graph, import_graph
from repq.identity import identify
from repq.layers import LayerId
from repq.log import without_warnings
from repq.model import Detector, Spec, family_named, layer_ids, outline
from repq.model.onnx_graph.detector import GraphDetector
from repq.onnx_file import with_shapes
from repq.preprocessing import Preprocessing
from repq.quant import scale_table
from repq.recipe import ExportConfig
from repq.thresholds import Thresholds

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "export_float", "export_quantized", "load_onnx", "save_onnx"]

INPUT_NAME, OUTPUT_NAME = "images", "detections"


def has_own_graph(model: Detector) -> bool:
    """Whether a model came from an ONNX file, whose graph it keeps."""
    return family_named(model.spec.family).graph_of(model) is not None


def export_float(
    model: Detector, imgsz: tuple[int, int], config: ExportConfig | None = None, *, names: Sequence[str] | None = None
) -> ModelProto:
    """Export a fused detector in float32. A quantized detector gives the graph of its float weights.

    The same model, size and settings give the same bytes.

    Args:
        model: fused; left untouched.
        imgsz: height and width in pixels, multiples of the coarsest stride.
        config: opset and batch size; a batch of None makes the batch axis dynamic. A graph from a file keeps what
            nobody asks for.
        names: class names for the file's metadata.

    Raises:
        GraphError: the model is not fused, the names do not fit, its graph is for another batch, or the exporter gave
            another graph than expected.
        RepqError: the size is no multiple of the coarsest stride.
    """
    config = config or ExportConfig()
    _check(model, imgsz, names)
    plain = float_copy(model)
    own = family_named(plain.spec.family).graph_of(plain)
    graph = _with_weights(plain, imgsz, config) if own is None else as_asked(own, config, imgsz, _output_shapes(plain))
    layer_nodes(graph, layer_ids(plain))  # the join holds
    metadata = GraphMetadata(
        version=repq.__version__,
        spec=plain.spec.description(),
        num_classes=plain.spec.num_classes,
        names=None if names is None else tuple(names),
        imgsz=imgsz,
        layout=plain.spec.layout,
        target=config.target or "",
        preprocessing=plain.spec.preprocessing,
        thresholds=plain.spec.thresholds,
    )
    write_metadata(graph, metadata)
    _verify(graph, config if own is None else None)
    return graph


def export_quantized(
    model: Detector,
    imgsz: tuple[int, int],
    config: ExportConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    maxima: Mapping[str, float] | None = None,
) -> ModelProto:
    """Export a calibrated detector as a Q/DQ graph: ``propagate_qdq(insert_qdq(float graph, scales))``.

    Arguments and errors are those of ``export_float``; besides:

    Args:
        maxima: largest magnitude of each tensor on the calibration images, for the file's metadata.

    Raises:
        QuantizationError: a quantized layer has no scales yet.
    """
    config = config or ExportConfig()
    scales = scale_table(model)
    graph = propagate_qdq(insert_qdq(export_float(model, imgsz, config, names=names), scales))
    graph = with_shapes(graph, strict=True)
    metadata = read_metadata(graph)
    assert metadata is not None, "export_float wrote it"
    layers = tuple(scales)
    write_metadata(graph, with_changes(metadata, precision="int8", int8_layers=layers, maxima=maxima or {}))
    _verify(graph)
    return graph


def float_copy(model: Detector) -> Detector:
    """The fused float32 detector of the same weights, on the CPU and in eval mode, without any quantizer."""
    plain = outline(model.spec, True)
    plain.load_state_dict(model.state_dict(), assign=True)
    return plain.cpu().float().eval()


def _output_shapes(model: Detector) -> list[tuple[int, ...]]:
    """Of what a graph from a file gives for one image."""
    if not isinstance(model, GraphDetector):
        return []
    return [model.program.shapes.get(number, ()) for number in model.program.outputs]


def _check(model: Detector, imgsz: tuple[int, int], names: Sequence[str] | None) -> None:
    if not model.deploy:
        raise GraphError(
            "only a fused model can be exported",
            found=f"{model.spec.name} with its training branches",
            fix="fuse it first (`repq fuse`)",
        )
    model.spec.check_size(*imgsz)
    if names is not None and len(names) != model.spec.num_classes:
        raise GraphError(
            "the class names do not fit the model",
            found=f"{len(names)} names for {model.spec.num_classes} classes",
            fix="use the names of the data set that the model was trained on",
        )


def _with_weights(model: Detector, imgsz: tuple[int, int], config: ExportConfig) -> ModelProto:
    """The model's graph: its structure, which torch exports once (it is kept in the cache), and its layers' weights."""
    state = model.state_dict()
    names = [f"{layer}.{part}" for layer in layer_ids(model) for part in ("weight", "bias")]
    weights = {name: state.pop(name) for name in names if name in state}
    spec = _of_the_network(model.spec).to_json()
    settings = {"spec": spec, "imgsz": imgsz, "batch": config.batch, "opset": config.opset}
    key = identify("structure", settings, {"constants": state}).key
    data = cached(f"exports/{key}", lambda: _structure(model, weights, imgsz, config))
    graph = ModelProto.FromString(data)
    for tensor in graph.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = weights[tensor.name].numpy().tobytes()
    return graph


def _of_the_network(spec: Spec) -> Spec:
    """A spec as far as its graph depends on it: not on how images become its input, nor on which boxes count."""
    return with_changes(spec, preprocessing=Preprocessing(), thresholds=Thresholds())


def _structure(
    model: Detector, weights: Mapping[str, torch.Tensor], imgsz: tuple[int, int], config: ExportConfig
) -> bytes:
    """A model's graph without the values of its weights, which are random for the exporter: it merges equal ones."""
    filled = float_copy(model)
    draw = torch.Generator().manual_seed(0)
    random = {name: torch.rand(value.shape, generator=draw) for name, value in weights.items()}
    filled.load_state_dict({**filled.state_dict(), **random}, assign=True)
    graph = _clean(_torch_export(filled, imgsz, config), model.spec.name)
    _name_layers(graph, layer_ids(model))
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    for name, value in weights.items():
        if name not in stored or tuple(stored[name].dims) != tuple(value.shape):
            raise GraphError("the exporter changed a weight", found=name, fix="update torch and onnxscript")
        stored[name].ClearField("raw_data")
    return graph.SerializeToString()


def _torch_export(model: nn.Module, imgsz: tuple[int, int], config: ExportConfig) -> ModelProto:
    # torch.export takes a batch of 1 for a constant, so a dynamic axis is shown with 2
    images = torch.zeros(config.batch or 2, 3, *imgsz)
    dynamic = ({0: torch.export.Dim("batch", min=1)},) if config.batch is None else None
    with without_warnings():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=config.opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns a program"
    result: ModelProto = program.model_proto
    return result


def _clean(model: ModelProto, name: str) -> ModelProto:
    """Name the graph, and drop what holds paths of this machine or is not used."""
    model.graph.name = name
    model.producer_name, model.producer_version = "repq", repq.__version__
    del model.metadata_props[:]
    return export_graph(import_graph(model))  # onnx-graphsurgeon keeps no notes on nodes and tensors


def _name_layers(model: ModelProto, layers: Sequence[LayerId]) -> None:
    for layer, node in layer_nodes(model, layers).items():
        node.name = layer


def _verify(model: ModelProto, config: ExportConfig | None = None) -> None:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if config is not None and versions != {"": config.opset}:
        raise GraphError(
            f"the exporter did not give a graph of opset {config.opset}",
            found=str(versions),
            fix="choose another opset, or update torch and onnxscript",
        )
    onnx.checker.check_model(model, full_check=True)
