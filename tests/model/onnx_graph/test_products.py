"""Products with a stored matrix (MatMul, Gemm) are layers as convolutions are; all other products stay operators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from attention import WIDTH, exported
from detectors import CLASSES, SIZE, Graph
from onnx import ModelProto, helper, numpy_helper

from repq.engine import availability, build
from repq.engine.source import name_layers
from repq.export import export_float, export_quantized
from repq.graph import anchor_maxima, insert_qdq, layer_nodes, lint, read_metadata, tensor_maxima
from repq.graph.anchors import anchors_of
from repq.graph.forms import in_form
from repq.graph.surgeon import import_graph
from repq.model import count_macs, layer_ids, load_graph
from repq.model.checkpoint import Checkpoint
from repq.model.detector import layers_of
from repq.model.weighted import Matrix, output_axis
from repq.prune.choosing import share_of_macs
from repq.prune.cutting import Pruner
from repq.quant import apply_scales, load_weights, quantize, save_quantized, scale_table
from repq.quant.corrections.equalize import equalize, find_chains
from repq.recipe import GraphConfig, PtqConfig

IMGSZ = (SIZE, SIZE)
ROWS, WIDE = 64, 16  # of the maps of stride 8
Make = Callable[[Graph, str], str]


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *IMGSZ, generator=torch.Generator().manual_seed(seed))


def run(model: ModelProto, images: torch.Tensor) -> list[np.ndarray]:
    """Outputs of ONNX Runtime without any optimization, image by image."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    each = [session.run(None, {name: image[None].numpy()}) for image in images]
    return [np.concatenate(parts) for parts in zip(*each, strict=True)]


def matrix(g: Graph, inputs: int = WIDE, outputs: int = WIDE) -> str:
    return g.constant(g.rng.normal(0, inputs**-0.5, (inputs, outputs)))


def numbers(g: Graph, *shape: int) -> str:
    return g.constant(g.rng.normal(0, 0.2, shape))


def gemm(bias: tuple[int, ...] | None = None, **attributes: object) -> Make:
    def make(g: Graph, x: str) -> str:
        x = g.op("Reshape", x, g.ints(ROWS, WIDE))
        further = [] if bias is None else [numbers(g, *bias)]
        return str(g.op("Reshape", g.op("Gemm", x, matrix(g), *further, **attributes), g.ints(1, ROWS, WIDE)))

    return make


def on_maps(g: Graph, x: str) -> str:
    """(B, H, W, C)."""
    x = g.op("MatMul", g.op("Reshape", x, g.ints(1, 8, 8, WIDE)), matrix(g))
    return str(g.op("Reshape", x, g.ints(1, ROWS, WIDE)))


def tokens_first(g: Graph, x: str) -> str:
    """(N, B, C)."""
    x = g.op("MatMul", g.op("Transpose", x, perm=[1, 0, 2]), matrix(g))
    return str(g.op("Transpose", x, perm=[1, 0, 2]))


def vector(g: Graph, x: str) -> str:
    """(C,): the mean over all tokens is added to each."""
    mean = g.op("Squeeze", g.op("ReduceMean", x, axes=[0, 1], keepdims=0))
    return str(g.op("Add", x, g.op("MatMul", mean, matrix(g))))


LAYERS: dict[str, Make] = {
    "MatMul": lambda g, x: g.op("MatMul", x, matrix(g)),
    "MatMul and Add": lambda g, x: g.op("Add", g.op("MatMul", x, matrix(g)), numbers(g, WIDE)),
    "Add of a bias and a MatMul": lambda g, x: g.op("Add", numbers(g, WIDE), g.op("MatMul", x, matrix(g))),
    "MatMul and an Add of another shape": lambda g, x: g.op("Add", g.op("MatMul", x, matrix(g)), numbers(g, ROWS, 1)),
    "MatMul by what is transposed": lambda g, x: g.op("MatMul", x, g.op("Transpose", matrix(g), perm=[1, 0])),
    "MatMul of maps": on_maps,
    "MatMul of tokens before images": tokens_first,
    "MatMul of a vector": vector,
    "Gemm": gemm(),
    "Gemm and a bias": gemm((WIDE,)),
    "Gemm and a row": gemm((1, WIDE)),
    "Gemm and a number": gemm(()),
    "transposed Gemm": gemm((WIDE,), transB=1),
}


def _computed_summand(g: Graph, x: str) -> str:
    x = g.op("Reshape", x, g.ints(ROWS, WIDE))
    return str(g.op("Reshape", g.op("Gemm", x, matrix(g), x), g.ints(1, ROWS, WIDE)))


def _transposed_input(g: Graph, x: str) -> str:
    x = g.op("Reshape", x, g.ints(WIDE, ROWS))
    return str(g.op("Reshape", g.op("Gemm", x, matrix(g), transA=1), g.ints(1, ROWS, WIDE)))


def _constant_product(g: Graph, x: str) -> str:
    return str(g.op("Add", x, g.op("MatMul", numbers(g, ROWS, WIDE), matrix(g))))


def _named_as_a_layer(g: Graph, x: str) -> str:
    g.stored.append(numpy_helper.from_array(np.eye(WIDE, dtype=np.float32)[None], "some.weight"))
    return str(g.op("MatMul", x, "some.weight"))


OPERATORS: dict[str, Make] = {
    "alpha": gemm((WIDE,), alpha=0.5),
    "beta": gemm((WIDE,), beta=0.5),
    "a transposed input": _transposed_input,
    "a summand that is computed": _computed_summand,
    "a summand for every row": gemm((ROWS, WIDE)),
    "three axes": lambda g, x: g.op("MatMul", x, numbers(g, 1, WIDE, WIDE)),
    "a constant first factor": lambda g, x: g.op("MatMul", numbers(g, ROWS, ROWS), x),
    "constants alone": _constant_product,
    "two computed factors": lambda g, x: g.op("MatMul", g.op("MatMul", x, g.op("Transpose", x, perm=[0, 2, 1])), x),
    "a weight named as a layer's": _named_as_a_layer,
}


def graph_with(make: Make, opset: int = 17) -> ModelProto:
    """Convolutions, then this, then boxes and logits by products: three layers that are matrices, or two."""
    g = Graph(opset)
    (x, channels), _ = g.features("input")
    x = g.op("Relu", make(g, g.rows([x], channels)))
    boxes = g.op("Sigmoid", g.op("MatMul", x, matrix(g, outputs=4)))
    logits = g.op("MatMul", x, matrix(g, outputs=CLASSES))
    return g.model({"logits": (logits, [1, ROWS, CLASSES]), "boxes": (boxes, [1, ROWS, 4])})


def opened(model: ModelProto, folder: Path, layout: str | None = "detr") -> Checkpoint:
    onnx.save(model, folder / "model.onnx")
    return load_graph(folder / "model.onnx", config=GraphConfig(layout=layout))


def matrices(model: torch.nn.Module) -> dict[str, Matrix]:
    return {layer: module for layer, module in layers_of(model) if isinstance(module, Matrix)}


def same_but_for_qdq(before: ModelProto, after: ModelProto) -> None:
    """Nodes, their order, names, attributes and the ends of the graph are as they were."""
    added = {"QuantizeLinear", "DequantizeLinear"}
    kept = [node for node in after.graph.node if node.op_type not in added]
    known = {node.name: node for node in before.graph.node}
    for node in kept:
        own = known.pop(node.name)
        assert (node.op_type, node.output, node.attribute) == (own.op_type, own.output, own.attribute)
    assert _live(before).isdisjoint(name for node in known.values() for name in node.output)
    for side in ("input", "output"):
        ends = ([(value.name, value.type) for value in getattr(model.graph, side)] for model in (before, after))
        assert next(ends) == next(ends)
    own = {entry.key: entry.value for entry in after.metadata_props if not entry.key.startswith("repq.")}
    assert own == {entry.key: entry.value for entry in before.metadata_props}


def _live(model: ModelProto) -> set[str]:
    """What hangs on the input: a node that transposes a stored weight does not."""
    found = {model.graph.input[0].name}
    for node in model.graph.node:
        if not found.isdisjoint(node.input):
            found.update(node.output)
    return found


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_product_with_a_stored_matrix_is_a_layer(kind: str, scheme: str, tmp_path: Path) -> None:
    before = graph_with(LAYERS[kind])
    model, images = opened(before, tmp_path).model, noise(2)
    found = matrices(model)
    assert len(found) == 3 and set(found) < set(layer_ids(model))
    macs = count_macs(model, IMGSZ)
    for layer, module in found.items():
        rows = 1 if kind == "MatMul of a vector" and module.out_channels == WIDE else ROWS
        assert macs[layer] == module.in_channels * module.out_channels * rows
    with torch.no_grad():
        own = model.outputs(model.features(images))
    float_ = export_float(model, IMGSZ)
    same_but_for_qdq(before, float_)
    for value, wanted, again in zip(own, run(before, images), run(float_, images), strict=True):
        np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(again, wanted, rtol=1e-4, atol=1e-5)

    quantized = quantize(model, [noise(2, 1)], PtqConfig(scheme=scheme)).model
    graph = export_quantized(quantized, IMGSZ)
    same_but_for_qdq(before, graph)
    assert tuple(layer_nodes(graph, layer_ids(model))) and read_metadata(graph).int8_layers == layer_ids(model)
    table = scale_table(quantized)
    assert insert_qdq(graph, table).SerializeToString() == graph.SerializeToString()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    axes = {node.input[0]: helper.get_attribute_value(node.attribute[0]) for node in graph.graph.node
            if node.op_type == "DequantizeLinear" and node.attribute}  # fmt: skip
    for layer, module in found.items():
        axis = output_axis(module)
        assert axes[f"{layer}.weight"] == table[layer].weight.axis == axis
        largest = np.abs(module.weight.detach().numpy()).max(1 - axis)
        np.testing.assert_array_equal(table[layer].weight.scale, largest / np.float32(127))
        assert stored[f"{layer}.weight"].dtype == np.int8 and np.abs(stored[f"{layer}.weight"]).max() == 127
    with torch.no_grad():
        wanted = quantized.outputs(quantized.features(images))
    for value, expected in zip(run(graph, images), wanted, strict=True):
        error = np.abs(value - expected.numpy())  # a value on the edge of two integers may round the other way
        assert np.mean(error > 1e-4 * np.abs(value).max()) < 0.02


@pytest.mark.parametrize("kind", OPERATORS)
def test_every_other_product_stays_an_operator(kind: str, tmp_path: Path) -> None:
    before = graph_with(OPERATORS[kind])
    model, images = opened(before, tmp_path).model, noise(2)
    assert len(matrices(model)) == 2
    graph = export_quantized(quantize(model, [noise(2, 1)], PtqConfig()).model, IMGSZ)
    assert set(layer_nodes(graph, layer_ids(model))) == set(layer_ids(model))
    same_but_for_qdq(before, graph)
    with torch.no_grad():
        own = model.outputs(model.features(images))
    for value, wanted in zip(own, run(before, images), strict=True):
        np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_matrix_of_several_products_becomes_one_for_each(tmp_path: Path) -> None:
    def make(g: Graph, x: str) -> str:
        weight = matrix(g)
        return str(g.op("MatMul", g.op("Relu", g.op("MatMul", x, weight)), weight))

    before = graph_with(make)
    model = opened(before, tmp_path).model
    first, second, *_ = matrices(model).values()
    assert torch.equal(first.weight, second.weight) and first.weight is not second.weight
    for value, wanted in zip(run(export_float(model, IMGSZ), noise(1)), run(before, noise(1)), strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_graphs_of_other_tools_may_share_a_matrix() -> None:
    """In those that repq wrote each layer has its own; here no product is a layer, and engines tell all apart."""
    nodes = [helper.make_node("MatMul", ["x", "fc.weight"], ["a"], "one"),
             helper.make_node("Gemm", ["a", "fc.weight"], ["b"], "two")]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, 1, dims) for name, dims in (("x", [4, 4]), ("b", None))]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "fc.weight")
    model = helper.make_model(helper.make_graph(nodes, "net", ends[:1], ends[1:], [weight]))
    assert layer_nodes(model) == {}
    layers, int8 = name_layers(model)
    assert len(set(layers)) == 2 and not int8


def test_names_that_are_taken_are_left_to_nobody_else(tmp_path: Path) -> None:
    """Two weights bear the names of each other's layers, a third tensor that of a bias, a fourth that of a weight."""
    before = graph_with(
        lambda g, x: g.op("Mul", g.op("Mul", g.op("MatMul", x, matrix(g)), numbers(g, 1)), numbers(g, 1))
    )
    first, second, third = (node for node in before.graph.node if node.op_type == "MatMul")
    ids = [node.name.replace("/", ".").strip(".") for node in (first, second, third)]
    factors = [node.input[1] for node in before.graph.node if node.op_type == "Mul" and "constant" in node.input[1]]
    new = {first.input[1]: f"{ids[1]}.weight", second.input[1]: f"{ids[0]}.weight", factors[0]: f"{ids[0]}.bias",
           factors[1]: f"{ids[2]}.weight"}  # fmt: skip
    for tensor in before.graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for node in before.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
    model = opened(before, tmp_path).model
    assert set(ids) <= set(layer_ids(model))
    for value, wanted in zip(run(export_float(model, IMGSZ), noise(1)), run(before, noise(1)), strict=True):
        np.testing.assert_array_equal(value, wanted)


# --- a detector with attention ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return opened(exported(), tmp_path_factory.mktemp("attention"), layout=None)


PRODUCTS = 4


@pytest.mark.parametrize("opset", [17, 19, 21, 23])
def test_graphs_of_torch_in_every_opset(opset: int, tmp_path: Path) -> None:
    before = exported(opset)
    model = opened(before, tmp_path, layout=None).model
    assert len(matrices(model)) == PRODUCTS and model.spec.strides == (8, 16)
    shapes = [(m.in_channels, m.out_channels, m.bias is not None) for m in matrices(model).values()]
    assert shapes == [
        (WIDTH, 3 * WIDTH, False),
        (WIDTH, WIDTH, True),
        (WIDTH, 2 * WIDTH, True),
        (2 * WIDTH, WIDTH, True),
    ]
    with torch.no_grad():
        own = model.outputs(model.features(noise(3)))[0]
    np.testing.assert_allclose(own.numpy(), run(before, noise(3))[0], rtol=1e-3, atol=1e-3)
    quantized = quantize(model, [noise(2, 1)], PtqConfig()).model
    graph = export_quantized(quantized, IMGSZ)
    assert graph.opset_import == before.opset_import
    same_but_for_qdq(before, graph)
    with torch.no_grad():
        wanted = quantized.outputs(quantized.features(noise(1)))[0]
    np.testing.assert_allclose(run(graph, noise(1))[0], wanted.numpy(), rtol=1e-3, atol=1e-3)
    assert sum(row.precision == "int8" for row in lint(graph).layers) == len(layer_ids(model))


def with_coarse_weights(model: torch.nn.Module) -> torch.nn.Module:
    """The same with weights within -64..64; see `test_granularity.of_7_bits`."""
    coarse = copy.deepcopy(model)
    factor = np.float32(127 / 63)
    apply_scales(coarse, {
        layer: replace(scales, weight=replace(scales.weight, scale=scales.weight.scale * factor))
        for layer, scales in scale_table(coarse).items()
    })  # fmt: skip
    return coarse


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_run_products_in_int8_and_compute_what_the_simulation_does(
    attention: Checkpoint, engine: str, scheme: str, granularity: str, tmp_path: Path
) -> None:
    if not any(row.usable for row in availability() if row.runtime == engine):
        pytest.skip(f"{engine} is not here")
    found = matrices(attention.model)
    convolutions = tuple(layer for layer in layer_ids(attention.model) if layer not in found)
    config = PtqConfig(scheme=scheme, weight_granularity=granularity, keep_float=convolutions)
    quantized = with_coarse_weights(quantize(attention.model, [noise(2, 1)], config).model)
    onnx.save(export_quantized(quantized, IMGSZ), tmp_path / "int8.onnx")
    built = build(engine, tmp_path / "int8.onnx")
    with torch.no_grad():
        wanted = quantized.outputs(quantized.features(noise(1)))[0].numpy()
        plain = attention.model.outputs(attention.model.features(noise(1)))[0].numpy()
    value = next(iter(built.infer(noise(1).numpy()).values()))
    assert np.linalg.norm(value - wanted) < 0.01 * np.linalg.norm(wanted - plain)
    precisions = {row.layer: row.precision for row in built.describe().layers}
    assert precisions == {layer: "int8" if layer in found else "float32" for layer in layer_ids(attention.model)}
    assert set(built.manifest.int8_layers) == set(found)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_say_that_products_run_in_float(attention: Checkpoint, engine: str, tmp_path: Path) -> None:
    if not any(row.usable for row in availability() if row.runtime == engine):
        pytest.skip(f"{engine} is not here")
    onnx.save(export_float(attention.model, IMGSZ), tmp_path / "float.onnx")
    rows = build(engine, tmp_path / "float.onnx").describe().layers
    assert {row.layer: row.precision for row in rows} == dict.fromkeys(layer_ids(attention.model), "float32")


def test_the_form_for_onnx_runtime_needs_no_engine_around_it(attention: Checkpoint, tmp_path: Path) -> None:
    found = matrices(attention.model)
    convolutions = tuple(layer for layer in layer_ids(attention.model) if layer not in found)
    quantized = quantize(attention.model, [noise(2, 1)], PtqConfig(keep_float=convolutions)).model
    graph, _ = in_form(export_quantized(quantized, IMGSZ), "onnxruntime")
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in graph.graph.node) == len(found)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = quantized.outputs(quantized.features(noise(1)))[0].numpy()
    value = session.run(None, {session.get_inputs()[0].name: noise(1).numpy()})[0]
    np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-3)
    onnx.save(graph, tmp_path / "form.onnx")
    again = build("onnxruntime", tmp_path / "form.onnx").infer(noise(1).numpy())
    np.testing.assert_allclose(next(iter(again.values())), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_checkpoints_keep_weights_and_scales(attention: Checkpoint, granularity: str, tmp_path: Path) -> None:
    config = PtqConfig(weight_granularity=granularity, correct={"split_below_db": 60.0})  # type: ignore[arg-type]
    outcome = quantize(attention.model, [noise(2, 1)], config)
    save_quantized(tmp_path / "int8.safetensors", outcome.model, config)
    again = load_weights(tmp_path / "int8.safetensors").model
    with torch.no_grad():
        assert torch.equal(again(noise(1)), outcome.model(noise(1)))
    for layer, scales in scale_table(again).items():
        assert scales.weight.axis == scale_table(outcome.model)[layer].weight.axis
    for row in outcome.layers:
        assert row.macs > 0 and row.precision == "int8"
        assert row.weight_snr_db is not None and row.weight_snr_db > 20


@pytest.mark.parametrize("correct", [
    {"outputs": "mean"}, {"outputs": "moments"}, {"rounding": "adaptive"}, {"equalize": True}, {"split_below_db": 60.0},
    {"channel_inputs": True},
    {"outputs": "moments", "rounding": "adaptive", "equalize": True, "split_below_db": 60.0, "channel_inputs": True},
], ids=lambda value: "+".join(value))  # fmt: skip
def test_corrections_reach_the_graph(attention: Checkpoint, correct: dict[str, object]) -> None:
    quantized = quantize(attention.model, [noise(2, 1)], PtqConfig(correct=correct)).model  # type: ignore[arg-type]
    graph = export_quantized(quantized, IMGSZ)
    with torch.no_grad():
        wanted = quantized.outputs(quantized.features(noise(1)))[0].numpy()
    np.testing.assert_allclose(run(graph, noise(1))[0], wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_moments_of_products_are_those_of_the_float_model(attention: Checkpoint) -> None:
    """On the images that they are corrected on, and of those layers that have a bias."""
    images = noise(4, 1)
    plain = quantize(attention.model, [images], PtqConfig()).model
    mean = quantize(attention.model, [images], PtqConfig(correct={"outputs": "mean"})).model  # type: ignore[arg-type]
    names = [layer for layer, module in matrices(attention.model).items() if module.bias is not None]
    assert len(names) == PRODUCTS - 1

    def means(model: torch.nn.Module) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, y: found.append(y.flatten(0, -2).mean(0))
            )
            model(images)
            hook.remove()
        return found

    for wanted, before, after in zip(means(attention.model), means(plain), means(mean), strict=True):
        torch.testing.assert_close(after, wanted, rtol=1e-3, atol=1e-4)
        assert (before - wanted).abs().max() > 10 * (after - wanted).abs().max()


@torch.no_grad()
def test_adaptive_rounding_lowers_the_error_of_products(attention: Checkpoint) -> None:
    """On what the layers read of the images that it works on, where weights are rounded to nearest."""
    images = noise(4, 1)
    plain, adapted = (
        quantize(attention.model, [images], PtqConfig(correct=correct)).model  # type: ignore[arg-type]
        for correct in ({}, {"rounding": "adaptive"})
    )
    for name, module in matrices(attention.model).items():
        nearest, other = plain.get_submodule(name), adapted.get_submodule(name)
        seen: list[torch.Tensor] = []
        hook = nearest.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.append(inputs[0]))
        plain(images)
        hook.remove()
        x = nearest.input_quantizer(seen[0])
        wanted = module.multiply(x, module.weight)
        errors = [
            float((module.multiply(x, layer.weight_quantizer(layer.weight)) - wanted).square().sum())
            for layer in (nearest, other)
        ]
        assert errors[1] < 0.9 * errors[0]
        steps = other.weight / nearest.weight_quantizer.scale.view((-1, 1) if module.transposed else (1, -1))
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


@torch.no_grad()
def test_a_chain_of_products_is_equalized(attention: Checkpoint) -> None:
    model = copy.deepcopy(attention.model)
    chains = find_chains(model)
    wide, narrow = list(matrices(model))[2:]
    assert (wide, narrow) in chains.pairs
    before = model(noise(2))
    weight = model.get_submodule(wide).weight.clone()
    equalize(model, chains, [noise(2)])
    assert not torch.equal(model.get_submodule(wide).weight, weight)
    torch.testing.assert_close(model(noise(2)), before, rtol=1e-3, atol=1e-3)


def test_pruning_leaves_products_as_they_are(attention: Checkpoint) -> None:
    pruner = Pruner(attention.model)
    found = matrices(attention.model)
    assert found.keys().isdisjoint(pruner.channels.outputs)
    kept = np.ones(pruner.channels.count, bool)
    share = share_of_macs(pruner, IMGSZ)
    assert share(kept) == pytest.approx(1)
    kept[pruner.channels.outputs[layer_ids(attention.model)[0]][:4]] = False
    means = pruner.means([noise(2)])
    smaller = pruner.cut(kept, means)
    assert 0 < share(kept) < 1
    for layer, module in found.items():
        assert torch.equal(smaller.get_submodule(layer).weight, module.weight)
    assert share(kept) == pytest.approx(
        sum(count_macs(smaller, IMGSZ).values()) / sum(count_macs(attention.model, IMGSZ).values())
    )


def test_old_graphs_that_list_weights_as_inputs(tmp_path: Path) -> None:
    before = graph_with(LAYERS["Gemm and a bias"])
    for tensor in before.graph.initializer:
        before.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    model = opened(before, tmp_path).model
    assert [value.name for value in export_float(model, IMGSZ).graph.input] == ["input"]


@pytest.mark.parametrize("correct", [
    {"outputs": "moments", "images": 2}, {"channel_inputs": True}, {"outputs": "mean", "split_below_db": 60.0},
])  # fmt: skip
def test_ranges_are_known_whatever_is_corrected(correct: dict[str, object], tmp_path: Path) -> None:
    """Corrections change biases, and scale what layers read; QNN wants the range of every tensor."""
    g = Graph(opset=20)
    x = g.op("Relu", g.conv(g.conv("input", 3, WIDE, stride=8), WIDE, WIDE, groups=WIDE))
    x = g.op("Transpose", g.op("Reshape", x, g.ints(1, WIDE, ROWS)), perm=[0, 2, 1])
    x = g.op("Gelu", g.op("Add", g.op("MatMul", x, matrix(g)), numbers(g, WIDE)))
    x = g.op("Sigmoid", g.op("Add", numbers(g, 4 + CLASSES), g.op("MatMul", x, matrix(g, outputs=4 + CLASSES))))
    onnx.save(g.model({"output": (x, [1, ROWS, 4 + CLASSES])}), tmp_path / "model.onnx")
    opened = load_graph(tmp_path / "model.onnx", config=GraphConfig(layout="yolov8"))
    plain = export_float(opened.model, IMGSZ)
    maxima = anchor_maxima(plain, tensor_maxima(plain, [noise(1).numpy()]))
    config = PtqConfig.model_validate({"correct": correct})
    quantized = quantize(opened.model, [noise(2)], config).model
    written = export_quantized(quantized, IMGSZ, maxima=maxima)
    assert set(maxima) <= set(anchors_of(import_graph(written)).values())
    np.testing.assert_allclose(run(in_form(written, "qnn")[0], noise(1))[0], run(written, noise(1))[0], atol=0.02)
