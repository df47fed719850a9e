"""Post-training quantization in one call."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from repq.errors import QuantizationError
from repq.layers import LayerId, QuantPlan
from repq.model import Detector, count_macs, layer_ids
from repq.progress import Progress, silent
from repq.quant.calibration import Observation, joint_observation, largest_scales, observe, set_scales
from repq.quant.calibration.channels import ChannelRange, set_channel_scales, watching_channels
from repq.quant.calibration.observe import Images
from repq.quant.corrections import adapt_rounding, correct_outputs, equalize, find_chains, split_layers
from repq.quant.insertion import insert_quantizers
from repq.quant.rows import int8_macs_share, layer_rows
from repq.quant.state import apply_scales, keep_float_values, scale_table
from repq.recipe import CorrectionConfig, PtqConfig
from repq.results import LayerQuantization, PtqTrial
from repq.scales import ScaleTable


@dataclass(frozen=True)
class QuantizedModel:
    """A calibrated model and what is known about it.

    Attributes:
        model: the detector with fake quantization, ready to run; ``quantizing`` runs layers of it in float.
        plan: which layers quantize.
        config: the settings that it was made with, as they were chosen if the choice was left to the tool.
        layers: one row per layer of the model; the weights' SNR is that of rounding to nearest.
        images: number of calibration images.
        notes: what the user should know.
        own_scales: where scales are shared, those that every layer would have had alone.
        shared_groups: groups of layers that share the scale of their inputs.
        trials: what was tried on the way, and what each step gained.
    """

    model: Detector
    plan: QuantPlan
    config: PtqConfig
    layers: tuple[LayerQuantization, ...]
    images: int
    notes: tuple[str, ...]
    own_scales: ScaleTable | None = None
    shared_groups: int = 0
    trials: tuple[PtqTrial, ...] = ()

    @property
    def int8_macs_share(self) -> float:
        """Share of the multiply-adds that run in INT8."""
        return int8_macs_share(self.layers)


@dataclass(frozen=True)
class Observed:
    """A model with quantizers and what was seen on the calibration images: all that scales can be chosen from.

    Attributes:
        reference: the float model, equalized if that was asked for.
        model: the same with quantizers that have no scales yet.
        kept: the images that corrections work on.
        macs: multiply-adds of each layer for one image.
        groups: layers that get one scale for their inputs.
        notes: what the user should know.
    """

    reference: Detector
    model: Detector
    plan: QuantPlan
    observation: Observation
    channels: dict[LayerId, ChannelRange]
    kept: tuple[Tensor, ...]
    macs: dict[LayerId, int]
    groups: Sequence[Sequence[LayerId]] = ()
    notes: tuple[str, ...] = ()


def quantize(
    fused: Detector,
    batches: Iterable[Images],
    config: PtqConfig,
    progress: Progress = silent,
    *,
    groups: Sequence[Sequence[LayerId]] = (),
) -> QuantizedModel:
    """Quantize every layer that ``config.keep_float`` does not name, calibrated on ``batches``, and correct it.

    The float layers are observed as well, so that their rows show the ranges that they would need.

    Args:
        fused: a fused model; it is not changed.
        batches: network inputs, float32 (B, 3, H, W) in 0..1, all of one size. To equalize, they are gone through
            twice, so they must be a list or the like.
        groups: layers that get one scale for their inputs, in the way of ``config.share_scales``.

    Raises:
        QuantizationError: the model is not fused, there are no images, or values are not finite.
        SelectorError: an entry of ``keep_float`` matches no layer.
    """
    observed = observe_model(fused, batches, config, progress, groups=groups)
    return correct_model(choose_scales(observed, config, progress), observed, config)


def observe_model(
    fused: Detector,
    batches: Iterable[Images],
    config: PtqConfig,
    progress: Progress = silent,
    *,
    groups: Sequence[Sequence[LayerId]] = (),
) -> Observed:
    """The first part of ``quantize``, which does not depend on the calibration method. Arguments, errors: the same."""
    if not fused.deploy:
        raise QuantizationError(
            f"{fused.spec.name} cannot be quantized", found="a model that is not fused", fix="fuse it first"
        )
    layers = layer_ids(fused)
    plan = QuantPlan.keeping_float(layers, config.keep_float)
    reference, notes = fused, tuple[str, ...]()
    if config.correct.equalize:
        reference, chains = copy.deepcopy(fused), find_chains(fused)
        equalize(reference, chains, on_device_of(fused, batches))
        notes = (chains.summary(),)
    model = insert_quantizers(reference, plan, config).eval()
    kept: list[Tensor] = []
    wanted = config.correct.images if _needs_images(config.correct) else 0
    with watching_channels(model, layers) as channels:
        loaded = _keeping(on_device_of(fused, batches), kept, wanted)
        observation = observe(model, layers, loaded, bins=config.calibration.bins, progress=progress)
    macs = count_macs(fused, observation.input_size)
    return Observed(reference, model, plan, observation, channels, tuple(kept), macs, groups, notes)


def choose_scales(observed: Observed, config: PtqConfig, progress: Progress = silent) -> QuantizedModel:
    """The second part, up to the integers of the weights. ``observed`` can be used again with other settings."""
    model, correct = copy.deepcopy(observed.model), config.correct
    notes = observed.notes + set_scales(model, observed.observation, config.calibration)
    own_scales = None
    if observed.groups:
        own_scales = scale_table(model)
        if config.share_scales == "joint":
            set_scales(model, joint_observation(observed.observation, observed.groups), config.calibration)
        else:
            apply_scales(model, largest_scales(own_scales, observed.groups))
    if correct.channel_inputs:
        set_channel_scales(model, observed.channels)
    if correct.split_below_db is not None:
        split = split_layers(model, correct.split_below_db)
        notes += (f"{len(split)} layers run as two convolutions: {', '.join(split) or 'none'}",)
    rows = layer_rows(model, observed.observation, observed.macs)
    if correct.rounding == "adaptive":
        keep_float_values(model)
        adapt_rounding(model, observed.kept, seed=config.calibration.seed, progress=progress)
    return QuantizedModel(
        model, observed.plan, config, rows, observed.observation.images, notes, own_scales, len(observed.groups)
    )


def correct_model(outcome: QuantizedModel, observed: Observed, config: PtqConfig) -> QuantizedModel:
    """The third part: the outputs of the layers. ``outcome`` is not changed."""
    what = config.correct.outputs
    if what == "as_they_are":
        return outcome
    model = copy.deepcopy(outcome.model)
    keep_float_values(model)
    correct_outputs(model, observed.reference, torch.cat(observed.kept), what)
    return replace(outcome, model=model, config=config)


def _needs_images(correct: CorrectionConfig) -> bool:
    return correct.rounding != "nearest" or correct.outputs != "as_they_are"


def on_device_of(model: Detector, batches: Iterable[Images]) -> Iterator[Tensor]:
    """The batches as float32 tensors where the model is."""
    device = next(model.parameters()).device
    for images in batches:
        yield torch.as_tensor(images, dtype=torch.float32, device=device)


def _keeping(batches: Iterable[Tensor], kept: list[Tensor], wanted: int) -> Iterator[Tensor]:
    """Pass the batches on and keep the first ``wanted`` images."""
    missing = wanted
    for images in batches:
        if missing > 0:
            kept.append(images[:missing])
            missing -= len(kept[-1])
        yield images
