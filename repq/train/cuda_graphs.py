"""A detector's answers in training form; on a GPU with one launch for all kernels of a pass.

A small network is computed faster than a CPU can launch its kernels one by one, in training above all, where a step
has thousands. A CUDA graph launches those of a whole pass at once: one is recorded of the forward pass, one of the
backward pass, for every shape of the input. They hold the very same kernels, so nothing else changes.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from repq.model import Detector, TrainOutput
from repq.train.compiled import compiled_answer

MOST_GRAPHS = 24
"""Shapes of the input that get graphs; further ones are launched kernel by kernel."""
_SEEN_BEFORE = 2
"""Passes of a shape before one is recorded."""
_WARM_UP = 2
"""Passes in which libraries choose their kernels and take memory, which no recording may do."""

_OWN_THREAD = "thread_local"
"""Other threads may take memory of the GPU meanwhile."""

Tensors = tuple[Tensor, ...]


class Answers:
    """Calls ``model.answer(model.features(pixels))``; the result is good until the next call.

    Gradients are added to what parameters hold already, as by any backward pass. Where graphs are used, a gradient of
    None counts as zeros, so parameters have to be set to zero between updates, not to None.

    Args:
        model: in place on its device.
        graphs: whether a GPU may be given graphs; a CPU gets none.
        frozen: the model gets no gradients.
        compiled: let torch compile the passes (`repq.train.compiled`), and record no graphs.
    """

    def __init__(
        self,
        model: Detector,
        device: torch.device,
        *,
        graphs: bool = True,
        frozen: bool = False,
        compiled: bool = False,
    ) -> None:
        self.model, self.frozen = model, frozen
        self.graphs = graphs and device.type == "cuda" and not compiled
        self._compiled = compiled_answer(model) if compiled else None
        self._recorded: dict[tuple[object, ...], _Pass] = {}
        self._seen: dict[tuple[object, ...], int] = {}

    def __call__(self, pixels: Tensor) -> TrainOutput:
        if not self.graphs:
            return self._launched(pixels)
        key = (pixels.shape, pixels.stride(), self.model.training, torch.is_autocast_enabled("cuda"))
        if key not in self._recorded:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= _SEEN_BEFORE or len(self._recorded) == MOST_GRAPHS:
                return self._launched(pixels)
            try:
                with torch.cuda.device(pixels.device):
                    self._recorded[key] = (_Frozen if self.frozen else _Trained)(self.model, pixels)
            except RuntimeError:  # an operation that waits for the device cannot be recorded
                torch.cuda.synchronize()
                self.graphs = False
                return self._launched(pixels)
        return self._recorded[key](pixels)

    def _launched(self, pixels: Tensor) -> TrainOutput:
        """Kernel by kernel."""
        if self._compiled is not None:
            return self._compiled(pixels)
        return self.model.answer(self.model.features(pixels))


class _Pass:
    """Recorded passes for one shape of the input."""

    def __init__(self, model: Detector, pixels: Tensor) -> None:
        self.pixels = torch.empty_like(pixels).copy_(pixels)
        self.forms: list[bool] = []
        self.maps = 0

    def compute(self, model: Detector) -> list[Tensor]:
        output = model.answer(model.features(self.pixels))
        self.maps = len(output.features)
        parts = [*output.features, output.scores, output.distances, output.raw]
        self.forms = [part is not None for part in parts]
        return [part for part in parts if part is not None]

    def output(self, tensors: Sequence[Tensor]) -> TrainOutput:
        values = iter(tensors)
        parts = [next(values) if present else None for present in self.forms]
        scores, distances, raw = parts[self.maps :]
        assert scores is not None and distances is not None
        return TrainOutput(tuple(part for part in parts[: self.maps] if part is not None), scores, distances, raw)

    def __call__(self, pixels: Tensor) -> TrainOutput:
        raise NotImplementedError


class _Frozen(_Pass):
    """The forward pass of a model that does not learn."""

    @torch.no_grad()
    def __init__(self, model: Detector, pixels: Tensor) -> None:
        super().__init__(model, pixels)
        with _beside():
            for _ in range(_WARM_UP):
                self.compute(model)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode=_OWN_THREAD):
            self.tensors = self.compute(model)

    def __call__(self, pixels: Tensor) -> TrainOutput:
        self.pixels.copy_(pixels)
        self.graph.replay()
        return self.output(self.tensors)


class _Trained(_Pass):
    """The forward pass of a model, and the backward pass, which adds to the gradients of its parameters."""

    def __init__(self, model: Detector, pixels: Tensor) -> None:
        super().__init__(model, pixels)
        with _as_before(model, [parameter for parameter in model.parameters() if parameter.requires_grad]):
            with _beside():
                for _ in range(_WARM_UP):
                    outputs = [tensor for tensor in self.compute(model) if tensor.requires_grad]
                    torch.autograd.backward(outputs, [torch.zeros_like(tensor) for tensor in outputs])
                    del outputs
            self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.forward, capture_error_mode=_OWN_THREAD):
                self.tensors = self.compute(model)
            learning = [tensor for tensor in self.tensors if tensor.requires_grad]
            self.slopes = [torch.zeros_like(tensor) for tensor in learning]
            with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode=_OWN_THREAD):
                torch.autograd.backward(learning, self.slopes)
            self.learn = [tensor.requires_grad for tensor in self.tensors]
            self.tensors = [tensor.detach() for tensor in self.tensors]
        self.anchor = torch.zeros((), device=pixels.device, requires_grad=True)

    def __call__(self, pixels: Tensor) -> TrainOutput:
        found: Tensors = _Replay.apply(self.anchor, pixels, self)
        return self.output(found)


class _Replay(torch.autograd.Function):
    """Recorded passes as one operation. ``anchor`` stands for all parameters, whose gradients the graph adds to."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, pixels: Tensor, recorded: _Trained) -> Tensors:
        ctx.recorded = recorded
        recorded.pixels.copy_(pixels)
        recorded.forward.replay()
        found = tuple(tensor.detach() for tensor in recorded.tensors)
        ctx.mark_non_differentiable(*(t for t, learns in zip(found, recorded.learn, strict=True) if not learns))
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None]:
        recorded: _Trained = ctx.recorded
        given = [gradient for gradient, learns in zip(gradients, recorded.learn, strict=True) if learns]
        for slope, gradient in zip(recorded.slopes, given, strict=True):
            slope.zero_() if gradient is None else slope.copy_(gradient)
        recorded.backward.replay()
        return None, None, None


@contextmanager
def _beside() -> Iterator[None]:
    """Work on a stream of its own, as a recording needs it: the usual one cannot be recorded."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def _as_before(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Leave buffers and gradients as they were, though passes have changed them.

    Gradients keep their places in memory. Parameters that got none before, and get some inside, are left with zeros.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad.zero_() if gradient is None else parameter.grad.copy_(gradient)
