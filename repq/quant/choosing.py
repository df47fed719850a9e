"""What each setting gains, and the choice of the best ones, on images of the train split alone.

A trial quantizes the model with some settings and compares its head's output with the float model's on images that it
was not calibrated on (``head_snr_db``: no labels, and smooth where AP on some hundred images jumps). First come the
calibration methods; then, one after the other, the corrections, each on top of what was kept so far. One that changes
the engine's work (a factor per channel, a second convolution) has to gain more than one that only changes numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import Tensor, nn

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.model import Detector
from repq.progress import Progress, silent
from repq.quant.calibration.observe import Images
from repq.quant.convolution import is_depthwise
from repq.quant.corrections import find_chains, weight_snr_db
from repq.quant.insertion import quantized_layers
from repq.quant.ptq import Observed, QuantizedModel, choose_scales, correct_model, observe_model, on_device_of
from repq.quant.scoring import head_snr_db, outputs_of
from repq.recipe import CalibrationConfig, CorrectionConfig, PtqConfig
from repq.results import PtqTrial

FREE_GAIN_DB = 0.25
"""What a step has to gain that costs nothing in the engine."""

COSTLY_GAIN_DB = 1.0
"""What a step has to gain that gives the engine more to do."""

SPLIT_BELOW_DB = 25.0
METHODS: tuple[str, ...] = get_args(CalibrationConfig.model_fields["method"].annotation)

ApOnTrain = Callable[[nn.Module], float]


@dataclass(frozen=True)
class _Result:
    index: int  # of its trial
    config: PtqConfig
    outcome: QuantizedModel
    snr: float


@dataclass
class _Bench:
    """Runs trials and remembers what they have in common."""

    fused: Detector
    batches: Iterable[Images]
    held_out: Sequence[Tensor]
    progress: Progress
    groups: Sequence[Sequence[LayerId]] = ()

    def __post_init__(self) -> None:
        self._wanted = outputs_of(self.fused, self.held_out)
        self._observed: dict[bool, Observed] = {}
        self._last: QuantizedModel | None = None  # trials often differ in the last step alone
        self.trials: list[PtqTrial] = []

    def observed(self, config: PtqConfig) -> Observed:
        """What the calibration images show of the model, or of the equalized one; each is run once."""
        key = config.correct.equalize
        if key not in self._observed:
            with_images = config.correct.model_copy(update={"rounding": "adaptive"})  # keep images for later trials
            config = config.model_copy(update={"correct": with_images})
            self._observed[key] = observe_model(self.fused, self.batches, config, self.progress, groups=self.groups)
        return self._observed[key]

    def run(self, name: str, config: PtqConfig, base: float | None) -> _Result:
        """Quantize with these settings and write the trial down."""
        started = time.perf_counter()
        observed = self.observed(config)
        before = _changed(config, {"outputs": "as_they_are"})
        if self._last is None or self._last.config != before:
            self._last = choose_scales(observed, before, self.progress)
        outcome = correct_model(self._last, observed, config)
        snr = head_snr_db(outcome.model, self.held_out, self._wanted)
        self.trials.append(
            PtqTrial(
                name=name,
                head_snr_db=snr,
                gain_db=None if base is None else snr - base,
                kept=False,
                seconds=time.perf_counter() - started,
            )
        )
        return _Result(len(self.trials) - 1, config, outcome, snr)

    def best(self, candidates: Iterable[tuple[str, PtqConfig]], base: float | None) -> _Result:
        """Run them all; the one of the highest SNR, the first of equals."""
        return max((self.run(name, config, base) for name, config in candidates), key=lambda result: result.snr)

    def keep(self, result: _Result, ap: float | None = None) -> None:
        """Mark a trial as one that others build on."""
        self.trials[result.index] = self.trials[result.index].model_copy(update={"kept": True, "ap_train": ap})


def quantize_in_steps(
    fused: Detector,
    batches: Iterable[Images],
    config: PtqConfig,
    progress: Progress = silent,
    *,
    groups: Sequence[Sequence[LayerId]] = (),
) -> QuantizedModel:
    """``quantize``, with what each correction that ``config`` asks for adds, one on top of the other, as trials.

    The SNR is on calibration images. Arguments and errors are those of ``quantize``.
    """
    bench = _Bench(fused, batches, _first_images(fused, batches, config.correct.images), progress, groups)
    correct = CorrectionConfig(images=config.correct.images)
    result = bench.run(config.calibration.method, config.model_copy(update={"correct": correct}), None)
    bench.keep(result)
    for field, value in config.correct:
        if value != getattr(correct, field):
            correct = correct.model_copy(update={field: value})
            step = config.model_copy(update={"correct": correct})
            result = bench.run(_title(field, value), step, result.snr)
            bench.keep(result)
    return replace(result.outcome, config=config, trials=tuple(bench.trials))


def quantize_at_best(
    fused: Detector,
    batches: Iterable[Images],
    held_out: Sequence[Tensor],
    config: PtqConfig,
    *,
    ap_on_train: ApOnTrain | None = None,
    progress: Progress = silent,
    groups: Sequence[Sequence[LayerId]] = (),
) -> QuantizedModel:
    """Choose calibration method and corrections, and quantize with them. Scheme and plan are those of ``config``.

    Args:
        fused: a fused model; it is not changed.
        batches: what is calibrated on; it is gone through several times.
        held_out: other images of the train split, on which the settings are compared.
        groups: as for ``quantize``.
        ap_on_train: AP of a model on labelled images of the train split. It is noted for the first and the last trial
            that were kept, so that one sees what the choice is worth; it decides nothing.

    Raises:
        QuantizationError: as ``quantize``; or no images were held out.
    """
    if not held_out:
        raise QuantizationError(
            "settings cannot be chosen", found="no images to compare them on", fix="give more calibration images"
        )
    bench = _Bench(fused, batches, held_out, progress, groups)
    plain = config.model_copy(update={"correct": CorrectionConfig(images=config.correct.images)})
    first = best = bench.best([(method, _with_method(plain, method)) for method in METHODS], None)
    bench.keep(first)
    for changes, least in _steps(fused, first.outcome):
        found = bench.best([(_name(change), _changed(best.config, change)) for change in changes], best.snr)
        if found.snr >= best.snr + least:
            best = found
            bench.keep(best)
    if ap_on_train is not None:
        for result in (first, best):
            bench.keep(result, ap_on_train(result.outcome.model))
    chosen = best.config.model_copy(update={"auto": False})  # what was chosen, as one could have asked for it
    return replace(best.outcome, config=chosen, trials=tuple(bench.trials))


Change = dict[str, Any]


def _steps(fused: Detector, plain: QuantizedModel) -> Iterable[tuple[list[Change], float]]:
    """What to try in turn: alternatives, of which one at most is kept, and what it has to gain."""
    layers = quantized_layers(plain.model).values()
    if any(is_depthwise(layer) for layer in layers):
        # one scale per channel makes another method best: nothing is left to clip in these layers
        yield [{"channel_inputs": True, "method": method} for method in METHODS], COSTLY_GAIN_DB
    if find_chains(fused).pairs:
        yield [{"equalize": True}], FREE_GAIN_DB
    if any(weight_snr_db(layer) < SPLIT_BELOW_DB for layer in layers):
        yield [{"split_below_db": SPLIT_BELOW_DB}], COSTLY_GAIN_DB
    yield [{"rounding": "adaptive"}], FREE_GAIN_DB
    yield [{"outputs": "mean"}, {"outputs": "moments"}], FREE_GAIN_DB


def _changed(config: PtqConfig, change: Change) -> PtqConfig:
    corrections = {key: value for key, value in change.items() if key != "method"}
    changed = config.model_copy(update={"correct": config.correct.model_copy(update=corrections)})
    return _with_method(changed, change["method"]) if "method" in change else changed


def _with_method(config: PtqConfig, method: str) -> PtqConfig:
    return config.model_copy(update={"calibration": config.calibration.model_copy(update={"method": method})})


def _name(change: Change) -> str:
    method = f" ({change['method']})" if "method" in change else ""
    return ", ".join(_title(field, value) for field, value in change.items() if field != "method") + method


def _title(field: str, value: object) -> str:
    return f"+ {field}" if value is True else f"+ {field}={value}"


def _first_images(fused: Detector, batches: Iterable[Images], count: int) -> list[Tensor]:
    kept: list[Tensor] = []
    for images in on_device_of(fused, batches):
        kept.append(images[: count - sum(map(len, kept))])
        if sum(map(len, kept)) == count:
            break
    return kept
