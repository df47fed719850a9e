"""From torch to ONNX: the only module that knows both.

``images (B, 3, H, W) float32 -> detections``; the metadata describes both (``Preprocessing``, ``OutputLayout``).
Every convolution's weight is the initializer ``<LayerId>.weight``, which the graph passes join on, and its node is
named ``<LayerId>``.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace as with_changes

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import nn

import repq
from repq.errors import GraphError
from repq.graph.files import load_onnx, save_onnx
from repq.graph.insertion import insert_qdq
from repq.graph.layer_join import LAYER_OPS, layer_nodes
from repq.graph.metadata import GraphMetadata, read_metadata, write_metadata
from repq.graph.propagation import propagate_qdq
from repq.graph.surgeon import export_graph, import_graph
from repq.layers import LayerId
from repq.model import Detector, build, layer_ids
from repq.quant import scale_table
from repq.recipe import ExportConfig

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "export_float", "export_quantized", "load_onnx", "save_onnx"]

INPUT_NAME, OUTPUT_NAME = "images", "detections"
_SCOPES = "pkg.torch.onnx.name_scopes"


def export_float(
    model: Detector, imgsz: tuple[int, int], config: ExportConfig | None = None, *, names: Sequence[str] | None = None
) -> ModelProto:
    """Export a fused detector in float32. A quantized detector gives the graph of its float weights.

    The same model, size and settings give the same bytes.

    Args:
        model: fused; left untouched.
        imgsz: height and width in pixels, multiples of the coarsest stride.
        config: opset and batch size; a batch of None makes the batch axis dynamic.
        names: class names for the file's metadata.

    Raises:
        GraphError: the model is not fused, the names do not fit, or the exporter gave another graph than expected.
        RepqError: the size is no multiple of the coarsest stride.
    """
    config = config or ExportConfig()
    _check(model, imgsz, names)
    plain = float_copy(model)
    graph = _clean(_torch_export(plain, imgsz, config), plain.spec.name)
    _name_layers(graph, layer_ids(plain))
    metadata = GraphMetadata(
        version=repq.__version__,
        spec=plain.spec.to_json(),
        num_classes=plain.spec.num_classes,
        names=None if names is None else tuple(names),
        imgsz=imgsz,
        layout=plain.spec.layout,
        preprocessing=plain.spec.preprocessing,
        target=config.target or "",
    )
    write_metadata(graph, metadata)
    _verify(graph, config)
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
    graph = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
    metadata = read_metadata(graph)
    assert metadata is not None, "export_float wrote it"
    layers = tuple(scales)
    write_metadata(graph, with_changes(metadata, precision="int8", int8_layers=layers, maxima=maxima or {}))
    _verify(graph, config)
    return graph


def float_copy(model: Detector) -> Detector:
    """The fused float32 detector of the same weights, on the CPU and in eval mode, without any quantizer."""
    with torch.device("meta"):
        plain = build(model.spec, deploy=True)
    plain.load_state_dict(model.state_dict(), assign=True)
    return plain.cpu().float().eval()


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


def _torch_export(model: nn.Module, imgsz: tuple[int, int], config: ExportConfig) -> ModelProto:
    # torch.export takes a batch of 1 for a constant, so a dynamic axis is shown with 2
    images = torch.zeros(config.batch or 2, 3, *imgsz)
    dynamic = ({0: torch.export.Dim("batch", min=1)},) if config.batch is None else None
    with _silent():
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


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's notes about optional packages and its own deprecations from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _clean(model: ModelProto, name: str) -> ModelProto:
    """Name the graph, separate shared weights, and drop what holds paths of this machine or is not used."""
    model.graph.name = name
    model.producer_name, model.producer_version = "repq", repq.__version__
    _separate_weights(model)
    del model.metadata_props[:]
    return export_graph(import_graph(model))  # onnx-graphsurgeon keeps no notes on nodes and tensors


def _separate_weights(model: ModelProto) -> None:
    """Undo the exporter's merging of equal weights: every convolution reads its own ``<LayerId>.weight``."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        weight = f"{_scope(node)}.weight"
        if node.op_type in LAYER_OPS and node.input[1] != weight and weight not in stored:
            copy = TensorProto()
            copy.CopyFrom(stored[node.input[1]])
            copy.name = weight
            model.graph.initializer.append(copy)
            node.input[1] = weight


def _scope(node: NodeProto) -> str:
    """Path of the module that a node comes from, as the exporter notes it: ``['', 'neck', 'neck.conv', 'conv2d']``."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    modules = ast.literal_eval(scopes)
    return modules[-2] if len(modules) > 1 else ""


def _name_layers(model: ModelProto, layers: Sequence[LayerId]) -> None:
    for layer, node in layer_nodes(model, layers).items():
        node.name = layer


def _verify(model: ModelProto, config: ExportConfig) -> None:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions != {"": config.opset}:
        raise GraphError(
            f"the exporter did not give a graph of opset {config.opset}",
            found=str(versions),
            fix="choose another opset, or update torch and onnxscript",
        )
    onnx.checker.check_model(model, full_check=True)
