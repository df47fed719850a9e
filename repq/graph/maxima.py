"""The largest magnitude of every tensor of a float graph on real images: what decides whether FP16 can hold it.

Every float tensor gets ``ReduceMax`` and ``ReduceMin`` behind it, so that one run gives all maxima as scalars and no
tensor has to be kept. ONNX Runtime computes it in float32, where nothing overflows that FP16 could not hold.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from repq.errors import GraphError

_PREFIX = "maximum of "


def tensor_maxima(
    model: ModelProto, images: Iterable[NDArray[np.float32]], *, threads: int | None = None
) -> dict[str, float]:
    """Largest magnitude of every computed float tensor, by tensor name in graph order.

    Args:
        model: a graph in FP32 with one input.
        images: inputs of the network, each of the shape that it takes.
        threads: CPU threads; None leaves the choice to ONNX Runtime.

    Raises:
        GraphError: there are no images, or a tensor is not finite.
    """
    import onnxruntime

    watched, names = _watched(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads would wait a thousand times
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    source = session.get_inputs()[0]
    outputs = [f"{_PREFIX}{name}/{kind}" for name in names for kind in ("ReduceMax", "ReduceMin")]
    largest = np.full(len(names), -np.inf)
    for batch in images:
        for part in np.split(batch, len(batch)) if source.shape[0] == 1 else [batch]:
            edges = np.abs([float(value) for value in session.run(outputs, {source.name: part})])
            largest = np.maximum(largest, edges.reshape(-1, 2).max(axis=1))
    if not np.isfinite(largest).all():
        first = names[int(np.flatnonzero(~np.isfinite(largest))[0])]
        raise GraphError("an activation is not finite", found=first, fix="give at least one image, and finite weights")
    return dict(zip(names, largest.tolist(), strict=True))


def _watched(model: ModelProto) -> tuple[ModelProto, list[str]]:
    result = ModelProto()
    result.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        entry.name
        for entry in (*inferred.value_info, *inferred.output)
        if entry.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    names = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output if name in floats]
    for name in names:
        for kind in ("ReduceMax", "ReduceMin"):  # both read the tensor; Abs would write another one of its size
            scalar = f"{_PREFIX}{name}/{kind}"
            result.graph.node.append(helper.make_node(kind, [name], [scalar], keepdims=0))
            result.graph.output.append(helper.make_tensor_value_info(scalar, TensorProto.FLOAT, ()))
    return result, names
