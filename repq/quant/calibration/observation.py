"""Run a model on calibration images, gather what every layer receives, and set scales from it.

Layers whose inputs must share one scale get it in either of two ways. *Largest*: every tensor gets the scale that is
best for it alone, and the group the one that covers them all; nothing is cut off that was inside a range, and tensors
with smaller values are rounded more coarsely. *Joint*: the calibrator sees the values of all tensors as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from repq.concurrency import Behind
from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.machine.torch_device import network_input
from repq.machine.torch_threads import torch_threads
from repq.model.weighted import channel_axis, is_layer, other_axes
from repq.progress import Progress, silent
from repq.quant.calibration import Calibrator, Observer, calibrator
from repq.quant.calibration.histogram import Histogram
from repq.quant.convolution import weight_scale_of
from repq.quant.scaling import Scheme, asymmetric_scale, range_scale
from repq.quant.state import apply_scales, quantized_layers, quantizing
from repq.quant.values import is_channels_last
from repq.recipe import CalibrationConfig
from repq.results import Range
from repq.scales import LayerScales, ScaleTable, TensorScale

Images = NDArray[np.float32] | Tensor
"""A batch of network inputs, float32 (B, 3, H, W)."""

Groups = Sequence[Sequence[LayerId]]
"""Layers whose inputs must share a scale (``repq.graph.layer_groups``); disjoint."""

WAITING = 4
"""Activations that may wait to be added to what was seen."""

_BEHIND: ContextVar[Behind | None] = ContextVar("the thread that adds what watched layers receive", default=None)


@dataclass(frozen=True)
class Observation:
    """What the layers received.

    Attributes:
        histograms: of each layer's input.
        images: how many there were.
        further: by name of a calibrator with observers of its own, those of each layer's input.
        chosen: the ranges that `range_of` has found: trials ask for the same ones.
    """

    histograms: Mapping[LayerId, Histogram]
    images: int
    further: Mapping[str, Mapping[LayerId, Observer]] = field(default_factory=dict)
    chosen: dict[Any, Range] = field(default_factory=dict, init=False, repr=False, compare=False)

    def range_of(self, layer: LayerId, scheme: Scheme, config: CalibrationConfig) -> Range:
        """The range that the method of ``config`` chooses for the layer's input."""
        key = layer, scheme, config
        if key not in self.chosen:
            entry = calibrator(config.method)
            self.chosen[key] = entry.range(self.seen_by(entry.name)[layer], scheme, config)
        return self.chosen[key]

    def seen_by(self, name: str) -> Mapping[LayerId, Any]:
        """What the calibrator of this name looks at, by layer."""
        return self.further.get(name, self.histograms)

    def updated(self, newer: Observation) -> Observation:
        """This observation with the layers of another one in place of what was seen of them here."""
        further = {name: {**seen, **newer.further.get(name, {})} for name, seen in self.further.items()}
        return replace(self, histograms={**self.histograms, **newer.histograms}, further=further)

    @classmethod
    def merged(cls, parts: Sequence[Observation]) -> Observation:
        """What one observer of all images saw, from what those of shares did; of histograms alone."""
        layers = parts[0].histograms
        histograms = {
            layer: Histogram.merged([part.histograms[layer] for part in parts], seen.name)
            for layer, seen in layers.items()
        }
        return cls(histograms, sum(part.images for part in parts))

    def joint(self, groups: Groups) -> Observation:
        """The observation in which every layer of a group has received what all of the group did."""
        further = {name: _joined(seen, groups) for name, seen in self.further.items()}
        return replace(self, histograms=_joined(self.histograms, groups), further=further)


def _joined(seen: Mapping[LayerId, Any], groups: Groups) -> dict[LayerId, Any]:
    joined = dict(seen)
    for group in groups:
        joined.update(dict.fromkeys(group, type(seen[group[0]]).joint([seen[layer] for layer in group])))
    return joined


@dataclass(frozen=True)
class Calibration:
    """What was seen, and what the user should know about it."""

    observation: Observation
    notes: tuple[str, ...]


def observe(
    model: nn.Module,
    layers: Sequence[LayerId],
    batches: Iterable[Images],
    *,
    bins: int = 2048,
    calibrators: Sequence[Calibrator] = (),
    progress: Progress = silent,
) -> Observation:
    """Gather what ``layers`` receive while ``model`` runs in float and in eval mode.

    Memory is one histogram of ``2 bins + 1`` counts per layer, whatever the number of images.

    Args:
        calibrators: those that a range may be chosen by; the ones with observers of their own get them.

    Raises:
        QuantizationError: no images, or an activation that is not finite; the message names the first such layer.
    """
    names = {layer: f"the input of {layer}" for layer in layers}
    histograms = {layer: Histogram(name, bins) for layer, name in names.items()}
    further: dict[str, dict[LayerId, Observer]] = {}
    for entry in calibrators:
        own = {layer: entry.observer(name, bins) for layer, name in names.items()}
        if None not in own.values():
            further[entry.name] = own  # type: ignore[assignment]
    images = 0
    training = model.training
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.enter_context(torch.no_grad())
        stack.enter_context(quantizing(model.eval(), ()))
        everything: list[Mapping[LayerId, Observer]] = [histograms, *further.values()]
        for layer, observer in ((layer, seen[layer]) for seen in everything for layer in layers):
            stack.enter_context(watch(model.get_submodule(layer), observer))
        device = next(model.parameters()).device
        stack.enter_context(_adding_behind(device))
        for batch in progress(batches, label="calibrate"):
            inputs = network_input(batch, device)
            model(inputs)
            images += len(inputs)
    if not images:
        raise QuantizationError(
            "there is nothing to calibrate on", found="no images", fix="give at least one calibration image"
        )
    return Observation(histograms, images, further)


@contextmanager
def _adding_behind(device: torch.device) -> Iterator[None]:
    """Let what `watch` sees in the block be added by a thread of its own, in order, while the model goes on.

    The model and the thread have half of torch's threads each. On a GPU nothing would be won.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    half = threads // 2
    with torch_threads(threads - half), Behind(WAITING, partial(torch.set_num_threads, half)) as behind:
        token = _BEHIND.set(behind)
        try:
            yield
        finally:
            _BEHIND.reset(token)


def watch(module: nn.Module, seen: Any) -> RemovableHandle:
    """Add all inputs of ``module`` to ``seen`` until the handle is removed (or its ``with`` block ends)."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        behind = _BEHIND.get()
        if behind is None:
            seen.add(inputs[0])
        else:
            behind.do(partial(seen.add, inputs[0]), seen)

    return module.register_forward_pre_hook(hook)


class ChannelRange:
    """The smallest and the largest value of each channel, over all images seen.

    Args:
        axis: along which the channels lie.
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Take in activations, such as (B, C, H, W)."""
        values, others = values.detach(), other_axes(values.ndim, self.axis)
        if self.axis == 1 and is_channels_last(values):  # along whole rows first, which is ten times as fast
            rows = values.permute(0, 2, 3, 1).flatten(0, 1)
            low, high = rows.amin(0).amin(0), rows.amax(0).amax(0)
        else:
            low, high = values.amin(others), values.amax(others)
        self._extend(low, high)

    @classmethod
    def merged(cls, parts: Sequence[ChannelRange]) -> ChannelRange:
        """The ranges over the images of all parts."""
        result = cls(parts[0].axis)
        for part in parts:
            if part.low is not None and part.high is not None:
                result._extend(part.low, part.high)
        return result

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which may not have the device."""
        return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in self.__dict__.items()}

    def _extend(self, low: Tensor, high: Tensor) -> None:
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def magnitudes(self) -> Tensor:
        """The largest magnitude of each channel, (C,)."""
        assert self.low is not None and self.high is not None, "something was added"
        return torch.maximum(-self.low, self.high)

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both ends, (C,) each."""
        assert self.low is not None and self.high is not None, "something was added"
        return self.low.float().cpu().numpy(), self.high.float().cpu().numpy()


@torch.no_grad()
def channel_ranges(
    model: nn.Module, layers: Iterable[LayerId], batches: Iterable[Tensor]
) -> dict[LayerId, ChannelRange]:
    """The ranges per channel of what ``layers`` receive, the model as it is."""
    with watching_ranges(model, layers) as ranges, _adding_behind(next(model.parameters()).device):
        for images in batches:
            model(images)
    return ranges


def merged_ranges(parts: Sequence[Mapping[LayerId, ChannelRange]]) -> dict[LayerId, ChannelRange]:
    """The ranges over all images, from those of shares of them."""
    return {layer: ChannelRange.merged([part[layer] for part in parts]) for layer in parts[0]}


@contextmanager
def watching_ranges(model: nn.Module, layers: Iterable[LayerId]) -> Iterator[dict[LayerId, ChannelRange]]:
    """Within the block, gather the ranges per channel of what ``layers`` receive."""
    ranges: dict[LayerId, ChannelRange] = {}
    with ExitStack() as stack:
        for layer in layers:
            module = model.get_submodule(layer)
            assert is_layer(module)
            ranges[layer] = ChannelRange(channel_axis(module))
            stack.enter_context(watch(module, ranges[layer]))
        yield ranges


def calibrate(
    model: nn.Module, batches: Iterable[Images], config: CalibrationConfig, progress: Progress = silent
) -> Calibration:
    """Set the scales of all quantized layers of ``model``, in place.

    Raises:
        QuantizationError: no images, no quantized layers, or values that are not finite.
    """
    layers = tuple(quantized_layers(model))
    if not layers:
        raise QuantizationError(
            "there is nothing to calibrate", found="a model without quantizers", fix="insert quantizers first"
        )
    chosen = [calibrator(config.method)]
    observation = observe(model, layers, batches, bins=config.bins, calibrators=chosen, progress=progress)
    return Calibration(observation, set_scales(model, observation, config))


def set_scales(model: nn.Module, observation: Observation, config: CalibrationConfig) -> tuple[str, ...]:
    """Choose the scales of all quantized layers from an observation of them and set them, in place.

    Returns notes on layers whose input was always zero.

    Raises:
        QuantizationError: a quantized layer was not observed, or a weight is not finite.
    """
    table: dict[LayerId, LayerScales] = {}
    notes: list[str] = []
    for name, layer in quantized_layers(model).items():
        histogram = observation.histograms.get(name)
        if histogram is None or not histogram.total:
            raise QuantizationError(f"{name} was not observed", fix="observe every layer that is to be quantized")
        weight = layer.weight.detach().float().cpu().numpy()
        if not np.isfinite(weight).all():
            raise QuantizationError(
                f"the weight of {name} is not finite",
                found=f"{int((~np.isfinite(weight)).sum())} of {weight.size} values are NaN or infinite",
                fix="start from another checkpoint",
            )
        if histogram.largest_magnitude == 0:
            notes.append(f"{name}: its input was zero on all calibration images; its scale is that of the range -1..1")
        low, high = observation.range_of(name, layer.scheme, config)
        table[name] = LayerScales(
            input=range_scale(low, high, layer.scheme), weight=weight_scale_of(layer, layer.weight)
        )
    apply_scales(model, table)
    return tuple(notes)


def largest_scales(scales: Mapping[LayerId, LayerScales], groups: Groups) -> ScaleTable:
    """The scales with the input scale of every layer of a group replaced by one that covers the group's."""
    result = dict(scales)
    for group in groups:
        shared = _covering([scales[layer].input for layer in group])
        result.update({layer: replace(scales[layer], input=shared) for layer in group})
    return result


def _covering(several: Sequence[TensorScale]) -> TensorScale:
    if all(scale.dtype == "int8" for scale in several):
        return max(several, key=lambda scale: float(scale.scale))
    lows = [(scale.q_min - int(scale.zero_point)) * float(scale.scale) for scale in several]
    highs = [(scale.q_max - int(scale.zero_point)) * float(scale.scale) for scale in several]
    return asymmetric_scale(min(lows), max(highs))
