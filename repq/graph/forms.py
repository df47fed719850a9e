"""Forms of a graph: what a runtime by itself computes right and fast, without repq's engine around it.

``repq build`` brings a graph into the form of its engine; ``repq export --for`` writes the file in that form, so that
whoever runs it gets the same. A form is one entry of ``FORMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from repq.recipe import EngineName
from repq.results import PassReport

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        name: of the runtime that takes it: the choice of ``--for``.
        title: what it is, in a few words.
        runs_in: the engine that such a file runs in if nobody says which.
        write: brings a graph into this form.
        portable: whether other runtimes read it too.
    """

    name: str
    title: str
    runs_in: EngineName
    write: Callable[[ModelProto], ModelProto]
    portable: bool = True


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
        write_metadata(result, replace(metadata, form=name, target=name))
    return result, PassReport(name=f"form_{name}", title=form.title, changed=written is not model)


def _for_openvino(model: ModelProto) -> ModelProto:
    from repq.graph.lowering_openvino import lower

    return lower(model)


def _for_onnxruntime(model: ModelProto) -> ModelProto:
    from repq.graph.lowering_onnxruntime import lower

    return lower(model, unsigned_weights=True)


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
    Form("onnxruntime", "Integer operators for ONNX Runtime", "onnxruntime", _for_onnxruntime, portable=False),
    Form("openvino", "Unsigned activations for OpenVINO", "openvino", _for_openvino),
    Form("tensorrt", "Symmetric Q/DQ for TensorRT", "onnxruntime", _for_tensorrt),
    Form("qnn", "16-bit activations for QNN", "onnxruntime", _for_qnn),
]
