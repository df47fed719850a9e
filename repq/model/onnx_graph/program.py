"""From the nodes of an ONNX graph to a list of steps that torch runs one after the other.

Making the list runs the graph once, on two random images of the size it is for. So the shape of every tensor is known,
and all that hangs on constants and shapes alone is computed once and is a constant from then on.

It also shows how each step is to treat a batch: graphs are often exported for one image, with that 1 in constants. The
values of several images lie one behind the other along the first axis; a step runs *whole* if it then gives what it
gives for each image alone, which nearly all do, and else for *each* image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from torch import Tensor

from repq.errors import RepqError
from repq.layers import LayerId
from repq.model.onnx_graph.layers import Call, Form, LayerForm, MatrixForm, layer_calls
from repq.model.onnx_graph.operators import OPERATORS, host_value
from repq.model.onnx_graph.skeleton import bias_sums, is_hollow
from repq.onnx_file import attributes_of

Batching = Literal["whole", "each"]
Values = list[Tensor]  # of one tensor, for each image

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_SHAPES = frozenset({"Shape", "Size"})
_EACH_ROW = frozenset({
    "Add", "AveragePool", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "GlobalAveragePool", "HardSigmoid", "HardSwish",
    "LeakyRelu", "MaxPool", "Mish", "Mul", "Relu", "Resize", "Sigmoid", "Softplus", "Sqrt", "Sub", "Swish", "Tanh",
})  # fmt: skip
"""Operators that keep the first axis, and whose every row hangs on that row alone."""
_OWN_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name: of the node, for messages.
        kind: its operator.
        run: from the tensors of ``reads`` to one tensor, or to as many as ``writes`` has.
        reads, writes: numbers of values.
        layer: the layer that runs in place of ``run``.
        batching: how it treats several images.
        frees: values that nobody reads after it.
    """

    name: str
    kind: str
    run: Callable[..., Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    layer: LayerId | None = None
    batching: Batching = "whole"
    frees: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """The steps of a graph.

    Attributes:
        constants: by number, the values that are there before the first step.
        count: how many values there are.
        inputs, outputs: numbers of the graph's inputs and outputs.
        shapes: of each value, for one image.
        forms: the layers, in the order in which they run.
    """

    steps: tuple[Step, ...]
    constants: Mapping[int, Tensor]
    count: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: Mapping[int, tuple[int, ...]]
    forms: Mapping[LayerId, Form]

    def __deepcopy__(self, memo: object) -> Program:
        return self


def unknown_operators(graph: GraphProto) -> list[str]:
    """The operators of a graph that the table does not have, with their numbers, such as ``LSTM (2)``."""
    names = (
        node.op_type if node.domain in _OWN_DOMAINS else f"{node.domain}.{node.op_type}"
        for node in graph.node
        if node.op_type not in OPERATORS or node.domain not in _OWN_DOMAINS
    )
    return [f"{name} ({count})" for name, count in sorted(Counter(names).items())]


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators; 0: there is none."""
    return max((entry.version for entry in model.opset_import if entry.domain in _OWN_DOMAINS), default=0)


def title(node: NodeProto) -> str:
    """What messages call a node."""
    return str(node.name or (node.output[0] if node.output else node.op_type))


def trace(model: ModelProto, probes: Mapping[str, Values], layers: Mapping[str, LayerId] | None = None) -> Program:
    """Make the steps of a graph.

    Args:
        model: of operators that the table has.
        probes: by name of an input, its value for each image. With several images shapes count as constants.
        layers: by the first output of a node, the layer that it is to be.

    Raises:
        RepqError: a node cannot be run; it is named.
    """
    tracer = _Tracer(model, probes)
    for node in model.graph.node:
        try:
            tracer.add(node, (layers or {}).get(node.output[0]))
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, NotImplementedError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise RepqError(
                f"the node {title(node)} ({node.op_type}) cannot be run", found=first,
                fix="check the graph with onnx.checker, or export it with another opset (11 to 24)",
            ) from None  # fmt: skip
    return tracer.program()


def bound(node: NodeProto, opset: int) -> Callable[..., Any]:
    """The operator of a node with its attributes.

    Raises:
        ValueError: it does not take one of them.
    """
    entry = OPERATORS[node.op_type]
    values = attributes_of(node)
    if unknown := values.keys() - entry.attributes:
        raise ValueError(f"attributes {', '.join(sorted(unknown))}")
    further = {"opset": opset, "outputs": len(node.output)}
    values |= {name: value for name, value in further.items() if name in entry.attributes}
    return partial(entry.run, **values) if values else entry.run


class _Tracer:
    def __init__(self, model: ModelProto, probes: Mapping[str, Values]) -> None:
        self.opset, self.graph = opset_of(model), model.graph
        self.images = len(next(iter(probes.values()), ()))
        self.sums = bias_sums(model)
        self.constants = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in model.graph.initializer
            if tensor.name not in probes and not is_hollow(tensor)
        }
        self.values: dict[str, Values] = dict(probes)
        self.numbers: dict[str, int] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.steps: list[Step] = []
        self.forms: dict[LayerId, Form] = {}
        self.inputs = tuple(self._number(name) for name in probes)
        for name, value in probes.items():
            self.shapes[self.numbers[name]] = tuple(value[0].shape)
        self.uses = Counter(name for node in self.graph.node for name in set(node.input))
        self.uses.update(output.name for output in self.graph.output)

    def add(self, node: NodeProto, layer: LayerId | None) -> None:
        if layer is not None:
            weight = next(tensor for tensor in self.graph.initializer if tensor.name == node.input[1])
            shape, add = tuple(self.values[node.input[0]][0].shape), self.sums.get(node.output[0])
            calls = layer_calls(node, tuple(weight.dims), shape, bias=add is not None)
            self._add_layer(node, layer, calls, (add or node).output[0])
        elif node.output[0] not in self.values:  # else it is the bias of a layer
            self._add_operator(node)
        for name in set(node.input):
            self.uses[name] -= 1
            if not self.uses[name]:
                self.values.pop(name, None)

    def program(self) -> Program:
        outputs = tuple(self._number(output.name) for output in self.graph.output)
        for output in self.graph.output:  # an output may be a constant
            self._keep_constant(output.name)
        steps = needed_steps(self.steps, outputs)
        read = {*outputs, *(number for step in steps for number in step.reads)}
        constants = {number: value for number, value in self._constants.items() if number in read}
        forms = {step.layer: self.forms[step.layer] for step in steps if step.layer is not None}
        return Program(
            with_frees(steps, (*outputs, *constants)), constants, len(self.numbers), self.inputs, outputs, self.shapes,
            forms,
        )  # fmt: skip

    @property
    def _constants(self) -> dict[int, Tensor]:
        return {self.numbers[name]: value for name, value in self.constants.items() if name in self.numbers}

    def _number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def _keep_constant(self, name: str) -> None:
        if name in self.constants:
            self._number(name)

    def _add_layer(self, node: NodeProto, layer: LayerId, calls: Sequence[Call], result: str) -> None:
        """Calls follow one another: what is before the layer, the layer, what is after it."""
        name, value = node.input[0], self.values[node.input[0]]
        for number, call in enumerate(calls):
            output = result if number == len(calls) - 1 else f"{node.output[0]}/{number}"
            own = None
            if isinstance(call, LayerForm | MatrixForm):
                module = call.build()
                own, self.forms[layer] = layer, call
                with torch.no_grad():
                    value = list(module(torch.cat(value)).split(len(value[0])))
                run: Callable[..., Any] = _no_run
            else:
                run, value = call, [call(single) for single in value]
            self.steps.append(Step(title(node), node.op_type, run, (self._number(name),), (self._number(output),), own))
            self.values[output] = value
            self.shapes[self.numbers[output]] = tuple(value[0].shape)
            name = output

    def _add_operator(self, node: NodeProto) -> None:
        entry, run = OPERATORS[node.op_type], bound(node, self.opset)
        computed = [slot for slot, name in enumerate(node.input) if name in self.values]
        arguments: list[Any] = []
        for slot, name in enumerate(node.input):
            host = slot in entry.host
            if name in self.constants:
                arguments.append(host_value(self.constants[name]) if host else self.constants[name])
            elif not name or name in self.values:
                arguments.append(None)
            else:
                raise ValueError(f"nothing computes {name!r}")
        if not computed or (node.op_type in _SHAPES and self.images > 1):
            if computed:
                arguments[0] = self.values[node.input[0]][0]
            with torch.device("cpu"), torch.no_grad():
                results = _as_tuple(run(*arguments), len(node.output))
            self.constants.update(zip(filter(None, node.output), (r.contiguous() for r in results), strict=False))
            return
        if node.op_type == "Resize" and 0 in computed:
            run, arguments = _resize_rows(run, arguments, len(self.values[node.input[0]][0]))
        plain = [slot for slot, name in enumerate(node.input) if slot not in entry.host and name]  # tensors at run time
        tensors = sorted({*computed, *plain})
        read_as_numbers = frozenset(slot for slot in computed if slot in entry.host)
        if read_as_numbers or tensors != list(range(len(node.input))):
            template = [None if slot in tensors else value for slot, value in enumerate(arguments)]
            run = partial(_fill, run, template, tuple(tensors), read_as_numbers)
        reads = [node.input[slot] for slot in tensors]
        self._run(node, run, reads)

    def _run(self, node: NodeProto, run: Callable[..., Any], reads: Sequence[str]) -> None:
        count, images = len(node.output), self.images
        batching: Batching = "whole"
        with torch.device("cpu"), torch.no_grad():
            whole = None
            if images > 1 and count == 1 and node.op_type in _EACH_ROW and self._by_rows(reads):
                whole = run(*(torch.cat(self.values[r]) if r in self.values else self.constants[r] for r in reads))
            if whole is not None and len(whole) == images:
                results: list[tuple[Tensor, ...]] = [(part,) for part in whole.chunk(images)]
            else:  # also a Resize that counts the images
                singles = [[self.values[r][i] if r in self.values else self.constants[r] for r in reads]
                           for i in range(images)]  # fmt: skip
                results = [_as_tuple(run(*tensors), count) for tensors in singles]
                shape: tuple[int, ...] = tuple(results[0][0].shape)
                if images > 1 and node.op_type in _RESHAPES and shape and 0 not in shape and singles[0][0].ndim:
                    run, reads = partial(_reshaped, rest=shape[1:]), reads[:1]
                elif images > 1:
                    joined = [torch.cat(self.values[r]) if r in self.values and self.values[r][0].ndim
                              else None if r in self.values else self.constants[r] for r in reads]  # fmt: skip
                    batching = "whole" if _same_as_whole(run, joined, results) else "each"
        names = [name or f"{node.output[0]}/unused {i}" for i, name in enumerate(node.output)]
        for name in reads:
            self._keep_constant(name)
        self.steps.append(
            Step(title(node), node.op_type, run, tuple(self._number(name) for name in reads),
                 tuple(self._number(name) for name in names), None, batching)
        )  # fmt: skip
        for position, name in enumerate(names):
            self.values[name] = [result[position] for result in results]
            self.shapes[self.numbers[name]] = tuple(results[0][position].shape)
            if not self.uses[name]:
                del self.values[name]

    def _by_rows(self, reads: Sequence[str]) -> bool:
        """Whether all computed values have one row for each image, and the constants none of their own."""
        shapes = [self.values[name][0].shape for name in reads if name in self.values]
        ranks = {len(shape) for shape in shapes}
        constants = [self.constants[name].shape for name in reads if name in self.constants]
        rank = max(ranks)
        return (
            len(ranks) == 1
            and all(shape[:1] == (1,) for shape in shapes)
            and all(len(shape) < rank or (len(shape) == rank and shape[0] == 1) for shape in constants)
        )


def needed_steps(steps: Sequence[Step], outputs: Iterable[int]) -> list[Step]:
    """The steps that the outputs hang on."""
    read, found = set(outputs), []
    for step in reversed(steps):
        if not read.isdisjoint(step.writes):
            read.update(step.reads)
            found.append(step)
    return found[::-1]


def with_frees(steps: Sequence[Step], kept: Iterable[int]) -> tuple[Step, ...]:
    """The steps with what each of them is the last to need, but for ``kept``."""
    needed, found = set(kept), []
    for step in reversed(steps):
        found.append(replace(step, frees=tuple({*step.reads, *step.writes} - needed)))
        needed.update(step.reads)
    return tuple(found[::-1])


def _as_tuple(result: Any, count: int) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)[:count]


def _fill(
    run: Callable[..., Any], template: Sequence[Any], slots: tuple[int, ...], host: frozenset[int], *tensors: Tensor
) -> Any:
    """Call an operator whose other arguments are known; those in ``host`` slots are read as numbers."""
    arguments = list(template)
    for slot, tensor in zip(slots, tensors, strict=True):
        arguments[slot] = host_value(tensor) if slot in host else tensor
    return run(*arguments)


def _resize_rows(run: Callable[..., Any], arguments: list[Any], rows: int) -> tuple[Callable[..., Any], list[Any]]:
    """A Resize to sizes that leave the first axis as it is says nothing of that axis any more: it fits any batch."""
    _, roi, _, sizes = (*arguments, None, None, None)[:4]
    given = getattr(run, "keywords", {})
    policy = given.get("keep_aspect_ratio_policy", "stretch")
    if not sizes or sizes[0] != rows or roi or given.get("axes") or policy != "stretch":
        return run, arguments
    return partial(run, axes=range(1, len(sizes))), [*arguments[:3], sizes[1:]]


def _reshaped(x: Tensor, *, rest: tuple[int, ...]) -> Tensor:
    return x.reshape(-1, *rest)


def _no_run(*_: Tensor) -> Tensor:
    raise AssertionError("a layer runs in place of this")


def _same_as_whole(run: Callable[..., Any], joined: Sequence[Tensor | None], results: list[tuple[Tensor, ...]]) -> bool:
    """Whether a step gives for several images at once what it gives for each; where that is nothing, it does not show.

    A suppression that finds nothing in random images may find something in others.
    """
    if any(tensor is None for tensor in joined) or not all(part.numel() for result in results for part in result):
        return False
    try:
        whole = _as_tuple(run(*joined), len(results[0]))
        for position, found in enumerate(whole):
            wanted = torch.cat([result[position] for result in results])
            if found.shape != wanted.shape:
                return False
            if found.is_floating_point():
                size = float(wanted.abs().nan_to_num(0, 0, 0).max()) if wanted.numel() else 0.0
                if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * size, equal_nan=True):
                    return False
            elif not torch.equal(found, wanted):
                return False
    except (RuntimeError, IndexError, ValueError):
        return False
    return True
