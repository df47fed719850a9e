"""Run a model once, then again with a few layers changed, computing only what comes after them.

A ``Tape`` is the list of what one forward pass did: every layer is one operation, and so is every torch operator
between them. To run with a layer changed, they are walked in order; one runs if its layer has changed or if one of its
inputs was computed anew, all others keep their recorded values. The same operators see the same tensors as in a whole
forward pass, so the result equals it bit for bit.

Only the values that a later run can need are kept: what a changing layer receives, what meets another value, and the
outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.model import Detector, layer_ids
from repq.quant.similarity import Outputs


@dataclass(frozen=True)
class _Value:
    """Stands for the tensor of this number."""

    number: int


@dataclass(frozen=True)
class Operation:
    """``outputs = run(*args, **kwargs)``, with every computed tensor among the arguments replaced by its ``_Value``.

    ``run`` is a module for a layer, else a torch operator; ``inputs`` and ``outputs`` are numbers of computed tensors.
    """

    run: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    outputs: tuple[int, ...]
    layer: LayerId | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        return tuple(value.number for value in _leaves((self.args, list(self.kwargs.values())), _Value))


class Tape:
    """One recorded forward pass; see the module's docstring. Make it with ``record``.

    Attributes:
        operations: what was done, in order.
        results: the numbers of the tensors that the recorded function returned.
        outputs: those tensors.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        values: Sequence[Tensor],
        results: Sequence[int],
        changing: Collection[LayerId],
    ) -> None:
        self._changing = frozenset(changing)
        self.results = tuple(results)
        self._inputs = [done.inputs for done in operations]
        self.operations = tuple(operations)
        needed = set(results)
        for done, inputs in zip(operations, self._inputs, strict=True):
            if done.layer in self._changing or len(set(inputs)) > 1:
                needed.update(inputs)
        self._values = {number: values[number] for number in needed}
        self._last_use = {number: i for i, inputs in enumerate(self._inputs) for number in inputs}

    @property
    def outputs(self) -> Outputs:
        return tuple(self._values[number] for number in self.results)

    def replay(self, changed: Collection[LayerId]) -> Outputs:
        """Return what the recorded function returns now that ``changed`` layers behave otherwise.

        All other layers must behave as they did when the tape was recorded.
        """
        assert self._changing.issuperset(changed), "these layers were not announced to record()"
        fresh: dict[int, Tensor] = {}
        kept = set(self.results)

        def current(value: _Value) -> Tensor:
            return fresh[value.number] if value.number in fresh else self._values[value.number]

        for position, (done, inputs) in enumerate(zip(self.operations, self._inputs, strict=True)):
            if done.layer not in changed and fresh.keys().isdisjoint(inputs):
                continue
            result = done.run(
                *_replace(done.args, _Value, current),
                **{name: _replace(value, _Value, current) for name, value in done.kwargs.items()},
            )
            fresh.update(zip(done.outputs, _leaves(result, Tensor), strict=True))
            for number in inputs:
                if self._last_use[number] == position and number not in kept:
                    fresh.pop(number, None)
        return tuple(current(_Value(number)) for number in self.results)


def record(
    function: Callable[[Tensor], Outputs],
    images: Tensor,
    layers: Mapping[LayerId, nn.Module],
    changing: Collection[LayerId],
) -> Tape:
    """Run ``function(images)`` and record it.

    Args:
        layers: the modules that are one operation each.
        changing: those among them that a replay may change.

    Raises:
        QuantizationError: an operator outside the layers works in place, which cannot be run again.
    """
    recorder = _Recorder(images)
    with ExitStack() as stack:
        for layer, module in layers.items():
            before, after = recorder.hooks(layer)
            stack.enter_context(module.register_forward_pre_hook(before))
            stack.enter_context(module.register_forward_hook(after))
        stack.enter_context(torch.no_grad())
        stack.enter_context(recorder)
        outputs = function(images)
    return Tape(recorder.operations, recorder.values, [recorder.number(output) for output in outputs], changing)


def record_small(model: Detector) -> Tape:
    """Record one pass of the smallest image that the network takes; no layer of it can be changed."""

    def run(images: Tensor) -> Outputs:
        detections = model(images)
        return (detections,) if isinstance(detections, Tensor) else ()

    size = model.spec.only_size or (max(model.spec.strides), max(model.spec.strides))
    images = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
    return record(run, images, {layer: model.get_submodule(layer) for layer in layer_ids(model)}, ())


class _Recorder(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would load its compiler, which takes a second, only to be told to leave this alone."""
        return False

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.values: list[Tensor] = []  # keeps every tensor alive, so that no two share an id
        self._numbers: dict[int, int] = {}
        self._within_layer = False
        self._new(images)

    def number(self, tensor: Tensor) -> int:
        return self._numbers[id(tensor)]

    def _new(self, tensor: Tensor) -> int:
        self.values.append(tensor)
        self._numbers[id(tensor)] = len(self.values) - 1
        return len(self.values) - 1

    def _add(
        self,
        run: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
        layer: LayerId | None,
    ) -> None:
        # a tensor that no operation computed is a parameter or a constant and stays itself
        def numbered(tensor: Tensor) -> Any:
            return _Value(self._numbers[id(tensor)]) if id(tensor) in self._numbers else tensor

        self.operations.append(
            Operation(
                run,
                _replace(args, Tensor, numbered),
                {name: _replace(value, Tensor, numbered) for name, value in kwargs.items()},
                tuple(self._new(tensor) for tensor in _leaves(result, Tensor)),
                layer,
            )
        )

    def hooks(self, layer: LayerId) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._within_layer = True

        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._within_layer = False
            self._add(module, inputs, {}, output, layer)

        return before, after

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._within_layer:
            if func is torch.ops.aten.as_strided_.default:  # a pooling of images in channels-last ends with it
                func = torch.ops.aten.as_strided.default
            if func._schema.is_mutable:
                raise QuantizationError(
                    "this model cannot be run in parts",
                    found=f"the operator {func}, which works in place",
                    fix="build the model's activations without inplace=True",
                )
            self._add(func, args, kwargs or {}, result, None)
        return result


def _replace(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)(_replace(item, kind, function) for item in value)
    return value


def _leaves(value: Any, kind: type) -> list[Any]:
    if isinstance(value, kind):
        return [value]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item, kind)]
    return []
