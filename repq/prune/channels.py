"""Which channels of a network live and die together, found by running it on labels in place of numbers.

Every output channel of a convolution gets a label. Whatever moves values (Reshape, Transpose, Split, Concat, stack …)
moves their labels by the very same operator, so shuffles need no rule of their own. Adding or multiplying two labelled
tensors makes the labels that meet one; a depthwise convolution hands its input's labels on. What mixes channels
otherwise (Softmax, MatMul, sums over channels, constants that differ from channel to channel), and the outputs, fix
the labels that they read. In the end every set of labels that became one is a *unit*: channels of one or several layers
that can only be removed together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from repq.layers import LayerId
from repq.model import Detector
from repq.model.detector import convolutions_of

FIXED = 0
"""The unit of all channels that cannot be removed."""

_MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "squeeze",
        "unsqueeze",
        "expand",
        "clone",
        "contiguous",
        "cat",
        "stack",
        "detach",
        "alias",
        "_to_copy",
        "lift_fresh",
        "repeat",
        "pixel_shuffle",
        "pixel_unshuffle",
        "narrow",
        "flip",
        "roll",
        "channel_shuffle",
    ]
)
_SPATIAL = ("max_pool", "avg_pool", "adaptive", "_adaptive", "upsample", "_upsample", "constant_pad", "reflection_pad",
            "replication_pad")  # fmt: skip
_POINTWISE = frozenset(
    {"hardswish", "hardsigmoid", "hardtanh", "relu6", "leaky_relu", "elu", "gelu", "mish", "softplus"}
)
"""Those that torch does not mark as such."""
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin"})


@dataclass(frozen=True, eq=False)
class Channels:
    """The units of a detector.

    Attributes:
        outputs, inputs: the unit of every output and input channel of every layer; ``FIXED``: it stays.
        count: numbers of units, with the fixed one.
        shape: gives the shape that a tensor of labels has when units are gone; see `after_removal`.
    """

    outputs: Mapping[LayerId, NDArray[np.int64]]
    inputs: Mapping[LayerId, NDArray[np.int64]]
    count: int
    roots: NDArray[np.int64]

    def lengths(self, labels: Tensor, kept: NDArray[np.bool_]) -> tuple[int, ...]:
        """The shape of a tensor with these labels, of the units that are kept alone."""
        alive = torch.from_numpy(kept[self.roots])[_compact(labels)]
        shape = []
        for axis in range(labels.ndim):
            others = [other for other in range(labels.ndim) if other != axis]
            along = alive.any(dim=others) if others else alive
            shape.append(int(along.sum()) if len(along) == labels.shape[axis] else labels.shape[axis])
        return tuple(shape)


def find_channels(model: Detector, x: Tensor, run: Callable[[Tensor], Any]) -> Channels:
    """Trace a fused detector.

    Args:
        model: on the meta device, in eval mode; layers are its convolutions.
        x: (1, 3, H, W), as large as the input; its values are not read.
        run: the model, to its outputs.
    """
    tracer = _Tracer({id(module.weight): layer for layer, module in convolutions_of(model)})
    image = _Labelled(torch.zeros((1, 1, 1, 1), dtype=torch.int64).expand(x.shape), tracer)
    with torch.no_grad():
        found = run(image)
    for output in tree_flatten(found)[0]:
        if isinstance(output, _Labelled):
            tracer.fix(output.labels)
    return tracer.channels()


class _Labelled(Tensor):
    """A tensor without numbers whose every entry has a label."""

    labels: Tensor
    tracer: _Tracer

    @staticmethod
    def __new__(cls, labels: Tensor, tracer: _Tracer) -> _Labelled:
        made: _Labelled = Tensor._make_wrapper_subclass(
            cls, labels.shape, dtype=torch.float32, device=torch.device("meta")
        )
        return made

    def __init__(self, labels: Tensor, tracer: _Tracer) -> None:
        self.labels, self.tracer = labels, tracer

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        found = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, _Labelled)]
        return found[0].tracer.call(func, args, kwargs, found)


def labels_of(value: Any) -> Tensor | None:
    """The labels of a traced tensor; None: it hangs on no channel."""
    return value.labels if isinstance(value, _Labelled) else None


class _Tracer:
    def __init__(self, layers: Mapping[int, LayerId]) -> None:
        self.layers = layers
        self.parents = [FIXED]
        self.outputs: dict[LayerId, NDArray[np.int64]] = {}
        self.inputs: dict[LayerId, NDArray[np.int64]] = {}

    # --- units -------------------------------------------------------------------------------------------------------

    def fresh(self, count: int) -> NDArray[np.int64]:
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, label: int) -> int:
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def join(self, first: Tensor, second: Tensor) -> None:
        """Make one of the labels that meet, after broadcasting."""
        first, second = torch.broadcast_tensors(first, second)
        for axis in range(first.ndim):
            if first.stride(axis) == 0 and second.stride(axis) == 0:
                first, second = first.narrow(axis, 0, 1), second.narrow(axis, 0, 1)
        differ = first != second
        pairs = torch.unique((first[differ] << 32) + second[differ]).tolist()
        for one, other in (divmod(pair, 1 << 32) for pair in pairs):
            low, high = sorted((self.root(one), self.root(other)))
            self.parents[high] = low  # the fixed unit is the lowest

    def fix(self, labels: Tensor) -> None:
        self.join(_compact(labels), torch.zeros((), dtype=torch.int64))

    def channels(self) -> Channels:
        roots = np.array([self.root(label) for label in range(len(self.parents))])
        units, numbers = np.unique(roots, return_inverse=True)  # the fixed one is the first

        def numbered(labels: dict[LayerId, NDArray[np.int64]]) -> dict[LayerId, NDArray[np.int64]]:
            return {layer: numbers[found] for layer, found in labels.items()}

        return Channels(numbered(self.outputs), numbered(self.inputs), len(units), numbers)

    # --- operators ---------------------------------------------------------------------------------------------------

    def call(self, func: Any, args: Any, kwargs: Any, found: Sequence[_Labelled]) -> Any:
        name = func._schema.name.partition("::")[2]
        in_place = name.endswith("_") and not name.startswith("_")
        plain = name.rstrip("_") if in_place else name
        if plain in _POINTWISE or torch.Tag.pointwise in func.tags:  # running them as a whole costs more
            results: Any = torch.empty(torch.broadcast_shapes(*_shapes(args)), device="meta")
        else:
            results = None if plain in _MOVES else func(*_bare(args), **_bare(kwargs))
        labels = self.labels(func, plain, args, kwargs, found, results)
        if in_place:
            args[0].labels = labels if isinstance(labels, Tensor) else torch.zeros_like(args[0].labels)
            return args[0]
        if labels is None:
            return results
        if isinstance(labels, Tensor):
            whole = _Labelled(_shrunk(labels), self)
            return (whole, *results[1:]) if isinstance(results, tuple) else whole
        return [_Labelled(_shrunk(part), self) for part in labels]

    def labels(
        self, func: Any, name: str, args: Any, kwargs: Any, found: Sequence[_Labelled], results: Any
    ) -> Tensor | Sequence[Tensor] | None:
        """The labels of what an operator gives; None: it hangs on no channel any more."""
        if name == "convolution":
            return self.convolution(results.shape, *args)
        if name in _MOVES:
            return self.move(func, name, args, kwargs)
        first = found[0].labels
        if torch.Tag.pointwise in func.tags or name in _POINTWISE:
            return self.pointwise(args, found, results)
        if name.startswith(_SPATIAL) and first.ndim == 4 and not {2, 3} & set(_varying(first)):
            whole = results if isinstance(results, Tensor) else results[0]
            if whole.shape[:2] == first.shape[:2]:
                return first[..., :1, :1].expand(whole.shape)
        if name in _REDUCTIONS and len(args) > 1 and isinstance(args[1], Sequence | int):
            axes = {axis % first.ndim for axis in ([args[1]] if isinstance(args[1], int) else args[1])}
            if axes and not axes & set(_varying(first)):
                for axis in axes:
                    first = first.narrow(axis, 0, 1)
                return first.reshape(results.shape)
        if name in ("index", "index_select"):
            places = (
                [args[1]] if name == "index_select" else [i for i, index in enumerate(args[1]) if index is not None]
            )
            if results.ndim == first.ndim and not set(places) & set(_varying(first)):
                for axis in places:
                    first = first.narrow(axis, 0, 1)
                return first.expand(results.shape)
        for value in found:
            self.fix(value.labels)
        return None

    def move(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor | Sequence[Tensor]:
        if name in ("_to_copy", "clone", "contiguous", "detach", "alias", "lift_fresh"):
            return _labels(args[0])
        if name in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
            return self.box(_labels(args[0]).reshape(args[1]))
        if name == "slice" and (len(args) > 4 and args[4] != 1):
            self.fix(_labels(args[0]))
        if name in ("cat", "stack"):
            return self.box(_joined(func, name, [_labels(part) for part in args[0]], *args[1:]))
        moved: Any = func(*tree_map(_labels, args), **kwargs)
        if isinstance(moved, Tensor):
            return self.box(moved)
        parts = list(moved)
        if name != "unbind" and len({part.shape for part in parts}) == 1:  # equal parts stay equal
            for part in parts[1:]:
                self.join(parts[0], part)
        return parts

    def box(self, labels: Tensor) -> Tensor:
        """Tie labels so that removing units leaves a box: they may differ along one axis alone, the longest."""
        axes = _varying(labels)
        if len(axes) > 1:
            main = max(axes, key=lambda axis: labels.shape[axis])
            row = labels
            for axis in axes:
                if axis != main:
                    row = row.narrow(axis, 0, 1)
            self.join(_compact(labels), _compact(row))
            return row.expand(labels.shape)
        return labels

    def pointwise(self, args: Any, found: Sequence[_Labelled], results: Tensor) -> Tensor:
        labels = found[0].labels
        for other in found[1:]:
            self.join(labels, other.labels)
        widest = max((value.labels for value in found), key=lambda value: value.numel())
        whole = widest.expand(results.shape)
        varying = _varying(whole)
        for value in tree_flatten(args)[0]:
            if isinstance(value, Tensor) and not isinstance(value, _Labelled) and value.ndim:
                sizes = [1] * (whole.ndim - value.ndim) + list(value.shape)
                if any(sizes[axis] > 1 for axis in varying):
                    self.fix(whole)
        return whole

    def convolution(
        self, shape: torch.Size, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
        transposed: bool, extra: Any, groups: int,
    ) -> Tensor | None:  # fmt: skip
        layer, labels = self.layers.get(id(weight)), _labels(x)
        if layer is None or set(_varying(labels)) - {1}:
            self.fix(labels)
            if layer is None:
                return None
        own = _compact(labels)[0].reshape(-1)
        own = own.expand(x.shape[1]) if len(own) == 1 else own
        count = shape[1]
        if groups == x.shape[1] and groups > 1:
            made = own.repeat_interleave(count // groups)
        else:
            made = torch.from_numpy(self.fresh(count))
            if groups > 1:
                for values in (own, made):
                    rows = values.reshape(groups, -1)
                    self.join(rows, rows[:1])
        if layer in self.outputs:  # one layer that runs several times
            self.join(own, torch.from_numpy(self.inputs[layer]))
            self.join(made, torch.from_numpy(self.outputs[layer]))
        self.outputs[layer], self.inputs[layer] = made.numpy(), own.numpy()
        return made.view(1, -1, 1, 1).expand(shape)


def _shapes(values: Any) -> list[torch.Size]:
    return [value.shape for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def _bare(values: Any) -> Any:
    return tree_map(
        lambda value: torch.empty(value.shape, dtype=value.dtype, device="meta")
        if isinstance(value, _Labelled) else value, values,
    )  # fmt: skip


def _labels(value: Any) -> Any:
    """Labels of a tensor, fixed ones of a tensor without; anything else as it is."""
    if isinstance(value, _Labelled):
        return value.labels
    return torch.zeros((1,) * value.ndim, dtype=torch.int64).expand(value.shape) if isinstance(value, Tensor) else value


def _compact(labels: Tensor) -> Tensor:
    """The labels with one entry along every axis where they are the same view."""
    for axis in range(labels.ndim):
        if labels.stride(axis) == 0 and labels.shape[axis] > 1:
            labels = labels.narrow(axis, 0, 1)
    return labels


def _varying(labels: Tensor) -> list[int]:
    """The axes along which labels differ."""
    found, compact = [], _compact(labels)
    for axis in range(compact.ndim):
        if compact.shape[axis] > 1 and not torch.equal(compact, compact.narrow(axis, 0, 1).expand(compact.shape)):
            found.append(axis)
    return found


def _shrunk(labels: Tensor) -> Tensor:
    """The same labels, in memory once along axes where they do not differ."""
    found, compact = labels, _compact(labels)
    for axis in set(range(compact.ndim)) - set(_varying(compact)):
        compact = compact.narrow(axis, 0, min(1, compact.shape[axis]))
    return compact.expand(found.shape)


def _joined(func: Any, name: str, parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """``cat`` or ``stack`` of labels, without writing out axes where none of them differs."""
    shape = func([torch.empty(part.shape, device="meta") for part in parts], axis).shape
    along = axis % parts[0].ndim if name == "cat" else None
    for other in range(parts[0].ndim):
        if other != along and all(part.stride(other) == 0 or part.shape[other] == 1 for part in parts):
            parts = [part.narrow(other, 0, 1) for part in parts]
    moved: Tensor = func(list(parts), axis)
    return moved.expand(shape)
