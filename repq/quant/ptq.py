"""Post-training quantization in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from repq.distributed import current_processes, failing_together, gathered
from repq.errors import QuantizationError
from repq.layers import LayerId, QuantPlan
from repq.machine.torch_device import network_input
from repq.memory import copied
from repq.model import Detector, counting_macs, layer_ids
from repq.progress import Progress, silent
from repq.quant.calibration import CALIBRATORS, Calibrator, calibrator
from repq.quant.calibration.observation import Groups, Images, Observation, largest_scales, observe, set_scales
from repq.quant.corrections import CORRECTIONS, Correction, Material, asked_for
from repq.quant.rows import int8_macs_share, layer_rows
from repq.quant.state import apply_scales, insert_quantizers, keep_float_values, quantized_layers, scale_table
from repq.recipe import PtqConfig
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
        groups: layers that share the scale of their inputs.
        own_scales: where scales are shared, those that every layer would have had alone.
        trials: what was tried on the way, and what each change gained.
    """

    model: Detector
    plan: QuantPlan
    config: PtqConfig
    layers: tuple[LayerQuantization, ...]
    images: int
    notes: tuple[str, ...]
    groups: Groups = ()
    own_scales: ScaleTable | None = None
    trials: tuple[PtqTrial, ...] = ()

    @property
    def int8_macs_share(self) -> float:
        """Share of the multiply-adds that run in INT8."""
        return int8_macs_share(self.layers)

    @property
    def shared_groups(self) -> int:
        return len(self.groups)


@dataclass(frozen=True)
class Observed:
    """A model with quantizers and what was seen on the calibration images: all that scales can be chosen from.

    Attributes:
        reference: the float model, with the corrections that act before.
        model: the same with quantizers that have no scales yet.
        kept: the images that corrections work on.
        seen: by name of a correction, what it gathered.
        macs: multiply-adds of each layer for one image.
        groups: layers that get one scale for their inputs.
        notes: what the user should know.
        known: what trials share beside; see `Material.once`.
    """

    reference: Detector
    model: Detector
    plan: QuantPlan
    observation: Observation
    kept: tuple[Tensor, ...]
    seen: Mapping[str, Any]
    macs: dict[LayerId, int]
    groups: Groups = ()
    notes: tuple[str, ...] = ()
    progress: Progress = field(default=silent, repr=False)
    known: dict[str, Any] = field(default_factory=dict, repr=False)

    def material(self, config: PtqConfig) -> Material:
        """What corrections work with once the model was observed."""
        return Material(
            self.reference, kept=self.kept, seen=self.seen, seed=config.calibration.seed, progress=self.progress,
            known=self.known,
        )  # fmt: skip


def quantize(
    fused: Detector, batches: Iterable[Images], config: PtqConfig, progress: Progress = silent, *, groups: Groups = ()
) -> QuantizedModel:
    """Quantize every layer that ``config.keep_float`` does not name, calibrated on ``batches``, and correct it.

    The float layers are observed as well, so that their rows show the ranges that they would need.

    Args:
        fused: a fused model; it is not changed.
        batches: network inputs, float32 (B, 3, H, W), all of one size. Corrections that act before go through
            them too, so they must be a list or the like.
        groups: layers that get one scale for their inputs, in the way of ``config.share_scales``.

    Raises:
        QuantizationError: the model is not fused, there are no images, or values are not finite.
        SelectorError: an entry of ``keep_float`` matches no layer.
    """
    return apply(observe_model(fused, batches, config, progress, groups=groups), config)


def observe_model(
    fused: Detector,
    batches: Iterable[Images],
    config: PtqConfig,
    progress: Progress = silent,
    *,
    groups: Groups = (),
    for_all: bool = False,
) -> Observed:
    """The first part of ``quantize``. Arguments, errors: the same.

    Args:
        for_all: gather what any calibrator and any correction that does not act before could need.
    """
    if not fused.deploy:
        raise QuantizationError(
            f"{fused.spec.name} cannot be quantized", found="a model that is not fused", fix="fuse it first"
        )
    layers = layer_ids(fused)
    plan = QuantPlan.keeping_float(layers, config.keep_float)
    possible = CORRECTIONS if for_all else [correction for correction, _ in asked_for(config.correct)]
    wanted = config.correct.images if any(correction.keeps_images for correction in possible) else 0
    model = insert_quantizers(fused, plan, config).eval()
    seen = _observe(model, layers, batches, config, progress, possible, for_all, keep=wanted)
    observed = Observed(
        fused, model, plan, seen.observation, seen.kept, seen.by_corrections, seen.macs, groups, progress=progress
    )
    return observe_corrected(observed, batches, config, for_all=for_all)


def observe_corrected(
    plain: Observed, batches: Iterable[Images], config: PtqConfig, *, for_all: bool = False
) -> Observed:
    """What is seen of a model once the corrections that act before have acted, from what was seen without them.

    Layers whose inputs these leave alone are not observed anew: what they receive differs by how float32 rounds.

    Args:
        plain: with what these corrections gathered.
        batches: as for `observe_model`; they are gone through once, and where the corrections do it themselves.
    """
    before = asked_for(config.correct, "before")
    if not before:
        return plain
    fused, progress, layers = plain.reference, plain.progress, layer_ids(plain.reference)
    reference, notes, anew = copied(fused), list[str | None](plain.notes), set[LayerId]()
    for number, (correction, value) in enumerate(before):
        changed = correction.changed_inputs(reference)
        images, seen = on_device_of(fused, batches), plain.seen if number == 0 else {}
        notes.append(correction.act(reference, value, Material(fused, images=images, seen=seen, progress=progress)))
        anew.update(layers if changed is None else changed)
    model = insert_quantizers(reference, plain.plan, config).eval()
    possible = [entry for entry in CORRECTIONS if entry.name in plain.seen and entry.when != "before"]
    again = [layer for layer in layers if layer in anew]
    found = _observe(model, again, batches, config, progress, possible, for_all)
    said = tuple(note for note in notes if note)
    return replace(
        plain, reference=reference, model=model, observation=plain.observation.updated(found.observation),
        seen=found.by_corrections, notes=said, known={},
    )  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """What one pass over the images showed; the parts are as in `Observed`."""

    observation: Observation
    by_corrections: dict[str, Any]
    macs: dict[LayerId, int]
    kept: tuple[Tensor, ...] = ()


def _observe(
    model: Detector,
    layers: Sequence[LayerId],
    batches: Iterable[Images],
    config: PtqConfig,
    progress: Progress,
    possible: Sequence[Correction],
    for_all: bool,
    *,
    keep: int = 0,
) -> _Seen:
    """Observe ``layers``, let corrections gather what they need of all of them, and keep the first ``keep`` images.

    Processes that share their work run the batches that ``batches.share()`` gives them, where there is such a method
    and everything that is gathered can be merged. All get what one process would have seen, to the bit.
    """
    calibrators = CALIBRATORS if for_all else [calibrator(config.calibration.method)]

    def look(batches: Iterable[Images]) -> _Seen:
        kept: list[Tensor] = []
        with ExitStack() as stack:
            seen = {entry.name: stack.enter_context(entry.watching(model, layer_ids(model))) for entry in possible}
            macs = stack.enter_context(counting_macs(model))
            observation = observe(
                model, layers, _keeping(on_device_of(model, batches), kept, keep), bins=config.calibration.bins,
                calibrators=calibrators, progress=progress,
            )  # fmt: skip
        return _Seen(observation, seen, macs, tuple(kept))

    mergeable = all(entry.merges for entry in possible) and not any(map(_observes_itself, calibrators))
    if current_processes().count == 1 or not (mergeable and hasattr(batches, "share")):
        return look(batches)
    with failing_together():
        own = batches.share()
        found = None if own is None else replace(look(own), kept=())
    parts = [part for part in gathered(found) if part is not None]
    return _Seen(
        Observation.merged([part.observation for part in parts]),
        {entry.name: entry.merged([part.by_corrections[entry.name] for part in parts]) for entry in possible},
        parts[0].macs,
        tuple(first_images(on_device_of(model, batches), keep)) if keep else (),
    )


def _observes_itself(entry: Calibrator) -> bool:
    return type(entry).observer is not Calibrator.observer


def apply(observed: Observed, config: PtqConfig, *, rows: bool = True) -> QuantizedModel:
    """The second part of ``quantize``: choose scales, and correct. ``observed`` can be used again.

    Args:
        rows: whether the result has its rows; else `with_rows` adds them, to one that nothing was corrected in after.
    """
    model, notes, own_scales = copied(observed.model), list[str | None](observed.notes), None
    notes += set_scales(model, observed.observation, config.calibration)
    if observed.groups:
        own_scales = scale_table(model)
        if config.share_scales == "joint":
            set_scales(model, observed.observation.joint(observed.groups), config.calibration)
        else:
            apply_scales(model, largest_scales(own_scales, observed.groups))
    material = observed.material(config)
    notes += [correction.act(model, value, material) for correction, value in asked_for(config.correct, "scales")]
    after = asked_for(config.correct, "after")
    made = layer_rows(model, observed.observation, observed.macs) if rows or after else ()
    for correction, value in after:
        keep_float_values(model)
        notes.append(correction.act(model, value, material))
    said = tuple(note for note in notes if note)
    groups = _sharing(model, observed.groups)
    return QuantizedModel(model, observed.plan, config, made, observed.observation.images, said, groups, own_scales)


def _sharing(model: Detector, groups: Groups) -> Groups:
    """What is left of groups where corrections gave layers a scale for every channel: those share none."""
    scales = {name: layer.input_quantizer.get_scale() for name, layer in quantized_layers(model).items()}
    single = {name for name, scale in scales.items() if scale is not None and scale.axis is None}
    kept = ([name for name in group if name in single] for group in groups)
    return tuple(tuple(group) for group in kept if len(group) > 1)


def with_rows(outcome: QuantizedModel, observed: Observed) -> QuantizedModel:
    """What `apply` gives with its rows, from what it gave without them."""
    if outcome.layers:
        return outcome
    return replace(outcome, layers=layer_rows(outcome.model, observed.observation, observed.macs))


def add_last(outcome: QuantizedModel, observed: Observed, config: PtqConfig, correction: Correction) -> QuantizedModel:
    """What `apply` gives with ``config``, from the outcome without this correction, the last that acts."""
    model = copied(outcome.model)
    keep_float_values(model)
    note = correction.act(model, correction.value(config.correct), observed.material(config))
    return replace(outcome, model=model, config=config, notes=(*outcome.notes, *([note] if note else [])))


def on_device_of(model: Detector, batches: Iterable[Images]) -> Iterator[Tensor]:
    """The batches as inputs of the model, where it is."""
    device = next(model.parameters()).device
    for images in batches:
        yield network_input(images, device)


def first_images(batches: Iterable[Tensor], count: int) -> list[Tensor]:
    """The first ``count`` images."""
    kept: list[Tensor] = []
    for images in batches:
        kept.append(images[: count - sum(map(len, kept))])
        if sum(map(len, kept)) == count:
            break
    return kept


def _keeping(batches: Iterable[Tensor], kept: list[Tensor], wanted: int) -> Iterator[Tensor]:
    """Pass the batches on and keep the first ``wanted`` images."""
    missing = wanted
    for images in batches:
        if missing > 0:
            kept.append(images[:missing])
            missing -= len(kept[-1])
        yield images
