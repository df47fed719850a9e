"""What is coupled goes together, and what is worth nothing can go without a trace."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from few_blocks import few_blocks
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import repq
from repq.data import load_dataset, make_demo_set
from repq.errors import RepqError
from repq.export import export_float
from repq.graph import save_onnx
from repq.layers import LayerId
from repq.model import Spec, build, count_macs, get_spec, load_checkpoint, save_checkpoint
from repq.model.detector import layers_of
from repq.model.onnx_graph import GraphSpec
from repq.model.onnx_graph.detector import GraphDetector
from repq.model.onnx_graph.reading import read_graph
from repq.model.onnx_graph.skeleton import to_skeleton, with_weights
from repq.prune.channels import FIXED
from repq.prune.choosing import (
    activation_scores,
    choose,
    groups_of,
    norm_scores,
    share_of_macs,
    unit_scores,
    weight_scores,
    without,
)
from repq.prune.cutting import Pruner, smallest_size
from repq.prune.sensitivity import group_harms, weighed
from repq.recipe import DemoConfig, PruneConfig, RecoveryConfig
from repq.reparam import fuse
from repq.stages import Context, prune_checkpoint
from repq.train.distill import Teacher

NAMES = ["yolov6n", "yolov6n_v2", "yolov6lite_s", "yolov6s_mbla", "yolox_nano"]


def spec_of(name: str) -> Spec:
    """A model with few blocks of each kind."""
    if name != "yolov6s_mbla":
        return few_blocks(name, 3)
    return replace(get_spec(name, 3), backbone_repeats=(2, 2, 2, 2), neck_repeats=(2, 2, 2, 2))  # halved inside


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = build(spec_of(name), deploy=True).eval()
    with torch.no_grad():  # fresh predictions are constants, which hide what happens before them
        for layer, module in layers_of(model):
            if "_preds" in layer:
                module.weight.normal_(0, 0.1)
    return model


def noise(model: Any) -> torch.Tensor:
    return torch.rand(1, 3, *smallest_size(model), generator=torch.Generator().manual_seed(1))


def some_kept(pruner: Pruner, share: float = 0.7) -> np.ndarray:
    kept = np.random.default_rng(0).uniform(size=pruner.channels.count) < share
    kept[FIXED] = True
    for units in pruner.channels.outputs.values():
        kept[units[0]] |= not kept[units].any()
    return kept


@pytest.fixture(scope="module", params=NAMES)
def pruner(request: pytest.FixtureRequest) -> Pruner:
    return Pruner(made(request.param))


def test_units_partition_the_channels_and_predictions_stay(pruner: Pruner) -> None:
    channels = pruner.channels
    assert set(channels.outputs) == {layer for layer, _ in layers_of(pruner.model)}
    groups = groups_of(channels, np.zeros(channels.count), PruneConfig())
    units = np.concatenate([group.units for group in groups])
    assert sorted(units) == list(range(1, channels.count))
    for layer, module in layers_of(pruner.model):
        inputs, outputs = channels.inputs[layer], channels.outputs[layer]
        assert (len(inputs), len(outputs)) == (module.in_channels, module.out_channels)
        if module.groups == module.in_channels > 1:
            assert np.array_equal(inputs, outputs)
        if "_preds" in layer:
            assert not outputs.any()


def test_channels_of_zeros_leave_without_a_trace(pruner: Pruner) -> None:
    kept = some_kept(pruner)
    model = copy.deepcopy(pruner.model)
    with torch.no_grad():
        for layer, module in layers_of(model):
            gone = torch.from_numpy(~kept[pruner.channels.outputs[layer]])
            if isinstance(module, nn.ConvTranspose2d):
                module.weight[:, gone] = 0
            else:
                module.weight[gone] = 0
            module.bias[gone] = 0
    same = Pruner(model)
    small, x = same.cut(kept), noise(model).double()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        whole, smaller = model.double()(x), small.double()(x)
    torch.testing.assert_close(smaller, whole, rtol=1e-12, atol=1e-9)


def test_any_selection_gives_a_model_that_loads_again(pruner: Pruner, tmp_path: Path) -> None:
    kept = some_kept(pruner, 0.5)
    smaller = pruner.cut(kept)
    with torch.no_grad():
        torch.testing.assert_close(smaller(noise(smaller)), pruner.masked(kept)(noise(smaller)), rtol=1e-3, atol=1e-4)
    save_checkpoint(tmp_path / "small.safetensors", smaller)
    again = load_checkpoint(tmp_path / "small.safetensors").model
    assert again.spec == smaller.spec
    with torch.no_grad():
        assert torch.equal(again(noise(smaller)), smaller(noise(smaller)))
    once_more = Pruner(again)
    twice = once_more.cut(some_kept(once_more, 0.8))
    assert sum(p.numel() for p in twice.parameters()) < sum(p.numel() for p in again.parameters())


@pytest.mark.parametrize(("scope", "step"), [("global", 8), ("layer", 8), ("global", 16)])
def test_targets_and_rounding_hold(pruner: Pruner, scope: Any, step: int) -> None:
    if pruner.model.spec.name == "yolox_nano" and step == 16:
        step = 4  # its narrowest stage has 16 channels
    config = PruneConfig(target_macs=0.8, scope=scope, round=step)
    scores = unit_scores(pruner.channels, weight_scores(pruner.model, 2))
    groups = groups_of(pruner.channels, scores, config)
    kept = choose(pruner, groups, config, share_of_macs(pruner, smallest_size(pruner.model)), config.target_macs)
    smaller = pruner.cut(kept)
    before, after = (sum(count_macs(m, smallest_size(m)).values()) for m in (pruner.model, smaller))
    assert 0.7 < after / before <= 0.8
    for group in groups:
        left = int(kept[group.units].sum())
        assert left
        if left < len(group.units):
            assert all(left * count % step == 0 for count in group.layers.values())
            worst = scores[group.units][~kept[group.units]].max()
            assert worst <= scores[group.units][kept[group.units]].min()


def test_what_cannot_be_pruned_is_said(pruner: Pruner) -> None:
    config = PruneConfig(ratio=0.99)
    groups = groups_of(pruner.channels, np.zeros(pruner.channels.count), config)
    with pytest.raises(RepqError, match="so much cannot be pruned"):
        choose(pruner, groups, config, share_of_macs(pruner, smallest_size(pruner.model)), config.target_macs)
    nothing = np.zeros(pruner.channels.count, bool)
    with pytest.raises(RepqError, match="no channel of"):
        pruner.cut(nothing)


def test_activations_rank_silent_channels_last(pruner: Pruner) -> None:
    found = activation_scores(pruner.model, [noise(pruner.model)])
    for layer, units in pruner.channels.outputs.items():
        assert found[layer].shape == units.shape and (found[layer] >= 0).all()


def test_means_of_constant_channels_make_up_for_them(pruner: Pruner) -> None:
    """Where what leaves is constant, and no border shows, biases stand for it exactly."""
    kept = some_kept(pruner)
    layers = dict(layers_of(pruner.model))
    for layer in pruner.readers(np.flatnonzero(~kept)):
        module = copy.deepcopy(layers[layer])
        gone = torch.from_numpy(~kept[pruner.channels.inputs[layer]])
        means = torch.linspace(-1, 1, module.in_channels)
        x = torch.rand(1, module.in_channels, 12, 12, generator=torch.Generator().manual_seed(0))
        x[:, gone] = means[gone, None, None]
        wanted = module(x)
        pruner.mute(layer, module, kept, means)
        inner = slice(3, 3 if isinstance(module, nn.ConvTranspose2d) else -3)
        found = module(x)
        if isinstance(module, nn.ConvTranspose2d):  # every position of the stride has a kernel of its own
            found, wanted = (nn.functional.avg_pool2d(y, module.stride) for y in (found, wanted))
            inner = slice(None)
        torch.testing.assert_close(found[..., inner, inner], wanted[..., inner, inner], rtol=1e-4, atol=1e-5)


def test_the_smaller_model_has_the_biases_of_the_muted_one(pruner: Pruner) -> None:
    kept, x = some_kept(pruner), noise(pruner.model)
    means = pruner.means([x])
    whole, smaller = pruner.masked(kept, means), pruner.cut(kept, means)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), whole(x), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(whole(x), pruner.masked(kept)(x), atol=1e-6)


def test_the_sweep_sees_what_a_whole_pass_sees(pruner: Pruner) -> None:
    """What is replayed of a group equals a pass of the muted model, and costs more the more is gone."""
    model, x = pruner.model, noise(pruner.model)
    config = PruneConfig(round=4)
    scores = unit_scores(pruner.channels, weight_scores(model, 2))
    groups = [group for group in groups_of(pruner.channels, scores, config) if group.steps][::5]
    recovery = RecoveryConfig(projector_weight=1.0)  # which would have to learn first: the sweep leaves it out
    harms = group_harms(pruner, groups, [x], {}, levels=2, config=recovery)
    assert all(harm.pieces[-1] == len(group.steps) for harm, group in zip(harms, groups, strict=True))
    assert all(loss >= 0 for harm in harms for loss in harm.losses) and any(harm.losses[-1] > 0 for harm in harms)
    last = without(pruner, [(groups[-1], harms[-1].pieces[0])])
    with torch.no_grad():
        own, taught = (m.answer(m.features(x)) for m in (pruner.masked(last), model))
        teacher = Teacher(copy.deepcopy(model), model, RecoveryConfig())
        loss = teacher.loss(own, taught, smallest_size(model), 0.0)
    assert harms[-1].losses[0] == pytest.approx(max(0, float(loss.total_sum / loss.target_score)), rel=1e-4, abs=1e-6)
    again = group_harms(pruner, groups, [x, x], {}, levels=2, config=recovery)
    for one, other in zip(harms, again, strict=True):  # a mean, and nothing of one group is left for the next
        np.testing.assert_allclose(one.losses, other.losses, rtol=1e-5, atol=1e-7)
    share = share_of_macs(pruner, smallest_size(model))
    for group, was, harm in zip(weighed(groups, harms, share, pruner), groups, harms, strict=True):
        assert len(group.scores) == len(was.steps) and list(group.scores) == sorted(group.scores)
        saved = 1 - share(without(pruner, [(was, len(was.steps))]))
        assert group.scores[-1] * saved >= harm.losses[-1] * 0.999 / len(was.steps)


@pytest.mark.parametrize("name", ["yolov6n", "yolov6lite_s", "yolox_nano"])
def test_batch_norms_rank_what_they_scale(name: str) -> None:
    torch.manual_seed(0)
    model = build(spec_of(name))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1)
                module.weight[0] = 0
    found, deployed = norm_scores(model), dict(layers_of(build(spec_of(name), deploy=True)))
    assert found and all(values.shape == (deployed[layer].out_channels,) for layer, values in found.items())
    assert all(values[0] == 0 and values[1:].min() > 0 for values in found.values())
    with pytest.raises(RepqError, match="batch norms"):
        norm_scores(build(spec_of(name), deploy=True))


@pytest.mark.parametrize("name", ["yolov6l", "yolox_x"])
def test_grouping_the_largest_models_is_quick(name: str) -> None:
    with torch.device("meta"):
        model = build(name, 80, deploy=True)
    Pruner(model)  # torch imports what it needs for the first model
    start = time.process_time()
    Pruner(model)
    assert time.process_time() - start < 2


# --- graphs ----------------------------------------------------------------------------------------------------------


def shuffled_graph(opset: int = 17) -> onnx.ModelProto:
    """Convolutions around everything that moves channels: Split, Reshape, Transpose, Concat, Slice, Resize, Add."""
    rng = np.random.default_rng(0)
    weights: list[Any] = []

    def conv(name: str, source: str, out: int, into: int, groups: int = 1, kernel: int = 1) -> Any:
        shape = (out, into // groups, kernel, kernel)
        weights.append(numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), f"{name}_w"))
        weights.append(numpy_helper.from_array(rng.normal(0, 0.3, out).astype(np.float32), f"{name}_b"))
        pads = [kernel // 2] * 4
        return helper.make_node("Conv", [source, f"{name}_w", f"{name}_b"], [name], name, group=groups, pads=pads)

    def ints(name: str, values: list[int]) -> str:
        weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    weights.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice"))
    weights.append(numpy_helper.from_array(np.empty(0, np.float32), "roi"))
    node = helper.make_node
    nodes = [
        conv("stem", "image", 16, 3, kernel=3), node("Relu", ["stem"], ["r"], "relu"),
        node("Split", ["r", ints("halves", [8, 8])], ["left", "right"], "split", axis=1) if opset >= 13 else
        node("Split", ["r"], ["left", "right"], "split", axis=1, split=[8, 8]),
        conv("dw", "right", 8, 8, groups=8, kernel=3), conv("pw", "dw", 8, 8),
        node("Concat", ["left", "pw"], ["both"], "concat", axis=1),
        node("Reshape", ["both", ints("shape1", [1, 2, 8, 32, 32])], ["five"], "reshape1"),
        node("Transpose", ["five"], ["turned"], "transpose", perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["turned", ints("shape2", [1, 16, 32, 32])], ["mixed"], "reshape2"),
        conv("next", "mixed", 16, 16), node("Add", ["next", "mixed"], ["sum"], "add"),
        node("Slice", ["sum", ints("s", [4]), ints("e", [12]), ints("a", [1])], ["cut"], "slice"),
        node("MaxPool", ["cut"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["pooled", "roi", "twice"], ["big"], "resize", mode="nearest"),
        conv("grouped", "big", 8, 8, groups=2), node("Sigmoid", ["grouped"], ["gate"], "sigmoid"),
        node("Mul", ["grouped", "gate"], ["silu"], "mul"), conv("head", "silu", 7, 8),
        node("Reshape", ["head", ints("shape3", [1, 7, 1024])], ["found"], "reshape3"),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "toy", [value("image", TensorProto.FLOAT, (1, 3, 32, 32))],
        [value("found", TensorProto.FLOAT, (1, 7, 1024))], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.fixture(scope="module", params=[17, 11], ids=lambda opset: f"opset{opset}")
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GraphDetector:
    """Files of older opsets are converted, which notes the shapes of all tensors in them."""
    path = tmp_path_factory.mktemp("toy") / "toy.onnx"
    onnx.save(shuffled_graph(request.param), path)
    return opened(path)


def opened(path: Path) -> GraphDetector:
    skeleton, weights = to_skeleton(read_graph(path).model)
    model = GraphDetector(GraphSpec(name="toy", num_classes=3, strides=(16,), imgsz=(32, 32), graph=skeleton))
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return model.eval()


def run_onnx(graph: onnx.ModelProto, x: np.ndarray) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_a_pruned_graph_answers_as_what_is_left_of_it(toy: GraphDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    demand_answer(toy, monkeypatch)


def demand_answer(toy: GraphDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruned graph answers as the whole one does without what is gone."""
    pruner = Pruner(toy)
    monkeypatch.setattr(pruner, "_verify", lambda *_: None)  # the toy is no detector; its outputs are compared here
    config = PruneConfig(ratio=0.3, round=2, scope="layer")
    groups = groups_of(pruner.channels, unit_scores(pruner.channels, weight_scores(toy, 2)), config)
    kept = choose(pruner, groups, config, share_of_macs(pruner, (32, 32)), 1.0)
    smaller = pruner.cut(kept)
    x = np.random.default_rng(0).uniform(0, 1, (1, 3, 32, 32)).astype(np.float32)
    graphs = [with_weights(m.spec.graph, m.state_dict()) for m in (smaller, pruner.masked(kept))]
    onnx.checker.check_model(graphs[0], full_check=True)
    found, wanted = (run_onnx(graph, x) for graph in graphs)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in toy.parameters())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("said_by", ["Constant", "Identity", "Cast", "Concat", "Concat with the number of images"])
def test_shapes_may_be_said_in_any_way(said_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporters join the shapes of a graph for any batch from what they compute and constants."""
    model = shuffled_graph()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    make, one = helper.make_node, numpy_helper.from_array
    if "images" in said_by:
        model.graph.initializer.append(one(np.array([0]), "first"))
        model.graph.node.extend([make("Shape", ["image"], ["size"]), make("Gather", ["size", "first"], ["images"])])
    for tensor in [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64][:-1]:
        name, values = tensor.name, numpy_helper.to_array(tensor)
        tensor.name = f"{name} stored"
        if said_by == "Constant":
            model.graph.node.append(make("Constant", [], [name], value=one(values)))
        elif said_by == "Identity":
            model.graph.node.append(make("Identity", [tensor.name], [name]))
        elif said_by == "Cast":
            tensor.CopyFrom(one(values.astype(np.float32), tensor.name))
            model.graph.node.append(make("Cast", [tensor.name], [name], to=TensorProto.INT64))
        else:
            parts = [(f"{name} {number}", value) for number, value in enumerate(values)]
            model.graph.initializer.extend(one(np.array([value]), part) for part, value in parts)
            first = "images" if "images" in said_by and name.startswith("shape") else parts[0][0]
            model.graph.node.append(make("Concat", [first, *(part for part, _ in parts[1:])], [name], axis=0))
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "toy.onnx")
    demand_answer(opened(tmp_path / "toy.onnx"), monkeypatch)


def test_shuffled_halves_are_one_unit(toy: GraphDetector) -> None:
    outputs = Pruner(toy).channels.outputs
    stem, after = outputs[LayerId("stem")], outputs[LayerId("pw")]
    assert np.array_equal(stem[:8], stem[8:])  # the halves of a Split stay equal
    assert np.array_equal(after, stem[:8])  # and a shuffle ties what it interleaves
    assert not outputs[LayerId("head")].any()


def test_onnx_goes_in_and_smaller_onnx_comes_out(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    onnx.save(export_float(made("yolov6lite_s"), (64, 64)), whole)
    report = prune_checkpoint(whole, out, PruneConfig(target_macs=0.8, round=4), Context((64, 64)))
    assert report.macs_after <= 0.8 * report.macs_before
    graph = onnx.load(out)
    onnx.checker.check_model(graph, full_check=True)
    assert run_onnx(graph, np.zeros((1, 3, 64, 64), np.float32)).shape[2] == 8


# --- what is refused -------------------------------------------------------------------------------------------------


def test_unfused_models_are_refused() -> None:
    with pytest.raises(RepqError, match="fused"):
        Pruner(build(spec_of("yolov6n_v2")))


def test_ranking_by_images_needs_them(tmp_path: Path) -> None:
    path = tmp_path / "whole.safetensors"
    save_checkpoint(path, made("yolov6n_v2"))
    with pytest.raises(RepqError, match="looks at images"):
        prune_checkpoint(path, tmp_path / "out.safetensors", PruneConfig(importance="taylor"), Context((64, 64)))


@pytest.mark.parametrize(
    ("recovery", "kind", "told"),
    [
        ({}, "none", "learns from images"),
        ({"task_weight": 1}, "images", "no labels to learn from"),
        ({"task_weight": 1}, "graph", "cannot learn from labels"),
        ({"teacher": "none.safetensors"}, "labels", "none.safetensors"),
        ({"teacher": "other.safetensors"}, "labels", "teacher does not know every class"),
    ],
)
def test_a_recovery_that_cannot_be_is_refused_before_anything_is_done(
    recovery: dict[str, Any], kind: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("repq.api.pruning._narrowed", lambda *_: pytest.fail("pruned already"))
    data = make_demo_set(tmp_path / "demo", DemoConfig(train_images=2, val_images=2, size=64))
    whole = tmp_path / ("whole.onnx" if kind == "graph" else "whole.safetensors")
    if kind == "graph":
        save_onnx(whole, export_float(fuse(made("yolov6n_v2")), (64, 64)))
    else:
        save_checkpoint(whole, made("yolov6n_v2"), names=load_dataset(data, "val").names)
    save_checkpoint(tmp_path / "other.safetensors", build("yolov6n_v2", 1, deploy=True), names=("something",))
    given = {"none": None, "images": tmp_path / "demo/images/train"}.get(kind, data)
    config = PruneConfig(ratio=0.2, recovery=RecoveryConfig(epochs=1, **recovery))
    with pytest.raises(RepqError, match=told):
        prune_checkpoint(whole, tmp_path / "out.onnx", config, Context((64, 64), given))


def test_files_of_other_widths_are_refused(tmp_path: Path) -> None:
    model = made("yolov6n_v2")
    layer, _ = next(layers_of(model))
    for width in ((layer, 3, 10_000_000, 1), (layer, 3, -1, 1), ("nothing", 3, 8, 1), (layer, 3, 16, 0)):
        with pytest.raises(RepqError, match="cannot have these channels"):
            build(replace(model.spec, widths=(width,)), deploy=True)
    with pytest.raises(RepqError, match="cannot have these channels"):
        build(replace(model.spec, widths=((layer, 3, 8, 1),)))


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_a_pruned_model_learns_from_the_whole_one(importance: Any, tmp_path: Path) -> None:
    data = make_demo_set(tmp_path / "demo", DemoConfig(train_images=8, val_images=2, size=96))
    save_checkpoint(tmp_path / "whole.safetensors", made("yolov6n_v2"), names=load_dataset(data, "val").names)
    out = tmp_path / "small.safetensors"
    config = PruneConfig(importance=importance, images=8, recovery=RecoveryConfig(epochs=1, batch=4))
    report = prune_checkpoint(
        tmp_path / "whole.safetensors", out, config, Context((64, 64), data), evaluate=importance == "activation"
    )
    assert report.macs_after <= 0.7 * report.macs_before and len(report.epochs) == 1
    assert (report.accuracy_recovered is None) == (importance == "taylor")
    assert count_macs(load_checkpoint(out).model, 64) != count_macs(made("yolov6n_v2"), 64)


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("yolov6n_v2", "none", ("l2", "layer")),
        ("yolov6n_v2", "images", ("l2", "sensitivity")),
        ("yolov6n_v2", "labels", ("taylor", "sensitivity")),
        ("onnx", "labels", ("l2", "sensitivity")),  # a graph has no loss
    ],
)
def test_by_default_the_best_that_the_images_allow(
    name: str, data: str, wanted: tuple[str, str], tmp_path: Path
) -> None:
    whole = tmp_path / ("whole.onnx" if name == "onnx" else "whole.safetensors")
    if name == "onnx":
        save_onnx(whole, export_float(fuse(made("yolov6n_v2")), (64, 64)))
    else:
        save_checkpoint(whole, made(name))
    drawn = make_demo_set(tmp_path / "demo", DemoConfig(train_images=4, val_images=2, size=64, classes=2))
    source = {"none": None, "images": drawn.parent / "images/train", "labels": drawn}[data]
    model = repq.load(whole)
    settings = {"target_macs": 0.8, "round": 4, "images": 4, "sweep_images": 2, "sweep_levels": 1}
    report = model.prune(source, imgsz=64, **settings).report
    assert (report.importance, report.scope) == wanted
    assert any(group.sweep for group in report.groups) == (wanted[1] == "sensitivity")
    named = model.prune(source, imgsz=64, importance="l1", scope="global", **settings).report
    assert (named.importance, named.scope) == ("l1", "global")
