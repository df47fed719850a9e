"""Forms of a graph: what a runtime by itself computes right and fast, without repq's engine around it.

``repq build`` brings a graph into the form of its engine; ``repq export --for`` writes the file in that form, so that
whoever runs it gets the same. A form is one entry of ``FORMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from repq.layers import CONVOLUTIONS
from repq.recipe import EngineName
from repq.results import PassReport

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        name: the choice of ``--for``.
        title: what it is, in a few words.
        target: the runtime that takes it.
        runs_in: the engine that such a file runs in if nobody says which.
        write: brings a graph into this form.
        portable: whether other runtimes read it too.
        remarks: what is to be said of a graph in this form.
    """

    name: str
    title: str
    target: str
    runs_in: EngineName
    write: Callable[[ModelProto], ModelProto]
    portable: bool = True
    remarks: Callable[[ModelProto], tuple[str, ...]] = lambda model: ()


def form_named(name: str) -> Form | None:
    """The form of this name; None: there is none."""
    return next((form for form in FORMS if form.name == name), None)


def form_of(properties: Mapping[str, str]) -> Form | None:
    """The form that a graph with these metadata properties has; None: none."""
    from repq.graph.metadata import parse_metadata

    metadata = parse_metadata(properties)
    return None if metadata is None else form_named(metadata.form)


def in_form(model: ModelProto, name: str) -> tuple[ModelProto, PassReport]:
    """Return ``model`` in this form, with the form's name in its metadata, and what was done.

    Raises:
        GraphError: there is no such form, the model is in another one, or cannot have it.
    """
    from repq.errors import GraphError
    from repq.graph.metadata import read_metadata, write_metadata

    form, metadata = form_named(name), read_metadata(model)
    if form is None:
        raise GraphError(f"there is no form {name!r}", fix=f"use one of {', '.join(form.name for form in FORMS)}")
    present = "" if metadata is None else metadata.form
    if present not in ("", name):
        raise GraphError(f"the graph is in the form for {present} already", fix="export it anew from the checkpoint")
    written = form.write(model) if present == "" else model
    result = type(model)()
    result.CopyFrom(written)
    if metadata is not None:
        write_metadata(result, replace(metadata, form=name, target=form.target))
    report = PassReport(
        name=f"form_{name}", title=form.title, changed=written is not model, reasons=form.remarks(result)
    )
    return result, report


def _for_openvino(model: ModelProto) -> ModelProto:
    from repq.graph.lowering_openvino import lower

    return lower(model)


def _for_onnxruntime(model: ModelProto) -> ModelProto:
    from repq.graph.lowering_onnxruntime import lower

    return lower(model, every_cpu=True)


def _remarks(model: ModelProto) -> tuple[str, ...]:
    from repq.graph.lowering_onnxruntime import with_unsigned_weights

    slow, floats = with_unsigned_weights(model), [node for node in model.graph.node if node.op_type in CONVOLUTIONS]
    remark = (
        f"layers with UINT8 weights, exact on every CPU, but two to three times as slow: {len(slow)}; without them: "
        "--for onnxruntime-vnni (for CPUs with INT8 dot products) or `repq ptq --reduce-range`"
    )
    needed = f"layers in float, as before SiLU: {len(floats)}; --for onnxruntime-vnni has all but grouped ones in INT8"
    return *([remark] if slow else []), *([needed] if floats else [])


def _for_onnxruntime_with_dot_products(model: ModelProto) -> ModelProto:
    from repq.graph.lowering_onnxruntime import lower

    return lower(model, integer_sums=None, signed_sums=True)


def _for_tensorrt(model: ModelProto) -> ModelProto:
    from repq.errors import GraphError
    from repq.graph.integers import parameters_of, quantizers
    from repq.graph.surgeon import import_graph

    found = [parameters_of(node) for node in quantizers(import_graph(model))]
    if any(entry is not None and (entry.zero_point or entry.dtype != "int8") for entry in found):
        raise GraphError(
            "TensorRT runs no INT8 with zero points", found="asymmetric scales", fix="quantize with --target tensorrt"
        )
    return model


def _for_qnn(model: ModelProto) -> ModelProto:
    from repq.graph.lowering_qnn import lower

    return lower(model)


FORMS: list[Form] = [
    Form(
        "onnxruntime",
        "Integer operators for ONNX Runtime on any CPU",
        "onnxruntime",
        "onnxruntime",
        _for_onnxruntime,
        portable=False,
        remarks=_remarks,
    ),
    Form(
        "onnxruntime-vnni",
        "Integer operators for ONNX Runtime on CPUs with INT8 dot products",
        "onnxruntime",
        "onnxruntime",
        _for_onnxruntime_with_dot_products,
        portable=False,
    ),
    Form("openvino", "Unsigned activations for OpenVINO", "openvino", "openvino", _for_openvino),
    Form("tensorrt", "Symmetric Q/DQ for TensorRT", "tensorrt", "onnxruntime", _for_tensorrt),
    Form("qnn", "16-bit activations for QNN", "qnn", "onnxruntime", _for_qnn),
]
