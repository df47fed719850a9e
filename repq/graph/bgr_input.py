r"""Colours in the order blue, green, red, as cameras and OpenCV give them.

``images (RGB) -> Conv(W)`` becomes ``images (BGR) -> Conv(W')`` with ``W'[:, c] = W[:, 2 - c]``: the sum over the
colours has the same terms in another order. Nothing is added to the graph. Weights and their scales per output channel
keep every value, so a Q/DQ graph computes the same integers.
"""

from __future__ import annotations

from dataclasses import replace as with_changes

import numpy as np
from onnx import ModelProto, numpy_helper

from repq.errors import GraphError
from repq.graph.first_layers import first_layers
from repq.graph.index import GraphIndex
from repq.graph.metadata import read_metadata, write_metadata

COLOURS = 3


def bgr_input(model: ModelProto) -> ModelProto:
    """Return a copy of ``model`` that takes BGR instead of RGB; run twice, it takes RGB again.

    Raises:
        GraphError: something else than convolutions with three input channels reads the input.
    """
    result = ModelProto()
    result.CopyFrom(model)
    index = GraphIndex.of(result.graph)
    for layer in first_layers(result):
        weight = numpy_helper.to_array(index.initializers[layer.weight])
        if weight.shape[1] != COLOURS:
            raise GraphError(
                f"{layer.weight} does not read three colours", found=f"{weight.shape[1]} channels in a group"
            )
        swapped = np.ascontiguousarray(weight[:, ::-1])
        index.initializers[layer.weight].CopyFrom(numpy_helper.from_array(swapped, layer.weight))
    metadata = read_metadata(result)
    if metadata is not None:
        changed = metadata.preprocess.model_copy(update={"bgr": not metadata.preprocess.bgr})
        write_metadata(result, with_changes(metadata, preprocess=changed))
    return result
