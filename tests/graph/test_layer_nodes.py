from __future__ import annotations

import numpy as np
import pytest
from small_graphs import graph, int8, normal, table, two_convs

from repq.errors import GraphError
from repq.graph import insert_qdq, layer_nodes
from repq.layers import LayerId


def test_every_convolution_is_found_by_its_weight_in_graph_order() -> None:
    model, _ = two_convs()
    nodes = layer_nodes(model, [LayerId("second"), LayerId("first")])
    assert list(nodes) == ["first", "second"]
    assert nodes[LayerId("first")].output[0] == "a"


def test_the_join_does_not_read_node_names() -> None:
    model, _ = two_convs()
    for node in model.graph.node:
        node.name = "second"
    assert layer_nodes(model)[LayerId("first")].output[0] == "a"


def test_the_join_holds_through_quantized_weights() -> None:
    model, weights = two_convs()
    quantized = insert_qdq(model, table(weights, first=int8(0.02), second=int8(0.03)))
    assert list(layer_nodes(quantized)) == ["first", "second"]


def test_the_join_holds_through_quantize_and_dequantize_of_float_weights() -> None:
    model = graph(
        """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
            q = QuantizeLinear(a__b__weight, s, z)
            w = DequantizeLinear(q, s, z)
            y = Conv(x, w)
        }""",
        a__b__weight=normal(0, 2, 3, 1, 1),
        s=np.float32(0.1),
        z=np.int8(0),
    )
    assert list(layer_nodes(model)) == ["a.b"]


def test_both_differences_are_named() -> None:
    model, _ = two_convs()
    with pytest.raises(GraphError) as caught:
        layer_nodes(model, [LayerId("first"), LayerId("third")])
    assert "only in the model: third" in str(caught.value)
    assert "only in the graph: second" in str(caught.value)


def test_a_convolution_without_a_named_weight_is_refused() -> None:
    model = graph("g (float[1,3,4,4] x, float[2,3,1,1] w) => (float[1,2,4,4] y) { y = Conv(x, w) }")
    with pytest.raises(GraphError, match="computed weight"):
        layer_nodes(model)


def test_two_convolutions_on_one_weight_are_refused() -> None:
    model = graph(
        """g (float[1,3,4,4] x) => (float[1,3,4,4] y) {
            a = Conv(x, one__weight)
            y = Conv(a, one__weight)
        }""",
        one__weight=normal(0, 3, 3, 1, 1),
    )
    with pytest.raises(GraphError, match=r"one \(2 nodes\)"):
        layer_nodes(model)
