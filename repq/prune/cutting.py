"""Removing channels: a smaller detector of the same family with what is left of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from repq.errors import RepqError
from repq.layers import LayerId
from repq.model import Detector, outline
from repq.model.detector import convolutions_of
from repq.model.onnx_graph.constants import Constants
from repq.model.onnx_graph.detector import GraphDetector
from repq.model.onnx_graph.program import title
from repq.model.onnx_graph.skeleton import encode_skeleton, layer_nodes, read_skeleton
from repq.onnx_file import attributes_of
from repq.prune.channels import Channels, find_channels, labels_of

Kept = NDArray[np.bool_]
"""For every unit whether it stays."""
Means = Mapping[LayerId, Tensor]
"""The mean of every input channel of convolutions, over images and positions."""
_TOLERANCE = 1e-3
_SHAPED = frozenset({"Reshape", "Split", "Slice", "Expand", "Resize"})


class Pruner:
    """Knows the units of a fused detector, and what is left of it without some of them.

    Args:
        model: fused and float, on the CPU.

    Raises:
        RepqError: it is not fused, or cannot be traced.
    """

    def __init__(self, model: Detector) -> None:
        if not model.deploy:
            raise RepqError(
                "only a fused model can be pruned", found=model.spec.name, fix="fuse it first (`repq fuse`)"
            )
        self.model = model.eval()
        self._nodes: dict[str, tuple[list[Any], list[Any]]] = {}
        bare = outline(model.spec, True).to("meta").eval()
        image = torch.empty(1, 3, *smallest_size(model), device="meta")
        run: Callable[[Tensor], Any] = bare
        if isinstance(bare, GraphDetector):
            bare.watch, run = self._note, lambda x: bare.outputs(bare.features(x))
        self.channels: Channels = find_channels(bare, image, run)

    def _note(self, step: Any, tensors: Any, results: Any) -> None:
        if step.kind in _SHAPED:
            written = [results] if isinstance(results, Tensor) else list(results)
            self._nodes[step.name] = [labels_of(x) for x in tensors], [labels_of(x) for x in written]

    def widths(self, kept: Kept) -> dict[LayerId, tuple[int, int, int]]:
        """Input channels, output channels and groups of every layer that runs."""
        found = {}
        for layer, module in convolutions_of(self.model):
            if layer in self.channels.outputs:
                own_in, own_out = (int(kept[units].sum()) for units in self._units(layer))
                found[layer] = own_in, own_out, own_in if _is_depthwise(module) else module.groups
        return found

    def _units(self, layer: LayerId) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.channels.inputs[layer], self.channels.outputs[layer]

    def masked(self, kept: Kept, means: Means = MappingProxyType({})) -> Detector:
        """The detector as it is, but that no layer reads what is not kept: it answers as the smaller one does.

        Args:
            means: of the input channels of layers; where they are given, biases stand for the means of what is gone.
        """
        model = copy.deepcopy(self.model)
        for layer, module in convolutions_of(model):
            if layer in self.channels.inputs:
                self.mute(layer, module, kept, means.get(layer))
        return model

    def readers(self, units: NDArray[np.int64]) -> tuple[LayerId, ...]:
        """The layers whose weights `mute` changes when these units are gone."""
        return tuple(
            layer
            for layer, module in convolutions_of(self.model)
            if layer in self.channels.inputs
            and not _is_depthwise(module)
            and np.isin(self.channels.inputs[layer], units).any()
        )

    @torch.no_grad()
    def mute(self, layer: LayerId, module: Any, kept: Kept, means: Tensor | None = None) -> None:
        """Let one layer no longer read what is not kept, in place; its bias then stands for ``means`` of that."""
        gone = torch.from_numpy(~kept[self.channels.inputs[layer]])
        if _is_depthwise(module) or not gone.any():
            return
        if means is not None and module.bias is not None:
            module.bias += _constant_answer(module, torch.where(gone, means, 0.0))
        module.weight[_slices(module, *(~kept[units] for units in self._units(layer)), inputs_only=True)] = 0

    def means(self, images: Iterable[Tensor]) -> dict[LayerId, Tensor]:
        """The mean of every input channel of every convolution over images (B, 3, H, W).

        Raises:
            RepqError: there are no images.
        """
        sums: dict[LayerId, Tensor] = {}
        count = 0

        def hook(layer: LayerId) -> Callable[..., None]:
            def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                sums[layer] = sums.get(layer, 0) + inputs[0].mean((2, 3)).sum(0)

            return look

        with torch.no_grad(), ExitStack() as stack:
            for layer, module in convolutions_of(self.model):
                stack.callback(module.register_forward_pre_hook(hook(layer)).remove)
            for batch in images:
                self.model(batch)
                count += len(batch)
        if not count:
            raise RepqError("there is nothing to look at", found="no images", fix="give at least one image")
        return {layer: total / count for layer, total in sums.items()}

    def cut(self, kept: Kept, means: Means = MappingProxyType({})) -> Detector:
        """The smaller detector, which is compared with `masked` on noise; ``means`` as there.

        Raises:
            RepqError: a layer would be empty, or the smaller detector answers otherwise.
        """
        widths = self.widths(kept)
        if empty := [layer for layer, (own_in, own_out, _) in widths.items() if not own_in or not own_out]:
            raise RepqError(f"no channel of {empty[0]} would be left", fix="prune less")
        whole = self.masked(kept, means)
        state = dict(whole.state_dict())
        for layer, module in convolutions_of(whole):
            if layer in widths:
                masks = [kept[units] for units in self._units(layer)]
                state[f"{layer}.weight"] = module.weight.detach()[_slices(module, *masks)].contiguous()
                if module.bias is not None:
                    state[f"{layer}.bias"] = module.bias.detach()[torch.from_numpy(masks[1])].clone()
        if isinstance(self.model, GraphDetector):
            spec: Any = replace(self.model.spec, graph=self._graph(widths, kept))
        else:
            own = {layer: (m.in_channels, m.out_channels, m.groups) for layer, m in convolutions_of(self.model)}
            before = {layer: tuple(values) for layer, *values in self.model.spec.widths}
            changed = {layer: width for layer, width in widths.items() if width != own[layer] or layer in before}
            spec = replace(self.model.spec, widths=tuple((layer, *width) for layer, width in changed.items()))
        smaller = outline(spec, True)
        smaller.load_state_dict(state, assign=True)
        self._verify(smaller.eval(), whole)
        return smaller

    @torch.no_grad()
    def _verify(self, smaller: Detector, whole: Detector) -> None:
        noise = torch.rand(1, 3, *smallest_size(self.model), generator=torch.Generator().manual_seed(0))
        noise = self.model.spec.preprocessing.normalize(noise * 255)
        wanted, found = whole(noise), smaller(noise)
        error = float((wanted - found).abs().max() / wanted.abs().max()) if wanted.shape == found.shape else np.inf
        if not error <= _TOLERANCE:
            raise RepqError("the pruned model does not compute what is left of the model",
                            found=f"an error of {error:.1e} of the output's largest value",
                            fix="report this as a fault of repq, with the model")  # fmt: skip

    # --- graphs ------------------------------------------------------------------------------------------------------

    def _graph(self, widths: Mapping[LayerId, tuple[int, int, int]], kept: Kept) -> str:
        """The skeleton of the smaller graph: shapes of weights, groups, and constants that say shapes."""
        graph = ModelProto()
        graph.CopyFrom(read_skeleton(self.model.spec.graph))
        del graph.graph.value_info[:]  # shapes of the whole model's tensors, which converting to a newer opset notes
        stored = {tensor.name: tensor for tensor in graph.graph.initializer}
        for layer, node in layer_nodes(graph).items():
            if layer in widths:
                own_in, own_out, groups = widths[layer]
                first = (own_in, own_out // groups) if node.op_type == "ConvTranspose" else (own_out, own_in // groups)
                stored[node.input[1]].dims[:2] = first
                if len(node.input) > 2 and node.input[2]:
                    stored[node.input[2]].dims[:] = [own_out]
                _set(node, "group", groups)
        self._refit(graph, partial(self.channels.lengths, kept=kept))
        return encode_skeleton(graph)

    def _refit(self, graph: ModelProto, lengths: Callable[[Tensor], tuple[int, ...]]) -> None:
        """Make what nodes say of shapes true of fewer channels, in place."""
        titles, constants = [title(node) for node in graph.graph.node], Constants(graph)
        makers = {name: node for node in graph.graph.node for name in node.output}
        nodes: list[NodeProto] = []
        for node in graph.graph.node:
            read, written = self._nodes.get(title(node), ([None], [])) if node.op_type in _SHAPED else ([None], [])
            if read[0] is not None and any(lengths(x) != tuple(x.shape) for x in (read[0], *filter(_is, written))):
                if titles.count(title(node)) > 1:
                    raise RepqError("the graph has several nodes of one name", found=title(node),
                                    fix="give every node a name of its own")  # fmt: skip
                values: dict[int, NDArray[Any] | None] = {
                    slot: constants.value(name) for slot, name in enumerate(node.input) if slot and name
                }
                known = {slot: value.reshape(-1).tolist() for slot, value in values.items() if value is not None}
                for slot, sizes in _shaped(node, known, read[0], written, lengths).items():
                    node.input[slot] = _store(graph, f"{node.output[0]}/pruned_{slot}", sizes)
                if node.op_type in ("Reshape", "Expand") and 1 not in known and written[0] is not None:
                    nodes += _rejoined(graph, node, makers[node.input[1]], constants, lengths(written[0]))
            nodes.append(node)
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.graph.node[:]
        graph.graph.node.extend(copies)


def smallest_size(model: Detector) -> tuple[int, int]:
    """The least height and width by which a detector can be looked at."""
    side = 2 * max(model.spec.strides)
    return model.spec.only_size or (side, side)


def _is_depthwise(module: Any) -> bool:
    return bool(module.groups == module.in_channels > 1)


def _constant_answer(module: Any, values: Tensor) -> Tensor:
    """What a layer without its bias answers, far from borders, to constant channels; over a stride the mean."""
    image, kernel = values.view(1, -1, 1, 1), module.weight.sum((2, 3), keepdim=True)
    if isinstance(module, nn.ConvTranspose2d):
        kernel = kernel / (module.stride[0] * module.stride[1])
        return functional.conv_transpose2d(image, kernel, groups=module.groups).flatten()
    return functional.conv2d(image, kernel, groups=module.groups).flatten()


def _slices(module: Any, inputs: Kept, outputs: Kept, *, inputs_only: bool = False) -> Any:
    """The part of a layer's weight for these input and output channels, or for these inputs and all outputs."""
    groups, transposed = module.groups, isinstance(module, nn.ConvTranspose2d)
    if inputs_only:
        outputs = np.ones_like(outputs)
    if _is_depthwise(module):
        first, second = (inputs, None) if transposed else (outputs, None)
    elif transposed:
        first, second = inputs, outputs.reshape(groups, -1)[0]
    else:
        first, second = outputs, inputs.reshape(groups, -1)[0]
    rows = torch.from_numpy(np.flatnonzero(first))
    return (rows,) if second is None else (rows[:, None], torch.from_numpy(np.flatnonzero(second))[None])


def _is(labels: Any) -> bool:
    return labels is not None


def _set(node: NodeProto, name: str, value: int) -> None:
    others = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*others, helper.make_attribute(name, value)])


def _store(graph: ModelProto, name: str, values: Sequence[int]) -> str:
    """Add integers to a graph, in place; return their name."""
    graph.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def _rejoined(
    graph: ModelProto, node: NodeProto, join: NodeProto, constants: Constants, lengths: Sequence[int]
) -> list[NodeProto]:
    """For a node that reads its shape from a Concat, one with these lengths in the place of its constants.

    What it computes, such as the number of images, follows the input. None, if the shape is computed in another way.
    """
    parts: list[NDArray[Any] | None] = []
    if join.op_type == "Concat":
        parts = [constants.value(name) for name in join.input]
    sizes = [1 if part is None else part.size for part in parts]
    if sum(sizes) != len(lengths):
        return []
    names, place = list(join.input), 0
    for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        if part is not None:
            pairs = zip(part.reshape(-1).tolist(), lengths[place : place + size], strict=True)
            new = [old if old in (0, -1) else length for old, length in pairs]
            names[number] = _store(graph, f"{node.output[0]}/pruned_part_{number}", new)
        place += size
    node.input[1] = f"{node.output[0]}/pruned_shape"
    return [helper.make_node("Concat", names, [node.input[1]], f"{node.output[0]}/pruned_join", axis=0)]


def _shaped(
    node: NodeProto, constants: Mapping[int, list[int]], read: Tensor, written: list[Any],
    lengths: Callable[[Tensor], tuple[int, ...]],
) -> dict[int, list[int]]:  # fmt: skip
    """New constant inputs, by slot, of a node that says shapes, when its input and outputs have fewer channels."""
    attributes = attributes_of(node)
    if node.op_type in ("Reshape", "Expand") and 1 in constants and written[0] is not None:
        new, lead = lengths(written[0]), written[0].ndim - len(constants[1])
        return {1: [old if old in (0, -1) else size for old, size in zip(constants[1], new[lead:], strict=True)]}
    if node.op_type == "Split" and 1 in constants:
        axis = int(attributes.get("axis", 0))
        sizes = [old if part is None else lengths(part)[axis] for part, old in zip(written, constants[1], strict=True)]
        return {1: sizes}
    if node.op_type == "Resize" and 3 in constants and written[0] is not None:
        new = lengths(written[0])
        return {3: [new[axis] for axis in attributes.get("axes", range(len(new)))]}
    if node.op_type == "Slice" and {1, 2} <= constants.keys():
        axes = constants.get(3, list(range(len(constants[1]))))
        starts, ends = list(constants[1]), list(constants[2])
        for place, axis in enumerate(axes):
            size = read.shape[axis]
            if lengths(read)[axis] != size:
                start, end = (min(max(v + size if v < 0 else v, 0), size) for v in (starts[place], ends[place]))
                starts[place] = lengths(read.narrow(axis, 0, start))[axis] if start else 0
                ends[place] = starts[place] + lengths(read.narrow(axis, start, end - start))[axis]
        return {1: starts, 2: ends}
    return {}
