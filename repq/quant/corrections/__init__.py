"""What can be done to a model beside choosing ranges, so that INT8 costs it less.

`CORRECTIONS` lists the ways, in the order in which they act and in which ``--auto`` tries them. One that is appended
gets a setting, an option of `repq ptq`, trials in ``--auto`` and `repq diagnose`, and its place in reports. None of
them changes the layers of a model or their paths.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import create_model

from repq.layers import LayerId
from repq.progress import Progress, silent
from repq.recipe.base import Decibels, setting

if TYPE_CHECKING:
    from torch import Tensor, nn

    from repq.model import Detector
    from repq.recipe import CorrectionConfig

T = TypeVar("T")

When = Literal["before", "scales", "after"]
"""A correction acts on the float model before it is observed, on scales once they are chosen, or after that on weights
and biases. Of layers that run in float for a while the weights from before are taken."""

Symptom = Literal["its channels differ"]


@dataclass(frozen=True)
class Material:
    """What corrections work with.

    Attributes:
        reference: the float model, with what acted before.
        images: the calibration images, network inputs (B, 3, H, W) on the model's device.
        kept: the first of them, held in memory, for corrections with ``keeps_images``.
        seen: by name of a correction what it gathered while the float model was observed; of those that act before,
            the first alone has it, for the others another model was observed.
        seed: of everything random.
        known: what `once` has computed.
    """

    reference: Detector
    images: Iterable[Tensor] = ()
    kept: Sequence[Tensor] = ()
    seen: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    progress: Progress = silent
    known: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """What ``compute`` gives, computed by the first trial that asks for it.

        Args:
            name: of the correction. It must hang on the float model and the images alone, not on the settings.
        """
        if name not in self.known:
            self.known[name] = compute()
        value: T = self.known[name]
        return value


class Correction:
    """One way to lose less.

    Attributes:
        name: its field in the settings.
        title: what tables and messages call it.
        field: type and `repq.recipe.base.setting` of its value; the default is to leave the model as it is.
        when: see `When`.
        cost: what it costs in the engine; empty: nothing, and a smaller gain is enough for ``--auto``.
        tries: values that ``--auto`` tries in this order, until one gains enough.
        inputs_alone: whether it changes how inputs are quantized, and nothing else. ``--auto`` tries it with every
            calibration method, since another one may be best with it, and judges it with weights in float.
        diagnosed: the value that `diagnose` tries, beside those of the others; None: it is left out.
        keeps_images: whether it works on images that are held in memory.
        by_layer: whether what it does to a layer serves that layer whichever others run in INT8. Else it makes up for
            what they do, and misleads where some of them run in float for a while.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    field: ClassVar[tuple[Any, Any]]
    when: ClassVar[When] = "after"
    cost: ClassVar[str] = ""
    tries: ClassVar[tuple[Any, ...]] = ()
    inputs_alone: ClassVar[bool] = False
    diagnosed: ClassVar[Any] = None
    keeps_images: ClassVar[bool] = False
    by_layer: ClassVar[bool] = True

    def value(self, config: CorrectionConfig) -> Any:
        """What the settings ask of it; None: nothing."""
        value = getattr(config, self.name, self.field[1].default)
        return None if value == self.field[1].default else value

    def titled(self, value: Any) -> str:
        """The title with this value."""
        return self.title

    def applies(self, fused: Detector, quantized: nn.Module) -> bool:
        """Whether ``--auto`` tries it on a model.

        Args:
            fused: the float model.
            quantized: the same, calibrated without corrections.
        """
        return True

    def watching(self, model: nn.Module, layers: Sequence[LayerId]) -> AbstractContextManager[Any]:
        """Gather, as long as the block runs, what `act` needs to have seen of the float model on all images.

        The model must not be run to find out what to watch: others watch it too.
        """
        return nullcontext()

    def merged(self, parts: Sequence[Any]) -> Any:
        """What `watching` would have gathered on all images, from what it did in processes that had some of them each.

        Where something is gathered that no correction has said how to merge, every process runs all images.
        """
        return None

    @property
    def merges(self) -> bool:
        """Whether shares of the images are enough for it."""
        kind = type(self)
        return kind.watching is Correction.watching or kind.merged is not Correction.merged

    def changed_inputs(self, model: Detector) -> Collection[LayerId] | None:
        """If it acts before: the layers whose inputs it changes by more than float32 rounds; None: it may be all."""
        return None

    def act(self, model: Detector, value: Any, material: Material) -> str | None:
        """Correct the model in place; return what the user should know."""
        raise NotImplementedError

    def remedy(self, symptom: Symptom, depthwise: bool) -> str | None:
        """What `diagnose` advises for a layer with this symptom."""
        return None


class ChannelInputs(Correction):
    name, title, when, inputs_alone = "channel_inputs", "channel inputs", "scales", True
    field = (
        bool,
        setting(
            False,
            flag="--channel-inputs",
            excludes="--weight-granularity tensor",
            help="A scale per channel for the inputs of depthwise convolutions.",
        ),
    )
    cost = (
        "a multiplication, which may fuse into the activation; where another layer reads the same tensor, a kernel "
        "more in TensorRT (13 on YOLOv6Lite-S, by estimate)"
    )
    tries, diagnosed = (True,), True

    def applies(self, fused: Detector, quantized: nn.Module) -> bool:
        from repq.quant.corrections.channel_inputs import takes_channel_scales
        from repq.quant.state import quantized_layers

        return any(map(takes_channel_scales, quantized_layers(quantized).values()))

    def watching(self, model: nn.Module, layers: Sequence[LayerId]) -> AbstractContextManager[Any]:
        from repq.quant.corrections.channel_inputs import watching_channels

        return watching_channels(model, layers)

    def merged(self, parts: Sequence[Any]) -> Any:
        from repq.quant.calibration.observation import merged_ranges

        return merged_ranges(parts)

    def act(self, model: Detector, value: Any, material: Material) -> str | None:
        from repq.quant.corrections.channel_inputs import set_channel_scales

        set_channel_scales(model, material.seen[self.name])
        return None if material.seen[self.name] else "no depthwise layer can have a scale per input channel"

    def remedy(self, symptom: Symptom, depthwise: bool) -> str | None:
        return self.name if depthwise else None


class Equalize(Correction):
    name, title, when, tries = "equalize", "equalization", "before", (True,)
    field = (
        bool,
        setting(False, flag="--equalize", help="Even out weight ranges along chains of convolutions that allow it."),
    )

    def applies(self, fused: Detector, quantized: nn.Module) -> bool:
        from repq.quant.corrections.equalize import find_chains

        return bool(find_chains(fused).pairs)

    def act(self, model: Detector, value: Any, material: Material) -> str:
        from repq.quant.corrections.equalize import equalize, equalize_ranges, find_chains

        chains = find_chains(model)
        if self.name in material.seen:
            equalize_ranges(model, chains, material.seen[self.name])
        else:  # another correction acted on the model that was observed
            equalize(model, chains, material.images)
        return chains.summary()

    def watching(self, model: nn.Module, layers: Sequence[LayerId]) -> AbstractContextManager[Any]:
        from repq.quant.calibration.observation import watching_ranges

        return watching_ranges(model, layers)  # of which some are in pairs: to find those, the model would have to run

    def merged(self, parts: Sequence[Any]) -> Any:
        from repq.quant.calibration.observation import merged_ranges

        return merged_ranges(parts)

    def changed_inputs(self, model: Detector) -> Collection[LayerId]:
        from repq.quant.corrections.equalize import find_chains

        return {after for _, after in find_chains(model).pairs}

    def remedy(self, symptom: Symptom, depthwise: bool) -> str | None:
        return None if depthwise else f"{self.name}, if it can be"


class Split(Correction):
    name, title, when, tries = "split_below_db", "split weights", "scales", (25.0,)
    field = (
        Decibels | None,
        setting(
            None, flag="--split-below", metavar="DB",
            help="Run layers whose weights have a lower SNR in INT8 as two convolutions, coarse and fine.",
        ),
    )  # fmt: skip
    cost = "the layer's multiply-adds once more"

    def applies(self, fused: Detector, quantized: nn.Module) -> bool:
        from repq.quant.corrections.split import weight_snr_db
        from repq.quant.state import quantized_layers

        return any(weight_snr_db(layer) < self.tries[0] for layer in quantized_layers(quantized).values())

    def act(self, model: Detector, value: Any, material: Material) -> str:
        from repq.quant.corrections.split import split_layers

        split = split_layers(model, value)
        return f"{len(split)} layers run as two convolutions: {', '.join(split) or 'none'}"


class Rounding(Correction):
    name, title, keeps_images = "rounding", "adaptive rounding", True
    field = (
        Literal["nearest", "adaptive"],
        setting("nearest", flag="--rounding", help="adaptive: which way each weight is rounded is learned."),
    )
    tries, diagnosed = ("adaptive",), "adaptive"

    def act(self, model: Detector, value: Any, material: Material) -> None:
        from repq.quant.corrections.rounding import adapt_rounding

        adapt_rounding(model, material.kept, seed=material.seed, progress=material.progress)


class Outputs(Correction):
    name, title, keeps_images, by_layer = "outputs", "corrected outputs", True, False
    field = (
        Literal["as_they_are", "mean", "moments"],
        setting("as_they_are", flag="--outputs",
                help="Correct the mean, or mean and variance, of every layer's outputs."),
    )  # fmt: skip
    tries, diagnosed = ("moments", "mean"), "mean"

    def titled(self, value: Any) -> str:
        return "corrected means" if value == "mean" else "corrected means and variances"

    def act(self, model: Detector, value: Any, material: Material) -> None:
        import torch

        from repq.quant.corrections.outputs import bring_to, float_moments
        from repq.quant.state import quantized_layers

        images = torch.cat(list(material.kept))

        def in_float() -> Any:
            return float_moments(material.reference, quantized_layers(model), images)

        bring_to(model, material.once(self.name, in_float), images, value)


CORRECTIONS: list[Correction] = [ChannelInputs(), Equalize(), Split(), Rounding(), Outputs()]


def asked_for(config: CorrectionConfig, *when: When) -> list[tuple[Correction, Any]]:
    """The corrections that settings ask for, with their values; with ``when``, those that act then."""
    found = [(entry, entry.value(config)) for entry in CORRECTIONS if not when or entry.when in when]
    return [(entry, value) for entry, value in found if value is not None]


def by_layer(config: CorrectionConfig) -> CorrectionConfig:
    """The same without the corrections that mislead where some layers run in float for a while."""
    others = {entry.name: entry.field[1].default for entry in CORRECTIONS if not entry.by_layer}
    return config.model_copy(update=others)


def settings_class() -> type[CorrectionConfig]:
    """The settings of the corrections, with a field for each in the list."""
    return _settings_class(tuple(CORRECTIONS))


@cache  # not forgotten: settings of two classes are never equal
def _settings_class(corrections: tuple[Correction, ...]) -> type[CorrectionConfig]:
    from repq.recipe import CorrectionConfig

    fields: dict[str, Any] = {entry.name: entry.field for entry in corrections}
    return create_model("CorrectionConfig", __base__=CorrectionConfig, **fields)
